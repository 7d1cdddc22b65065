"""BEiT's bias from a table of each block's own: of the weights (BEiT), or new (segmentation in MAE and BEiT)."""

import warnings
from typing import Any

import torch
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor, nn

from mae_transfer.backbones.checkpoints.report import LoadReport
from mae_transfer.backbones.grid import Grid, text
from mae_transfer.backbones.positions import tables
from mae_transfer.backbones.positions.bias_attention import attention
from mae_transfer.backbones.positions.position import Host, Position
from mae_transfer.backbones.positions.tables import TABLE
from mae_transfer.backbones.registry import Spec
from mae_transfer.errors import UserError


class PerBlockTables(Position):
    """Each block's attention has a parameter `rel_pos_table` for its window or for the grid of `img_size`.

    Tables of the weights are resized to it once, by BEiT's geometric interpolation (timm's); at other grids the global
    ones are resampled bicubically at every forward.
    """

    option = "per_block"
    has_tables = True

    @classmethod
    def in_weights(cls, spec: Spec) -> bool:
        return spec.rel_pos_tables

    @classmethod
    def new_tables(cls, attn: Any, grid: Grid, prefix: int) -> None:
        rows = tables.table_rows(grid, prefix)
        attn.register_parameter(TABLE, nn.Parameter(torch.zeros(rows, attn.num_heads)))

    def fit(self, encoder: Host, report: LoadReport) -> None:
        super().fit(encoder, report)
        if encoder.rel_pos is True:
            report.warnings.append("relative position tables differ by block, so that no blocks share one")
        native = encoder.native_grid
        for i, block in enumerate(encoder.vit.blocks):
            grid, name = encoder.grid_of_block(i), f"blocks.{i}.attn.{TABLE}"
            if not self.in_weights(encoder.spec):
                self.new_tables(block.attn, grid, self.prefix)
                report.new[name] = "zeros"
                continue
            table, rows = getattr(block.attn, TABLE).detach(), tables.table_rows(grid, self.prefix)
            if len(table) != rows:
                resized = resize_table(i, table, native, grid)
                # without prefix tokens their entries, which come last, go
                block.attn.register_parameter(TABLE, nn.Parameter(resized[:rows].clone()))
                if grid != native:
                    report.resized[name] = f"{text(native)} -> {text(grid)}, geometric"

    def attend(self, attn: Any, x: Tensor, grid: Grid, windowed: bool, shared: Tensor | None) -> Tensor:
        table = getattr(attn, TABLE)
        if not windowed and grid != self.global_grid:
            table = tables.resample(table, self.global_grid, grid, self.prefix)
        return attention(attn, x, table, grid, self.prefix)


def have_one_table(vit: Any) -> bool:
    """Whether the tables of all blocks are equal."""
    first, *others = (getattr(block.attn, TABLE) for block in vit.blocks)
    return all(torch.equal(first, table) for table in others)


def resize_table(block: int, table: Tensor, native: Grid, grid: Grid) -> Tensor:
    """A table of the native grid, with entries for prefix tokens, at another grid."""
    if len(table) != tables.table_rows(native, prefix=1):
        raise UserError(
            f"relative position table of block {block} has {len(table)} entries, made for another grid than "
            f"{text(grid)}; pass the window_size, num_global_blocks and image size of the run it is from."
        )
    if grid == native:
        return table
    shape = (tables.table_rows(grid, prefix=1), table.shape[1])
    with warnings.catch_warnings():  # torch's notes on timm's indexing; the values are tested
        warnings.simplefilter("ignore", UserWarning)
        return resize_rel_pos_bias_table(table, new_window_size=grid, new_bias_shape=shape)
