"""Losses of the RoI heads with detectron2's forms, and how they are averaged over images.

Source: detectron2 `modeling/roi_heads/{fast_rcnn,mask_head}.py`: cross-entropy over all sampled RoIs, L1 on the box
deltas divided by the number of ALL sampled RoIs, binary cross-entropy on the masks of the foreground RoIs.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossAverage = Literal["image", "batch"]


def roi_weights(counts: Sequence[int], average: LossAverage, device: torch.device | str = "cpu") -> Tensor:
    """Weight of each RoI, so that the weighted sum over RoIs is the loss: fp32 (sum of counts,).

    Args:
        counts: RoIs of each image.
        average: `batch` is the mean over all RoIs of the batch, as one detectron2 process has it; `image` the mean
            over images of each image's mean (0 for an image without RoIs), which no split of the batch changes.
    """
    total = sum(counts)
    each = [1 / max(total, 1) if average == "batch" else 1 / (len(counts) * max(n, 1)) for n in counts]
    weights = torch.repeat_interleave(torch.tensor(each), torch.tensor(list(counts)), output_size=total)
    return weights.to(device, non_blocking=True)


def box_losses(
    logits: Tensor, deltas: Tensor, classes: Tensor, wanted_deltas: Tensor, weights: Tensor
) -> dict[str, Tensor]:
    """`loss_cls` and `loss_box_reg`.

    Args:
        logits: fp32 (n, K + 1), background last.
        deltas: fp32 (n, K, 4), or (n, 1, 4) for boxes without classes.
        classes: int64 (n,), K is background.
        wanted_deltas: fp32 (n, 4); those of background do not count.
        weights: of `roi_weights` (n,).
    """
    rows = torch.arange(len(classes), device=classes.device)
    distance = (deltas[rows, classes.clamp(max=deltas.shape[1] - 1)] - wanted_deltas).abs().sum(dim=1)
    # No foreground is picked: that would wait for the device.
    return {
        "loss_cls": (F.cross_entropy(logits, classes, reduction="none") * weights).sum(),
        "loss_box_reg": (distance * weights).where(classes < logits.shape[1] - 1, 0).sum(),
    }


def mask_loss(logits: Tensor, classes: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over pixels of the BCE of each RoI's own class, weighted; 0 (with a gradient of 0) without RoIs.

    Args:
        logits: fp32 (f, K, M, M); `classes` int64 (f,); `targets` fp32 (f, M, M); `weights` of `roi_weights` (f,).
    """
    own = logits[torch.arange(len(classes), device=logits.device), classes]
    per_pixel = F.binary_cross_entropy_with_logits(own, targets, reduction="none")
    return (per_pixel.mean(dim=(1, 2)) * weights).sum()
