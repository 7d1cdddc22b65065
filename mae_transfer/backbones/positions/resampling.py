"""Resampling of an absolute position embedding to another grid, by the rule of the code that its weights are from.

- `bicubic`: to the size, align_corners=False, no antialiasing: MAE, detectron2's `get_abs_pos`, transformers.
- `offset`: by scale factors of a side 0.1 longer, which move all samples: DINO, iBOT and DINOv2 without registers
  (facebookresearch/dino `vision_transformer.py`, facebookresearch/dinov2 `models/vision_transformer.py`,
  `interpolate_pos_encoding`; `hub/backbones.py`: interpolate_offset 0.1).
- `antialias`: to the size, with antialiasing: DINOv2 with registers (the same: interpolate_antialias, offset 0),
  transformers' Dinov2WithRegisters.
- `bilinear`: to the size, align_corners=False: Perception Encoder (facebookresearch/perception_models
  `core/vision_encoder/pe.py`, `_sample_abs_posemb`).
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mae_transfer.backbones.grid import Grid

RULES = {
    "bicubic": "bicubic",
    "offset": "bicubic with offset 0.1",
    "antialias": "bicubic with antialiasing",
    "bilinear": "bilinear",
}
"""`Spec.pos_resampling` -> its words in a report."""
_OFFSET = 0.1


def resample(maps: Tensor, grid: Grid, rule: str) -> Tensor:
    """Positions (1, C, h, w) as (1, C, *grid), by one of RULES."""
    options: dict[str, Any] = {"size": grid}
    if rule == "offset":
        sides = zip(grid, maps.shape[2:], strict=True)
        options = {"scale_factor": tuple((new + _OFFSET) / old for new, old in sides)}
    mode = "bilinear" if rule == "bilinear" else "bicubic"
    return F.interpolate(maps, mode=mode, align_corners=False, antialias=rule == "antialias", **options)
