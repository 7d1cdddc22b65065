"""Exponential moving average of the weights: `torch.optim.swa_utils.AveragedModel` with one repair.

Floating-point buffers (BatchNorm's running statistics) are averaged with the same decay, as torchvision's references
do: the latest statistics belong to the latest weights, not to their average. Buffers of whole numbers (index tables,
batch counters) are copied: torch's own EMA function averages them and truncates, which turns a 5 into a 4.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def make_ema(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model on its device; `update_parameters(model)` after each step, `.module` is what to evaluate."""
    average = get_ema_multi_avg_fn(decay)

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            average([_own(each) for each in averaged], [_own(each) for each in current], num_averaged)
        else:
            with torch.no_grad():
                for old, new in zip(averaged, current, strict=True):
                    old.copy_(new)

    ema = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    ema.eval()
    ema.requires_grad_(False)
    return ema


def _own(tensor: Tensor) -> Tensor:
    """This rank's part of a parameter that ranks share (`shard.py`)."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
