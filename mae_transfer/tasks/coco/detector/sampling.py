"""Matching of boxes to ground truth and the random choice of which of them are trained on.

Source: detectron2 `modeling/matcher.py` and `modeling/sampling.py`; the matching is torchvision's `Matcher`, which has
the same arithmetic but refuses images without objects. The draw differs on purpose: it comes from a CPU generator of
the image's own, so it depends neither on how a batch is split over ranks and micro-batches nor on the device.
"""

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou


def match(gt_boxes: Tensor, boxes: Tensor, matcher: Matcher) -> Tensor:
    """Index into gt_boxes (n, 4) for each of boxes (m, 4), or a `Matcher` constant: int64 (m,).

    `Matcher.BELOW_LOW_THRESHOLD` is background, `Matcher.BETWEEN_THRESHOLDS` is neither.
    """
    if len(gt_boxes) == 0 or len(boxes) == 0:
        return torch.full((len(boxes),), Matcher.BELOW_LOW_THRESHOLD, dtype=torch.int64, device=boxes.device)
    return matcher(box_iou(gt_boxes, boxes))


def of_matched(values: Tensor, matched: Tensor, background: Tensor) -> Tensor:
    """Of each box the value of its object, values (n, ...) of the objects at `matched` (m,), the answer of `match`; its
    value of background (m, ...) where it has none."""
    if len(values) == 0:
        return background
    has_one = (matched >= 0).view(-1, *[1] * (values.ndim - 1))
    return values[matched.clamp(min=0)].where(has_one, background)


def subsample(
    matched: Tensor, count: int, positive_fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """At most `count` random indices into `matched` (the answer of `match`): positives, then negatives, both int64.

    Positives are at most `count * positive_fraction`; negatives fill up the rest.
    """
    positive = torch.nonzero(matched >= 0).squeeze(1)
    negative = torch.nonzero(matched == Matcher.BELOW_LOW_THRESHOLD).squeeze(1)
    num_positive = min(len(positive), int(count * positive_fraction))
    num_negative = min(len(negative), count - num_positive)
    return _choose(positive, num_positive, generator), _choose(negative, num_negative, generator)


def _choose(indices: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return indices[torch.randperm(len(indices), generator=generator)[:count].to(indices.device, non_blocking=True)]
