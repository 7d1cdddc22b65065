"""RoIAlign over a pyramid as detectron2 does it: aligned, adaptive sampling, fixed scales, fp32 boxes.

Source: detectron2 `modeling/poolers.py` ("ROIAlignV2", sampling ratio 0). torchvision's `MultiScaleRoIAlign` has no
`aligned`, guesses the scales from the first batch and puts its epsilon elsewhere in the level formula. Under autocast
detectron2 rounds the boxes to the dtype of the features; here the features are brought to fp32 instead.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

CANONICAL_SIZE = 224
"""Side in pixels of the box that is pooled from the third map (p4); half the side goes one map down."""


def assign_levels(boxes: Tensor, num_levels: int) -> Tensor:
    """Map to pool each of boxes (n, 4) from, 0 = p2: int64 (n,). Equation 1 of the FPN paper; `num_levels`, which is no
    map, for a box that is NaN."""
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = torch.floor(4 + torch.log2(size / CANONICAL_SIZE + 1e-8))
    return level.clamp(min=2, max=num_levels + 1).nan_to_num(num_levels + 2).long() - 2


def pool(features: Sequence[Tensor], strides: Sequence[float], boxes: Sequence[Tensor], size: int) -> Tensor:
    """Features of each box: (sum of n, C, size, size), in the order of the boxes; zeros for a box that is NaN.

    Args:
        features: maps (B, C, H, W), p2 first, fp32 or fp64.
        strides: pixels per cell of each map.
        boxes: fp32 (n, 4) xyxy in pixels, one tensor per image.
    """
    flat = torch.cat(list(boxes))
    image = torch.cat([box.new_full((len(box), 1), number) for number, box in enumerate(boxes)])
    levels = assign_levels(flat, len(features))
    pooled = features[0].new_zeros(len(flat), features[0].shape[1], size, size)
    # Every map takes all boxes, those of other maps without a size: these have no points to sample and give zeros. To
    # pick a map's own would wait for the device. The backward graph, too, is then the same on every rank.
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        rois = torch.cat([image, flat.where((levels == level)[:, None], 0)], dim=1).to(feature.dtype)
        pooled += roi_align(feature, rois, size, 1 / stride, 0, aligned=True)
    return pooled
