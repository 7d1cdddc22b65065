"""timm's Mlp with less memory in training: it keeps one of two wide tensors and computes the GELU again in backward.

A ViT block keeps 17 times its width for each token, 4 of which are the GELU's output; computing that again takes about
one hundredth of a step.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn


def make_lean(model: nn.Module) -> None:
    """Turn each Mlp of exact GELU, without dropout and inner norm, into one that keeps less."""
    for module in model.modules():
        if type(module) is Mlp and _is_plain(module):
            module.__class__ = LeanMlp


def _is_plain(mlp: Mlp) -> bool:
    return (
        type(mlp.act) is nn.GELU
        and mlp.act.approximate == "none"
        and isinstance(mlp.norm, nn.Identity)
        and mlp.drop1.p == mlp.drop2.p == 0
        and all(type(fc) is nn.Linear and fc.bias is not None for fc in (mlp.fc1, mlp.fc2))
    )


class LeanMlp(Mlp):
    """fc1, GELU, fc2, with Mlp's parameters and numbers; without dropout and inner norm, which a plain ViT has not."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert _is_plain(self), "of exact GELU only"

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.fc2(F.gelu(self.fc1(x)))
        tensors: list[Any] = [x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias]
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            tensors = [tensor.to(dtype) for tensor in tensors]
        output: Tensor = _LinearGeluLinear.apply(*tensors)
        return output


class _LinearGeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
        hidden = F.linear(x, weight1, bias1)
        ctx.save_for_backward(x, hidden, weight1, weight2)
        return F.linear(F.gelu(hidden), weight2, bias2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, hidden, weight1, weight2 = ctx.saved_tensors
        rows, hidden, grad = x.flatten(0, -2), hidden.flatten(0, -2), grad.flatten(0, -2)
        grad_weight2, grad_bias2 = grad.T @ F.gelu(hidden), grad.sum(0)
        grad = torch.ops.aten.gelu_backward(grad @ weight2, hidden)
        return (grad @ weight1).view_as(x), grad.T @ rows, grad.sum(0), grad_weight2, grad_bias2
