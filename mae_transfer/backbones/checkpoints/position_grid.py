"""The grid of patches, height and width, that a position embedding or the relative position tables are for.

Their shapes tell the number of patches alone: 144 are 12 x 12, and as well 8 x 18. A configuration beside the file says
which, or the values do: a frozen sin-cos embedding is one grid's only, and in a learned one neighbours in a row are
alike while the end of a row and the start of the next are not.
"""

from collections.abc import Iterable

from torch import Tensor

from mae_transfer.backbones.checkpoints import fixed_position
from mae_transfer.backbones.checkpoints.audit import shown
from mae_transfer.backbones.checkpoints.layout import Converted, common
from mae_transfer.backbones.grid import Grid, pair, text
from mae_transfer.backbones.positions.tables import TABLE, table_rows
from mae_transfer.errors import UserError

_CLEAR = 2.0
"""How many times as far apart tokens must be across the ends of rows as within rows, to tell the length of rows."""


def native_grid(
    converted: Converted,
    prefix: int,
    *,
    stated: Grid | None = None,
    hints: Iterable[Grid | None] = (),
    usual: Grid | None = None,
    asked: Grid | None = None,
) -> Grid | None:
    """The grid of a file's positions; None if it has none, or none of this kind, which the audit then says.

    `prefix`: rows of the position embedding before the patches' own. `stated`: what the configuration says they are
    for; `hints`: grids that are likely; `usual`: the backbone's; `asked`: the one that the encoder will run at. Raises
    UserError if the file has another number of patches than is stated.
    """
    cells, rows = _cells(converted, prefix), _rows(converted)
    if not cells and not rows:
        return None

    def fits(grid: Grid) -> bool:
        return grid[0] * grid[1] == cells if cells else rows in (table_rows(grid, 0), table_rows(grid, 1))

    name = shown(converted.original("pos_embed"))
    if stated is not None and not fits(stated):
        has = f"{name} has {cells} positions" if cells else f"its tables of relative positions have {rows} rows"
        raise UserError(
            f"{has}, its config.json states a grid of {text(stated)}; restore the config.json of these weights."
        )
    position = converted.tensors.get("pos_embed")
    seen = by_values(position[0, prefix:]) if position is not None and cells and len(position) else None
    side = round((cells or _table_cells(rows)) ** 0.5)
    known = [grid for grid in (stated, *hints, seen) if grid is not None and fits(grid)]
    guesses = [grid for grid in (usual, (side, side), asked) if grid is not None and fits(grid)]
    if not known and not guesses:
        return None
    grid = (known + guesses)[0]
    if not known and asked in guesses and asked != grid:
        converted.warnings.append(
            f"{name}: {cells} positions are read as {text(grid)}, not {text(guesses[-1])}, which are as many; if that "
            "is wrong, say image_size in a config.json beside the file"
        )
    return grid


def patches(size: int | Grid | None, patch: int) -> Grid | None:
    """The grid of an image of this size in pixels; None if no size or patch is known."""
    if size is None or not patch:
        return None
    height, width = pair(size)
    return height // patch, width // patch


def by_values(positions: Tensor) -> Grid | None:
    """The grid that the values of a position embedding (h * w, C) show, None if they show none.

    For rows of the right length the step from the end of a row to the next is far longer than one within a row.
    """
    count = len(positions)
    fixed = fixed_position.match(positions)
    if fixed is not None:
        return fixed[1]
    steps = (positions[1:].float() - positions[:-1].float()).square().sum(1)
    contrasts = {}
    for width in (width for width in range(2, count // 2 + 1) if count % width == 0):
        ends = steps[width - 1 :: width]
        within = (steps.sum() - ends.sum()) / (len(steps) - len(ends))
        contrasts[count // width, width] = float(ends.mean() / within) if within > 0 else 0.0
    best = max(contrasts, key=lambda grid: contrasts[grid], default=None)
    if best is None or best[0] == best[1] or contrasts[best] < _CLEAR:
        return None
    side = round(count**0.5)
    return best if contrasts[best] > _CLEAR * contrasts.get((side, side), 0.0) else None


def _cells(converted: Converted, prefix: int) -> int:
    position = converted.tensors.get("pos_embed")
    return max(position.shape[1] - prefix, 0) if position is not None and position.ndim == 3 else 0


def _rows(converted: Converted) -> int:
    return common(len(tensor) for key, tensor in converted.tensors.items() if key.endswith(TABLE) and tensor.ndim)


def _table_cells(rows: int) -> int:
    """Tokens of the square grid of a table with this many rows, 0 if there is none."""
    side = round(max(rows - 3, 0) ** 0.5)
    return ((side + 1) // 2) ** 2 if side % 2 and side * side == rows - 3 else 0
