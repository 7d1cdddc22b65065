"""Batch norm of pyramid and heads: synchronised over ranks, and sound when a rank has no RoI.

Source: the "SyncBN" of Li et al. 2021, in detectron2 `NaiveSyncBatchNorm(stats_mode="N")`. Here every value counts the
same, whichever rank it is on, so R ranks give what one rank gives on the concatenated batch. On CUDA the work is
`torch.nn.SyncBatchNorm`'s, which refuses CPU tensors; `_SyncedOnCpu` is the same for gloo.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class BatchNorm(nn.SyncBatchNorm):
    """`nn.BatchNorm2d` for (N, C, H, W), statistics over all ranks; N may be 0 and then changes no statistics."""

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, input: Tensor) -> Tensor:
        ranks = _world_size() if self.training else 1
        if ranks > 1 and not input.is_cuda:
            return self._forward_cpu(input)
        if self.training and _total_count(input, ranks) == 0:
            shape = (1, -1, 1, 1)
            return (input * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)
        if ranks > 1:
            # An empty half-precision input makes torch's SyncBatchNorm gather half where other ranks gather fp32.
            return super().forward(input if input.numel() > 0 else input.float()).to(input.dtype)
        return super(nn.SyncBatchNorm, self).forward(input)

    def _forward_cpu(self, input: Tensor) -> Tensor:
        output, mean, var, count = _SyncedOnCpu.apply(input, self.weight, self.bias, self.eps)
        if count > 0:
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var), self.momentum)
        return output


def _total_count(input: Tensor, ranks: int) -> int:
    if ranks == 1:
        return input.numel()
    count = torch.tensor(input.numel(), device=input.device)
    distributed.all_reduce(count)
    return int(count)


class _SyncedOnCpu(torch.autograd.Function):
    """Normalise with the statistics of all ranks; also returns their mean, biased variance and values per channel."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        channels = x.shape[1]
        stats = torch.zeros(2 * channels + 1, dtype=torch.float64)
        if x.numel() > 0:
            var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
            count = x.numel() // channels
            stats = torch.cat([mean.double(), var.double() * count, torch.tensor([count], dtype=torch.float64)])
        gathered = [torch.empty_like(stats) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, stats)
        means, squares, counts = torch.stack(gathered).split([channels, channels, 1], dim=1)
        total = counts.sum()
        # Chan et al.: the squares about each rank's mean, moved to the common mean, lose no digits.
        mean = (counts * means).sum(0) / total
        var = (squares + counts * (means - mean) ** 2).sum(0) / total
        scale = (var + eps).rsqrt()
        normalised = (x - _per_channel(mean, x)) * _per_channel(scale, x)
        ctx.save_for_backward(input, weight, mean, scale, total)
        ctx.mark_non_differentiable(mean, var, total)
        output = normalised * _per_channel(weight, x) + _per_channel(bias, x)
        return output.to(input.dtype), mean, var, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        input, weight, mean, scale, total = ctx.saved_tensors
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        grad = grad.to(x.dtype)
        normalised = (x - _per_channel(mean, x)) * _per_channel(scale, x)
        grad_bias, grad_weight = grad.sum((0, 2, 3)), (grad * normalised).sum((0, 2, 3))
        # The statistics depend on every rank's input, the weights' gradients are left to DDP to reduce.
        sums = torch.stack([grad_bias, grad_weight])
        distributed.all_reduce(sums)
        mean_grad, mean_dot = (_per_channel(s, x) / total.to(x) for s in sums)
        grad_input = _per_channel(weight * scale, x) * (grad - mean_grad - normalised * mean_dot)
        return grad_input.to(input.dtype), grad_weight.to(weight), grad_bias.to(weight), None


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(1, -1, 1, 1)
