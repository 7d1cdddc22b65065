"""ViTDet's models in both projects, from the same weights: what its tests and `goldens/make_vitdet.py` share.

The goldens were made with these same functions, so changing any of them needs new goldens.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from support.detector_standin import seeded_image, seeded_target, seeded_weights, small_config
from torch import Tensor, nn

from mae_transfer.adapters.square_input import square_batch
from mae_transfer.backbones import registry
from mae_transfer.backbones.timm_vit import build
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.tasks.coco.detector.sampling import subsample
from mae_transfer.tasks.coco.detectron2.names import options_of, prefix_pairs, to_detectron2
from mae_transfer.tasks.coco.model import MaskRCNN, build_mask_rcnn

DIM, DEPTH, HEADS, WINDOW, CHANNELS, FC, SIDE, NUM_CLASSES = 32, 4, 4, 3, 16, 32, 256, 5
GLOBAL_BLOCKS = (1, 3)
SPEC = dataclasses.replace(
    registry.find("random_vit_nano"),
    embed_dim=DIM,
    depth=DEPTH,
    num_heads=HEADS,
    img_size=64,
    # exact in fp32, also times 255: detectron2 keeps the statistics in 0..255 units
    mean=(0.5, 0.4375, 0.375),
    std=(0.25, 0.21875, 0.25),
)
KINDS = ("mask_rcnn", "cascade")
IMAGES = [(256, 256), (256, 120), (120, 256)]
"""(height, width) in the network: square, tall, wide."""
ORIGINALS = [(256, 256), (512, 240), (90, 192)]
DETECTION_SEEDS = [0, 1, 2]
TRAINING_CASES = {"objects": (11, [7, 4, 5]), "an_empty_image": (12, [30, 2, 0])}
"""Seed, and objects per image (the second image has bitmaps, the others polygons)."""
MAP_CASES = {"square": (96, 96), "tall": (160, 64), "wide": (64, 192), "native": (256, 256)}
"""Sizes of images for the pyramid alone; tables are for 256x256, so that all but the last resize them."""
PREDICTORS = ("objectness_logits", "anchor_deltas", "cls_score", "bbox_pred", "predictor")
GAINS = {"bbox_pred.weight": 0.3, "cls_score.weight": 3.0}


def ours(kind: str, seed: int) -> MaskRCNN:
    torch.manual_seed(0)
    vit = build(SPEC, img_size=SPEC.img_size)
    encoder = ViTEncoder(vit, SPEC, img_size=SIDE, window_size=WINDOW, num_global_blocks=2, rel_pos="decomposed")
    options = {"pyramid": "simple", "norm": "LN", "cascade": kind == "cascade", "loss_average": "batch"}
    model = build_mask_rcnn(encoder, NUM_CLASSES, small_config(SIDE, **options))
    seeded_weights(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("roi_heads.box_predictor.") and kind == "cascade" and name.endswith(tuple(GAINS)):
                parameter *= next(gain for end, gain in GAINS.items() if name.endswith(end))
            elif "rel_pos" in name:
                parameter *= 10
    return model


def detectron2s(kind: str, model: MaskRCNN) -> Any:
    """The `GeneralizedRCNN` of ViTDet's configuration at our small sizes, with the weights of `model`."""
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import GeneralizedRCNN, SimpleFeaturePyramid, StandardROIHeads, ViT
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.matcher import Matcher
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
    from detectron2.modeling.roi_heads import (
        CascadeROIHeads,
        FastRCNNConvFCHead,
        FastRCNNOutputLayers,
        MaskRCNNConvUpsampleHead,
    )

    backbone = SimpleFeaturePyramid(
        net=ViT(
            img_size=SIDE,
            patch_size=SPEC.patch_size,
            embed_dim=DIM,
            depth=DEPTH,
            num_heads=HEADS,
            window_size=WINDOW,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            window_block_indexes=[i for i in range(DEPTH) if i not in GLOBAL_BLOCKS],
            use_rel_pos=True,
            pretrain_img_size=SPEC.img_size,
        ),
        in_feature="last_feat",
        out_channels=CHANNELS,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        norm="LN",
        square_pad=SIDE,
    )
    rpn = RPN(
        in_features=["p2", "p3", "p4", "p5", "p6"],
        head=StandardRPNHead(in_channels=CHANNELS, num_anchors=3, conv_dims=[-1, -1]),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[32], [64], [128], [256], [512]],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64],
            offset=0.0,
        ),
        anchor_matcher=Matcher(thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(2000, 1000),
        post_nms_topk=(1000, 1000),
        nms_thresh=0.7,
    )

    def box_head() -> Any:
        shape = ShapeSpec(channels=CHANNELS, height=7, width=7)
        return FastRCNNConvFCHead(shape, conv_dims=[CHANNELS] * 4, fc_dims=[FC], conv_norm="LN")

    def predictor(weights: tuple[int, ...], agnostic: bool) -> Any:
        return FastRCNNOutputLayers(
            ShapeSpec(channels=FC),
            box2box_transform=Box2BoxTransform(weights=weights),
            num_classes=NUM_CLASSES,
            test_score_thresh=0.05,
            test_nms_thresh=0.5,
            test_topk_per_image=100,
            cls_agnostic_bbox_reg=agnostic,
        )

    def matcher(threshold: float) -> Any:
        return Matcher(thresholds=[threshold], labels=[0, 1], allow_low_quality_matches=False)

    def pooler(size: int) -> Any:
        scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
        return ROIPooler(output_size=size, scales=scales, sampling_ratio=0, pooler_type="ROIAlignV2")

    common = {
        "num_classes": NUM_CLASSES,
        "batch_size_per_image": 512,
        "positive_fraction": 0.25,
        "box_in_features": ["p2", "p3", "p4", "p5"],
        "box_pooler": pooler(7),
        "mask_in_features": ["p2", "p3", "p4", "p5"],
        "mask_pooler": pooler(14),
        "mask_head": MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=CHANNELS, height=14, width=14),
            num_classes=NUM_CLASSES,
            conv_dims=[CHANNELS] * 5,
            conv_norm="LN",
        ),
    }
    heads: Any
    if kind == "cascade":
        heads = CascadeROIHeads(
            box_heads=[box_head() for _ in range(3)],
            box_predictors=[predictor((a, a, b, b), True) for a, b in ((10, 5), (20, 10), (30, 15))],
            proposal_matchers=[matcher(iou) for iou in (0.5, 0.6, 0.7)],
            **common,
        )
    else:
        heads = StandardROIHeads(
            box_head=box_head(),
            box_predictor=predictor((10, 10, 5, 5), False),
            proposal_matcher=matcher(0.5),
            **common,
        )
    rcnn = GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=rpn,
        roi_heads=heads,
        pixel_mean=[255 * value for value in SPEC.mean],
        pixel_std=[255 * value for value in SPEC.std],
        input_format="RGB",
    )
    state = model.state_dict()
    rcnn.load_state_dict(to_detectron2(state, prefix_pairs(**options_of(state))))
    return rcnn


