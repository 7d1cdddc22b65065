"""The position embedding that MoCo v3 computes and freezes, by which its weights are told from others.

facebookresearch/moco-v3 `vits.py`: sines and cosines of the row, then of the column. MAE's has the column first. Its
ViT-S has 12 heads instead of the usual 6, and no tensor's shape shows that.
"""

import torch
from torch import Tensor

HEADS = {384: 12, 768: 12, 1024: 16, 1280: 16}


def table(side: int, width: int) -> Tensor:
    """(1, 1 + side * side, width) float32, zeros for the class token."""
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float32) / (width // 4))
    row, column = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    angles = [place.flatten()[:, None] * omega for place in (row, column)]
    grid = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, width), grid])[None]


def facts(position: Tensor | None) -> dict[str, object]:
    """`num_heads` if a position embedding is MoCo v3's, else nothing."""
    if position is None or position.ndim != 3 or position.shape[2] not in HEADS:
        return {}
    side = round(max(position.shape[1] - 1, 0) ** 0.5)
    if side < 2 or position.shape != (1, 1 + side * side, position.shape[2]):
        return {}
    same = torch.allclose(position.float(), table(side, position.shape[2]), atol=1e-2)
    return {"num_heads": HEADS[position.shape[2]]} if same else {}
