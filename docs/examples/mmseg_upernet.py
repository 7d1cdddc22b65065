"""A backbone of mae_transfer in mmsegmentation: UperNet as in the MAE paper, for a configuration of your own.

Put data sets and schedule beside it (`_base_`), and train with mmsegmentation's tools/train.py. `name` is any name of
mae_transfer, `checkpoint` a weights file; without it the published weights are used.
"""

custom_imports = {"imports": ["mae_transfer.adapters.mmseg"], "allow_failed_imports": False}

norm_cfg = {"type": "SyncBN", "requires_grad": True}
heads = {"num_classes": 150, "norm_cfg": norm_cfg, "align_corners": False, "dropout_ratio": 0.1}
model = {
    "type": "EncoderDecoder",
    "data_preprocessor": {
        "type": "SegDataPreProcessor",
        "mean": [123.675, 116.28, 103.53],  # of the weights; load_backbone(...).mean says which, in 0..1
        "std": [58.395, 57.12, 57.375],
        "bgr_to_rgb": True,
        "pad_val": 0,
        "seg_pad_val": 255,
        "size": (512, 512),
    },
    "backbone": {
        "type": "MAETransferViT",
        "name": "mae_vit_b",
        "checkpoint": None,
        "img_size": 512,
        "rel_pos": "per_block",
        "pos_embed": "resized",
        "layer_scale": 1.0,
        "drop_path": 0.1,
        "taps": [3, 5, 7, 11],
    },
    "neck": {"type": "Feature2Pyramid", "embed_dim": 768, "rescales": [4, 2, 1, 0.5], "norm_cfg": norm_cfg},
    "decode_head": {
        "type": "UPerHead",
        "in_channels": [768, 768, 768, 768],
        "in_index": [0, 1, 2, 3],
        "pool_scales": (1, 2, 3, 6),
        "channels": 768,
        "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
        **heads,
    },
    "auxiliary_head": {
        "type": "FCNHead",
        "in_channels": 768,
        "in_index": 2,
        "channels": 256,
        "num_convs": 1,
        "concat_input": False,
        "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 0.4},
        **heads,
    },
    "test_cfg": {"mode": "slide", "crop_size": (512, 512), "stride": (341, 341)},
}
