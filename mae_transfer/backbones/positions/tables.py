"""BEiT's relative position bias: a table of offsets, an additive bias on the attention logits.

A table is ((2h - 1)(2w - 1) [+ 3], heads) for a grid of h x w tokens, offsets in row-major order; the last three
entries, present when prefix tokens are kept, are prefix -> patch, patch -> prefix, prefix -> prefix (unilm
`beit/modeling_finetune.py`; the layout of timm's Beit). All prefix tokens share them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_transfer.backbones.grid import Grid

TABLE = "rel_pos_table"
"""Name of a block's own table, a parameter of its attention."""
DECOMPOSED_TABLES = ("rel_pos_h", "rel_pos_w")
"""Names of a block's two tables of decomposed positions, parameters of its attention, as in detectron2."""
PREFIX_ENTRIES = 3
"""Entries of a table for pairs with prefix tokens: prefix -> patch, patch -> prefix, prefix -> prefix."""


def table_rows(grid: Grid, prefix: int) -> int:
    """Rows of the table of a grid with `prefix` prefix tokens."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + (PREFIX_ENTRIES if prefix else 0)


def resample(table: Tensor, old: Grid, new: Grid, prefix: int) -> Tensor:
    """The table of another grid: offsets bicubic (align_corners=False), the prefix entries as they are."""
    offsets = table[: table_rows(old, 0)].to(torch.promote_types(table.dtype, torch.float32))
    size = (2 * new[0] - 1, 2 * new[1] - 1)
    maps = offsets.T.reshape(1, -1, 2 * old[0] - 1, 2 * old[1] - 1)
    offsets = F.interpolate(maps, size=size, mode="bicubic", align_corners=False)[0].flatten(1).T
    return torch.cat([offsets, table[-PREFIX_ENTRIES:]]) if prefix else offsets
