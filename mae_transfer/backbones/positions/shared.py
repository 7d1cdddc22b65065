"""BEiT's bias from two tables: one that all windowed blocks share, one for all global blocks (Li et al. 3.1(2))."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mae_transfer.backbones.checkpoints.report import LoadReport
from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.positions import tables
from mae_transfer.backbones.positions.bias_attention import attention
from mae_transfer.backbones.positions.position import OfForward, Position, misfit

if TYPE_CHECKING:
    from mae_transfer.backbones.vit import ViTEncoder


class SharedTables(Position):
    """The tables are parameters of the encoder, `rel_pos_window` and `rel_pos_global`, each None where no block that is
    run needs it. They start at zero, or as the run left them that the weights are from."""

    option = True
    in_attention = True

    def fit(self, encoder: "ViTEncoder", report: LoadReport) -> None:
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
            elif table is not None:
                report.new[name] = f"{tuple(table.shape)}, zeros"

    def of_forward(self, encoder: "ViTEncoder", x: Tensor, grid: Grid) -> OfForward:
        """On a CPU the table (rows, heads) of the grid; elsewhere the bias (heads, N, N) that is gathered from it, one
        mask for the fused attention of all blocks."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype

        def made(table: Tensor | None, own: Grid, wanted: Grid) -> Tensor | None:
            if table is None:
                return None
            if kind != "cpu":
                return tables.bias(table, own, wanted, self.prefix, dtype)
            return table if own == wanted else tables.resample(table, own, wanted, self.prefix)

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
