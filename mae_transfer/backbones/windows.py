"""Non-overlapping attention windows, as ViTDet's (detectron2 `modeling/backbone/utils.py`): zero padding, no mask."""

import torch.nn.functional as F
from torch import Tensor

from mae_transfer.backbones.grid import Grid


def partition(x: Tensor, size: int) -> tuple[Tensor, Grid]:
    """Cut (B, h, w, C) into (B * windows, size * size, C), padded with zeros on the right and bottom.

    Also gives the padded height and width, which `merge` needs.
    """
    batch, h, w, dim = x.shape
    x = F.pad(x, (0, 0, 0, -w % size, 0, -h % size))
    padded = (x.shape[1], x.shape[2])
    x = x.view(batch, padded[0] // size, size, padded[1] // size, size, dim)
    return x.transpose(2, 3).reshape(-1, size * size, dim), padded


def merge(windows: Tensor, size: int, padded: Grid, grid: Grid) -> Tensor:
    """The inverse of `partition`, without the padding: (B, h, w, C)."""
    dim = windows.shape[-1]
    x = windows.view(-1, padded[0] // size, padded[1] // size, size, size, dim)
    return x.transpose(2, 3).reshape(-1, *padded, dim)[:, : grid[0], : grid[1]]
