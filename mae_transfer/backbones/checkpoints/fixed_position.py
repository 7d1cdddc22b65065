"""The position embeddings that MoCo v3 and MAE compute and freeze, by which their weights are told from others.

Both are sines and cosines of the two coordinates: MoCo v3's (facebookresearch/moco-v3 `vits.py`) of the row, then of
the column; MAE's (facebookresearch/mae `util/pos_embed.py`) of the column first. MoCo v3's ViT-S has 12 heads instead
of the usual 6, and no tensor's shape shows that.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mae_transfer.backbones.grid import Grid

MOCO_HEADS = {384: 12, 768: 12, 1024: 16, 1280: 16}
"""Embed dim -> heads."""


def table(grid: tuple[int, int], width: int, *, columns_first: bool) -> Tensor:
    """(1, 1 + h * w, width) float32 from float64 arithmetic, zeros for the class token; the width divides by 4."""
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    places = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [place.flatten()[:, None] * omega for place in (places[::-1] if columns_first else places)]
    waves = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), waves])[None].float()


def origin(position: Tensor | None) -> str | None:
    """ "mae" or "mocov3" if a position embedding (1, 1 + h * w, width) is the one that it computes, else None."""
    if position is None or position.ndim != 3 or len(position) != 1 or position.shape[1] < 5:
        return None
    found = match(position[0, 1:]) if position[0, 0].abs().max() < 1e-2 else None
    return found[0] if found else None


def match(patches: Tensor) -> tuple[str, Grid] | None:
    """Whose positions (h * w, width) are, "mae" or "mocov3", and their grid; None if they are learned."""
    count, width = patches.shape
    if width % 4 or not width or not torch.allclose(patches[0].float(), _first(width), atol=1e-2):
        return None
    for rows in (rows for rows in range(2, count // 2 + 1) if count % rows == 0):
        grid = (rows, count // rows)
        for name, columns_first in (("mae", True), ("mocov3", False)):
            if torch.allclose(patches.float(), table(grid, width, columns_first=columns_first)[0, 1:], atol=1e-2):
                return name, grid
    return None


def _first(width: int) -> Tensor:
    """The position of the first patch, sines of zeros and cosines, which is the same for all grids."""
    return torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat_interleave(width // 4)


def facts(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """`num_heads` if the position embedding is MoCo v3's, else nothing."""
    position = state.get("pos_embed")
    if position is None or position.shape[-1] not in MOCO_HEADS or origin(position) != "mocov3":
        return {}
    return {"num_heads": MOCO_HEADS[position.shape[-1]]}
