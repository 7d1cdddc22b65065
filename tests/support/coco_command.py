"""Options of the smallest COCO run of the command line."""

TINY = [
    *("data.image_size=64", "backbone.window_size=2", "model.fpn_channels=16", "model.head_channels=16"),
    *("model.box_fc=32", "model.rpn_batch_per_image=32", "model.roi_batch_per_image=16", "eval.score_threshold=0.01"),
]


BASE = ["--task", "coco", "--backbone", "random_vit_nano", "--preset", "smoke", "--device", "cpu"]
