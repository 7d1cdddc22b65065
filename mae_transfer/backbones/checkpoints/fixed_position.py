"""The position embeddings that MoCo v3 and MAE compute and freeze, by which their weights are told from others.

Both are sines and cosines of the two coordinates: MoCo v3's (facebookresearch/moco-v3 `vits.py`) of the row, then of
the column; MAE's (facebookresearch/mae `util/pos_embed.py`) of the column first. MoCo v3's ViT-S has 12 heads instead
of the usual 6, and no tensor's shape shows that.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

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
    """ "mae" or "mocov3" if a position embedding is the one that it computes, else None."""
    if position is None or position.ndim != 3 or position.shape[2] % 4:
        return None
    side, width = round(max(position.shape[1] - 1, 0) ** 0.5), position.shape[2]
    if side < 2 or position.shape != (1, 1 + side * side, width):
        return None
    for name, columns_first in (("mae", True), ("mocov3", False)):
        if torch.allclose(position.float(), table((side, side), width, columns_first=columns_first), atol=1e-2):
            return name
    return None


def facts(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """`num_heads` if the position embedding is MoCo v3's, else nothing."""
    position = state.get("pos_embed")
    if position is None or position.shape[-1] not in MOCO_HEADS or origin(position) != "mocov3":
        return {}
    return {"num_heads": MOCO_HEADS[position.shape[-1]]}
