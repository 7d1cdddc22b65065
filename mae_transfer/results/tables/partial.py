"""The block of partial fine-tuning (MAE Figure 9): columns are trained blocks, the linear probe stands at 0."""

from collections.abc import Sequence

import pandas as pd

from mae_transfer.results.comparable_runs import ComparableRuns, changes, comparable_runs
from mae_transfer.results.names import INIT_ORDER, in_order, init_title, size_title, sizes_in_order
from mae_transfer.results.tables.block import Block, Column, Quoted, Row
from mae_transfer.results.tables.table import number
from mae_transfer.run_folder.settings import settings_id

PARTIAL, LINEAR, LINEAR_RECIPE = "partial", "linear", "linear_mae"
"""The protocols of Figure 9, and the recipe of its linear probe."""


def partial_block(
    title: str, note: str, runs: pd.DataFrame, quoted: pd.DataFrame, metric: str, controls: Sequence[str]
) -> Block:
    """The main metric by the number of blocks."""
    linear = runs[(runs["protocol"] == LINEAR) & (runs["recipe"] == LINEAR_RECIPE)].assign(blocks=0.0)
    own = pd.concat([runs[runs["protocol"] == PARTIAL], linear])
    own = own[own["metric"] == metric].sort_values("run_id", kind="stable")
    columns = tuple(Column(f"{b:g}", metric, float(b)) for b in sorted({*own["blocks"].dropna(), *quoted["blocks"]}))
    sections, footnotes = [], list[str]()
    for size in sizes_in_order({*own["size"], *quoted["size"]}):
        groups = comparable_runs(own[own["size"] == size])
        quoted_size = quoted[quoted["size"] == size]
        rows: list[Row | Quoted] = []
        for init in in_order({*(g.init for g in groups), *quoted_size["init"]}, INIT_ORDER):
            name = f"{init_title(init)} {size_title(size)}"
            for source, group in quoted_size[quoted_size["init"] == init].groupby("source", sort=False):
                found = dict(zip(group["blocks"].astype(float), group["value"], strict=True))
                cells = {column: number(found[float(column.place)]) for column in columns if column.place in found}
                rows.append(Quoted(f"{name}, published ({source})", cells))
            rows += _partial_rows(name, [g for g in groups if g.init == init], footnotes)
        sections.append(tuple(rows))
    return Block(
        *(title, note, "initialisation, size", columns, tuple(sections), tuple(controls)),
        *(lambda blocks: f"{blocks:g} blocks", tuple(footnotes)),
    )


def _partial_rows(name: str, groups: Sequence[ComparableRuns], notes: list[str]) -> list[Row]:
    """A row for the runs that differ in the number of blocks alone, in the order of their first runs.

    The linear probe of the same weights stands at 0 blocks in each row, unless there are unlike ones: then those have
    rows of their own. Every row but the first has a note that names what differs from the first.
    """
    sets: dict[tuple[str, ...], list[ComparableRuns]] = {}
    probes: dict[tuple[str, str], list[ComparableRuns]] = {}
    for group in sorted(groups, key=lambda g: g.first):
        if group.protocol == LINEAR:
            probes.setdefault((group.backbone, group.weights), []).append(group)
        else:
            like = settings_id({key: value for key, value in group.settings.items() if key != "model.blocks"})
            sets.setdefault((group.backbone, group.weights, like), []).append(group)
    rows = [{group.blocks: group for group in of_set} for of_set in sets.values()]
    for weights, of_weights in probes.items():
        same = [row for key, row in zip(sets, rows, strict=False) if key[:2] == weights]
        if same and len(of_weights) == 1:
            for row in same:
                row[0.0] = of_weights[0]
        else:
            rows += [{0.0: probe} for probe in of_weights]
    found: list[Row] = []
    for row in rows:
        unlike = changes(_first(row), _first(rows[0]), ignore=("model.blocks",))
        if unlike:
            notes.append(f"[{len(notes) + 1}] unlike the first line of {name} in {unlike}.")
        found.append(Row(f"{name} [{len(notes)}]" if unlike else name, dict(sorted(row.items()))))
    return found


def _first(row: dict[float, ComparableRuns]) -> ComparableRuns:
    """Of partial fine-tuning where there is any."""
    return min(row.values(), key=lambda group: (group.protocol == LINEAR, group.first))
