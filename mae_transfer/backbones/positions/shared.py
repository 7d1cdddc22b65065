"""BEiT's bias from two tables: one that all windowed blocks share, one for all global blocks (Li et al. 3.1(2))."""

from typing import Any

import torch
from torch import Tensor, nn

from mae_transfer.backbones.checkpoints.report import LoadReport
from mae_transfer.backbones.grid import Grid, text
from mae_transfer.backbones.positions import tables
from mae_transfer.backbones.positions.bias_attention import attention, bias_mask, runs_in_pieces
from mae_transfer.backbones.positions.per_block import resize_table
from mae_transfer.backbones.positions.position import Host, OfForward, Position, misfit
from mae_transfer.backbones.positions.tables import TABLE


class SharedTables(Position):
    """The tables are parameters of the encoder, `rel_pos_window` and `rel_pos_global`, each None where no block that is
    run needs it. They start at zero, as the run left them that the weights are from, or as the one table that all
    blocks of BEiT have, which is resized to both grids as tables of each block are (`per_block.py`)."""

    option = True
    has_tables = True

    def fit(self, encoder: Host, report: LoadReport) -> None:
        brought = self._take_from_blocks(encoder, report)
        is_global = [i in encoder.global_blocks for i in range(encoder.taps[-1] + 1)]
        window = (self.window_size, self.window_size)
        for name, grid, needed in (
            ("rel_pos_window", window, not all(is_global)),
            ("rel_pos_global", self.global_grid, any(is_global)),
        ):
            rows = tables.table_rows(grid, self.prefix)
            table = nn.Parameter(torch.zeros(rows, encoder.num_heads)) if needed else None
            encoder.register_parameter(name, table)
            trained = report.shared_tables.get(name)
            if trained is not None:
                if table is None or table.shape != trained.shape:
                    raise misfit(report, name, trained, "none" if table is None else str(tuple(table.shape)))
                table.data.copy_(trained)
                report.loaded.append(name)
            elif table is not None and brought is not None and brought.any():
                table.data.copy_(resize_table(0, brought, encoder.native_grid, grid)[:rows])
                report.loaded.append(name)
                if grid != encoder.native_grid:
                    report.resized[name] = f"{text(encoder.native_grid)} -> {text(grid)}, geometric"
            elif table is not None:
                report.new[name] = f"{tuple(table.shape)}, zeros"

    @staticmethod
    def _take_from_blocks(encoder: Host, report: LoadReport) -> Tensor | None:
        """The one table that the blocks of the weights have, which is taken off them; None if they have none."""
        table = None
        for i, block in enumerate(encoder.vit.blocks):
            if hasattr(block.attn, TABLE):
                table = getattr(block.attn, TABLE).detach()
                delattr(block.attn, TABLE)
                if (name := f"blocks.{i}.attn.{TABLE}") in report.loaded:
                    report.loaded.remove(name)
        return table

    def of_forward(self, encoder: Host, x: Tensor, grid: Grid) -> OfForward:
        """On a CPU the table (rows, heads) of the grid; elsewhere its bias (heads, N, N), one mask for the fused
        attention of all blocks."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype

        def made(table: Tensor | None, own: Grid, wanted: Grid) -> Tensor | None:
            if table is None:
                return None
            of_grid = table if own == wanted else tables.resample(table, own, wanted, self.prefix)
            return of_grid if runs_in_pieces(x.device) else bias_mask(of_grid, wanted, self.prefix, dtype)

        window = (self.window_size, self.window_size)
        return (
            made(encoder.rel_pos_window, window, window),
            made(encoder.rel_pos_global, self.global_grid, grid),
        )

    def attend(self, attn: Any, x: Tensor, grid: Grid, windowed: bool, shared: Tensor | None) -> Tensor:
        if shared is not None and shared.ndim == 2:
            return attention(attn, x, shared, grid, self.prefix)
        return attn(x, attn_mask=shared)

    def facts(self) -> dict[str, Any]:
        """Without windows the one table is read as every block's own (`checkpoints/own.py:spread_table`); saying so
        finds out a file that lacks it."""
        return {} if self.window_size else {"rel_pos_tables": True}
