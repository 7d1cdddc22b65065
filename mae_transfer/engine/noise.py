"""Drop path and Dropout2d whose noise is a function of the sample, however a batch is cut into micro-batches and ranks.

timm and torch draw it for a batch as a whole, from a global generator. Here row i of a micro-batch draws from (seed,
position of image i in the sample stream): the same distribution and scale, and again the same when gradient
checkpointing runs a block once more. Other noise, such as plain dropout, stays with the micro-batch (`rng.py`); no
recipe has any.
"""

from collections.abc import Sequence

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mae_transfer.engine.rng import sample_uniform

CALLED_TWICE = ("SplitTransposeBlock",)
"""Blocks of timm (EdgeNeXt's) that call one DropPath for two branches, whose noise must differ: theirs stays timm's."""


class SampleDropPath(nn.Module):
    """In place of timm's `DropPath`: `keep` has one uniform number for each image of the micro-batch.

    The mode is the original's, which an encoder may have put to rest with a frozen part.
    """

    def __init__(self, original: DropPath) -> None:
        super().__init__()
        self.original = original
        self.keep: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.original.training or self.keep is None or len(x) != len(self.keep):  # rows that are no images
            return self.original(x)
        kept = 1 - self.original.drop_prob
        mask = (self.keep < kept).to(x.dtype)
        return x * (mask / kept if self.original.scale_by_keep else mask).view(-1, *[1] * (x.ndim - 1))


class SampleDropout2d(nn.Module):
    """In place of `nn.Dropout2d`, on (B, C, H, W): channels are dropped by numbers of the image's own."""

    def __init__(self, original: nn.Dropout2d, number: int) -> None:
        super().__init__()
        self.original, self.number = original, number
        self.seed, self.positions = 0, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        if not self.original.training or len(x) != len(self.positions):
            return self.original(x)
        kept = 1 - self.original.p
        uniform = sample_uniform(self.seed, self.positions, self.number, x.shape[1])
        return x * ((uniform.to(x.device, non_blocking=True) < kept).to(x.dtype) / kept)[:, :, None, None]


class SampleNoise:
    """Puts these modules into a model, which keeps its parameters and their names, and sets them to a micro-batch."""

    def __init__(self, model: nn.Module) -> None:
        self.paths: list[SampleDropPath] = []
        self.dropouts: list[SampleDropout2d] = []
        for parent in list(model.modules()):
            if type(parent).__name__ in CALLED_TWICE:
                continue
            for name, child in parent.named_children():
                if type(child) is DropPath and 0 < child.drop_prob < 1:
                    self.paths.append(SampleDropPath(child))
                    setattr(parent, name, self.paths[-1])
                elif type(child) is nn.Dropout2d and 0 < child.p < 1:
                    self.dropouts.append(SampleDropout2d(child, 1 + len(self.dropouts)))
                    setattr(parent, name, self.dropouts[-1])

    def draw(self, seed: int, positions: Sequence[int], device: torch.device) -> None:
        """The noise of the micro-batch whose images are at these positions of the sample stream."""
        if self.paths:
            columns = sample_uniform(seed, positions, 0, len(self.paths)).to(device, non_blocking=True).unbind(1)
            for path, column in zip(self.paths, columns, strict=True):
                path.keep = column
        for dropout in self.dropouts:
            dropout.seed, dropout.positions = seed, list(positions)