def in_float64(kind: str, model: MaskRCNN) -> Any:
    """detectron2's model in float64 but for what is fp32 in ours whatever the trunk is: anchors, and the predictions of
    RPN, box heads and mask head."""
    rcnn = detectron2s(kind, model).double()
    rcnn.proposal_generator.anchor_generator.float()
    for name, module in rcnn.named_modules():
        if name.rsplit(".", 1)[-1] in PREDICTORS and isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: output.float())
    return rcnn


def on_our_maps(rcnn: Any, model: MaskRCNN, data: dict[str, Any]) -> Any:
    """detectron2's model with the pyramid that ours makes of a batch in place of its own."""
    images = (model.encoder, data["images"], data["file_names"], model.side)
    rcnn.backbone.forward = lambda _: model.pyramid(model.encoder(square_batch(*images)))
    return rcnn


def batch(seed: int, objects: Sequence[int] | None = None) -> dict[str, Any]:
    """Three images as our detector takes them, with targets if it is said how many objects each has."""
    images = [seeded_image(10 * seed + i, *size) for i, size in enumerate(IMAGES)]
    found: dict[str, Any] = {"images": images, "file_names": ["a", "b", "c"], "sizes": ORIGINALS}
    if objects is not None:
        found["targets"] = [
            seeded_target(10 * seed + i, *size, n, NUM_CLASSES, bitmaps=i == 1)
            for i, (size, n) in enumerate(zip(IMAGES, objects, strict=True))
        ]
    return found


def map_image(case: str) -> Tensor:
    """Normalised image (2, 3, H, W) of a map case."""
    rng = np.random.default_rng(sorted(MAP_CASES).index(case))
    return torch.from_numpy(rng.normal(0, 1, (2, 3, *MAP_CASES[case]))).float()


def their_detections(rcnn: Any, data: dict[str, Any]) -> list[dict[str, Tensor]]:
    inputs = [
        {"image": image, "height": height, "width": width}
        for image, (height, width) in zip(data["images"], data["sizes"], strict=True)
    ]
    with torch.no_grad():
        found = [output["instances"] for output in rcnn.eval()(inputs)]
    return [
        {"boxes": i.pred_boxes.tensor, "scores": i.scores, "classes": i.pred_classes, "masks": i.pred_masks}
        for i in found
    ]


def their_losses(rcnn: Any, data: dict[str, Any]) -> dict[str, Tensor]:
    """With the anchors and RoIs drawn as `sampling.subsample` draws them, from a generator of each image's own."""
    from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
    from detectron2.utils.events import EventStorage

    inputs = []
    for image, target in zip(data["images"], data["targets"], strict=True):
        instances = Instances(tuple(image.shape[1:]))
        instances.gt_boxes, instances.gt_classes = Boxes(target["boxes"]), target["classes"]
        masks = target["masks"]
        bitmaps = len(masks) > 0 and isinstance(masks[0], np.ndarray)
        instances.gt_masks = BitMasks(torch.from_numpy(np.stack(masks))) if bitmaps else PolygonMasks(masks)
        inputs.append({"image": image, "instances": instances})
    with _draws([target["seed"] for target in data["targets"]]), EventStorage():
        losses: dict[str, Tensor] = rcnn.train()(inputs)
    return losses


@contextmanager
def _draws(seeds: Sequence[int]) -> Iterator[None]:
    from unittest.mock import patch

    from detectron2.modeling.proposal_generator import rpn
    from detectron2.modeling.roi_heads import roi_heads

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    order = iter([*generators, *generators])  # RPN asks for each image in turn, then the heads

    def draw(labels: Tensor, count: int, fraction: float, background: int) -> tuple[Tensor, Tensor]:
        matched = torch.zeros_like(labels, dtype=torch.int64)
        matched[labels == background] = -1
        matched[labels == -1] = -2
        return subsample(matched, count, fraction, next(order))

    with patch.object(rpn, "subsample_labels", draw), patch.object(roi_heads, "subsample_labels", draw):
        yield
