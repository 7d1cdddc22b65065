"""Anchor boxes as detectron2 makes them: unrounded, at fixed strides, always fp32.

Source: detectron2 `modeling/anchor_generator.py` with the offset 0 of its Mask R-CNN configs. torchvision rounds the
cell anchors to integers, infers the strides from the padded image and works in the dtype of the features.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SIZES = (32, 64, 128, 256, 512)
"""Square root of the anchor area in pixels, one per pyramid map p2 .. p6."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Height / width."""


def cell_anchors(size: float) -> Tensor:
    """The anchors of one cell centred on (0, 0): fp32 (len(ASPECT_RATIOS), 4) xyxy in pixels."""
    boxes = []
    for ratio in ASPECT_RATIOS:
        width = math.sqrt(size**2 / ratio)
        height = ratio * width
        boxes.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(boxes)


def grid_anchors(
    grids: Sequence[tuple[int, int]], strides: Sequence[float], device: torch.device | str = "cpu"
) -> list[Tensor]:
    """Anchors of each map, fp32 (H * W * A, 4) xyxy in pixels, ordered by row, column, aspect ratio.

    Args:
        grids: (H, W) of each map.
        strides: pixels per cell of each map.
    """
    anchors = []
    for size, (height, width), stride in zip(SIZES, grids, strides, strict=True):
        y = torch.arange(height, dtype=torch.float32, device=device) * stride
        x = torch.arange(width, dtype=torch.float32, device=device) * stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        anchors.append((centres + cell_anchors(size).to(device, non_blocking=True)).reshape(-1, 4))
    return anchors
