"""Layer by layer: the main metric of a frozen protocol at each block of an encoder."""

from collections.abc import Sequence

import pandas as pd

from mae_transfer.results.comparable_runs import ComparableRuns, comparable_runs
from mae_transfer.results.layers import sweeps
from mae_transfer.results.names import PRESET_NOTES, PRESETS, metric_title
from mae_transfer.results.tables.described import TaskTables
from mae_transfer.results.tables.overview import encoder_labels
from mae_transfer.results.tables.table import MISSING, Table

NOTE = (
    "Rows are encoders, columns the block, numbered from 0, whose features alone a frozen protocol reads. The best "
    "block is chosen by eye on val images here: it flatters."
)


def layer_tables(tasks: Sequence[TaskTables]) -> list[Table]:
    """A table for each set of runs that differ in the encoder and the layer alone."""
    found = []
    for preset in PRESETS:
        for task in tasks:
            runs = task.runs[(task.runs["preset"] == preset) & task.runs["main"].eq(True) & task.runs["value"].notna()]
            runs = runs.assign(sweep=sweeps(runs))
            keys = ["data", "data_fingerprint", "rank", "protocol", "recipe", "sweep"]
            note = NOTE if preset == "full" else f"{PRESET_NOTES[preset]} {NOTE}"
            titles: list[str] = []
            for (data, _, _, protocol, recipe, _), part in runs.groupby(keys, sort=True):
                title = f"Layer by layer{'' if preset == 'full' else f', {preset}'}: "
                titles.append(f"{title}{part['heading'].iloc[0]}, {protocol}, recipe {recipe}: {data}")
                again = titles.count(titles[-1])
                found.append(_table(titles[-1] + (f" ({again})" if again > 1 else ""), note, part))
    return found


def _table(title: str, note: str, runs: pd.DataFrame) -> Table:
    first = runs.iloc[0]
    layers = sorted({int(layer) for layer in runs["layer"]})
    rows: dict[tuple[str, str, str], dict[int, ComparableRuns]] = {}
    for layer in layers:
        at = runs[(runs["layer"] == layer) & (runs["metric"] == first["metric"])]
        for group in comparable_runs(at):
            rows.setdefault((group.init, group.backbone, group.weights), {})[layer] = group
    labels = encoder_labels({encoder: next(iter(groups.values())) for encoder, groups in rows.items()})
    metric = str(first["metric"])
    cells = {e: tuple(rows[e][k].cell(metric) if k in rows[e] else MISSING for k in layers) for e in labels}
    head = f"encoder, {metric_title(str(first['metric_title']), str(first['better']))} at block"
    return Table(title, note, (head, *map(str, layers)), tuple((labels[e], cells[e]) for e in labels))
