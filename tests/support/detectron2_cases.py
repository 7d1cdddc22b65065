"""What the tests of the engine detectron2 and `goldens/make_detectron2.py` share: the detector on a real, tiny ViT.

The goldens were made with these same functions, so changing any of them needs new goldens.
"""

from collections.abc import Callable
from typing import Any

import torch
from support.detector_goldens import NUM_CLASSES, golden_batch
from support.detector_standin import seeded_weights, small_config
from torch import Tensor, nn

from mae_transfer import load_backbone
from mae_transfer.tasks.coco.model import build_mask_rcnn

DETECTION_SEEDS = [0, 1, 3, 4]
TRAINING_CASES = {"polygons_and_bitmaps": (11, [7, 4, 5]), "without_objects": (12, [40, 1, 0])}
"""Seed and objects per image."""
CURVE_STEPS = 20


def vit_encoder() -> Any:
    """16x16 tokens in padded windows of 5, with relative positions."""
    return load_backbone("random_vit_nano", img_size=256, window_size=5, rel_pos=True)


VITDET: dict[str, dict[str, Any]] = {
    "vitdet_mask_rcnn": {"pyramid": "simple", "norm": "LN"},
    "vitdet_cascade": {"pyramid": "simple", "norm": "LN", "cascade": True},
}
"""Recipe -> its options."""


def vitdet_encoder() -> Any:
    return load_backbone("random_vit_nano", img_size=256, window_size=5, rel_pos="decomposed")


def vitdet_detector(build: Callable[..., Any], recipe: str, seed: int) -> Any:
    """As `vit_detector`, of a recipe of ViTDet."""
    torch.manual_seed(0)
    config = small_config(loss_average="batch", **VITDET[recipe])
    seeded = build_mask_rcnn(vitdet_encoder(), NUM_CLASSES, config)
    seeded_weights(seeded, seed)
    model = build(vitdet_encoder(), NUM_CLASSES, config)
    model.load_state_dict(seeded.state_dict())
    return model


def vit_detector(build: Callable[..., Any], seed: int, *, fresh: bool = False) -> Any:
    """The detector of `build` with weights from a seed, the same for every `build`; fresh: with small predictions."""
    torch.manual_seed(0)
    config = small_config(loss_average="batch")
    seeded = build_mask_rcnn(vit_encoder(), NUM_CLASSES, config)
    seeded_weights(seeded, seed)
    if fresh:  # as at the start of a training; else one flipped decision of an NMS changes the loss by itself
        for layer in (seeded.rpn.head.bbox_pred, seeded.roi_heads.box_predictor.cls_score):
            layer.weight.data.mul_(0.01)
    model = build(vit_encoder(), NUM_CLASSES, config)
    model.load_state_dict(seeded.state_dict())
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Under this project's names in both engines."""
    parameters = model.state_dict(keep_vars=True).items()
    return {name: p.grad for name, p in parameters if isinstance(p, nn.Parameter) and p.requires_grad}


def loss_curve(model: nn.Module) -> list[dict[str, float]]:
    """The losses of twenty steps of SGD, each on one of three images in turn."""
    optimizer = torch.optim.SGD(model.parameters(), lr=5e-3, momentum=0.9)
    curve = []
    for step in range(CURVE_STEPS):
        losses = model({key: value[step % 3 :][:1] for key, value in golden_batch(100, [5, 3, 4]).items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        curve.append({name: loss.item() for name, loss in losses.items()})
    return curve
