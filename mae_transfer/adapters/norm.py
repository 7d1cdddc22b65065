"""Norms of pyramid and heads. Batch norm: synchronised over ranks, and sound when a rank has no value (no RoI).

Source: the "SyncBN" of Li et al. 2021, in detectron2 `NaiveSyncBatchNorm(stats_mode="N")`. Here every value counts the
same, whichever rank it is on, so R ranks give what one rank gives on the concatenated batch. `torch.nn.SyncBatchNorm`
would not do: it (and DDP on seeing it) refuses CPU tensors, it damages the running statistics when no rank has a value,
and its ranks gather different dtypes when one of them has an empty half-precision input.

Layer norm over the channels of each place: ViTDet's "LN" (detectron2 `layers/batch_norm.py`, `LayerNorm`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` for (N, C, H, W), statistics over all ranks; no value at all (N = 0) changes nothing."""

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, input: Tensor) -> Tensor:
        ranks = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        if not self.training or (ranks == 1 and input.numel() > 0):
            return super().forward(input)
        weight = self.weight if self.affine else torch.ones_like(self.running_mean)
        bias = self.bias if self.affine else torch.zeros_like(self.running_mean)
        output, mean, var, count = _SyncedBatchNorm.apply(input, weight, bias, self.eps, ranks)
        # No branch on `count`: it would make every norm wait for the device.
        momentum = count.clamp(max=1) * self.momentum
        unbiased = var * count / (count - 1).clamp(min=1)
        self.running_mean.lerp_(mean.to(self.running_mean), momentum.to(self.running_mean))
        self.running_var.lerp_(unbiased.to(self.running_var), momentum.to(self.running_var))
        self.num_batches_tracked.add_(count > 0)
        return output


class ChannelNorm(nn.LayerNorm):
    """Layer norm of (N, C, H, W) over C; eps 1e-6. Under autocast the result is fp32, as detectron2's."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        normed = F.layer_norm(input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)


NORMS: dict[str, Callable[[int], nn.Module]] = {"BN": BatchNorm, "LN": ChannelNorm}
"""The values of `model.norm`: each makes a norm for a number of channels."""


class _SyncedBatchNorm(torch.autograd.Function):
    """Normalise with the statistics of all ranks; also returns their mean, biased variance and values per channel."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float, ranks: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = _at_least_fp32(input)
        channels = x.shape[1]
        stats = x.new_zeros(2 * channels + 1, dtype=torch.float64)
        if x.numel() > 0:
            count = x.numel() // channels
            var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
            stats = torch.cat([mean.double(), var.double() * count, stats.new_full((1,), count)])
        gathered = [stats]
        if ranks > 1:
            gathered = [torch.empty_like(stats) for _ in range(ranks)]
            distributed.all_gather(gathered, stats)
        means, squares, counts = torch.stack(gathered).split([channels, channels, 1], dim=1)
        total = counts.sum()
        divisor = total.clamp(min=1)
        # Chan et al.: squares about each rank's own mean, moved to the common mean, lose no digits.
        mean = (counts * means).sum(0) / divisor
        var = (squares + counts * (means - mean) ** 2).sum(0) / divisor
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(input, weight, mean, scale, divisor)
        ctx.ranks = ranks
        ctx.mark_non_differentiable(mean, var, total)
        slope = scale * weight
        output = torch.addcmul(_per_channel(bias - mean * slope, x), x, _per_channel(slope, x))
        return output.to(input.dtype), mean, var, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        input, weight, mean, scale, divisor = ctx.saved_tensors
        x, grad = _at_least_fp32(input), _at_least_fp32(grad)
        normalised = (x - _per_channel(mean, x)) * _per_channel(scale, x)
        grad_bias, grad_weight = grad.sum((0, 2, 3)), (grad * normalised).sum((0, 2, 3))
        # The statistics depend on every rank's input; the gradients of weight and bias are left to DDP to reduce.
        sums = torch.stack([grad_bias, grad_weight])
        if ctx.ranks > 1:
            distributed.all_reduce(sums)
        mean_grad, mean_dot = (_per_channel(s / divisor, x) for s in sums)
        grad_input = _per_channel(weight * scale, x) * (grad - mean_grad - normalised * mean_dot)
        return grad_input.to(input.dtype), grad_weight.to(weight), grad_bias.to(weight), None, None


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(1, -1, 1, 1)
