"""The blocks of a dense task: a table for each recipe, data set and preset; then one with a column for each protocol.

The first tables are of the task's first protocol, which runs do not name. The others stand in the second kind of table,
beside the first where they share its data.
"""

import pandas as pd

from mae_transfer.results.names import PRESET_NOTES, PRESETS
from mae_transfer.results.tables.block import Block
from mae_transfer.results.tables.by_size import Section, block_by_size
from mae_transfer.results.tables.described import TaskTables
from mae_transfer.results.tables.protocol_columns import protocol_columns
from mae_transfer.results.tables.scores import blind_score
from mae_transfer.results.tables.table import number

BLIND = "blind (no look at the images)"


def dense_blocks(task: TaskTables, published: pd.DataFrame) -> list[Block]:
    """Each recipe on the benchmark, then other data sets and presets; then the same of each group of metrics.

    The published numbers of a recipe stand in the table of its full runs on the whole benchmark, which is there even
    while no run is.
    """
    found: list[Block] = []
    for of_metrics in ("", *task.groups()):
        if task.metrics(of_metrics):
            found += _blocks_of(task, of_metrics, published, costs=not found)
    return found


def _blocks_of(task: TaskTables, of_metrics: str, published: pd.DataFrame, *, costs: bool) -> list[Block]:
    shown, metrics, found = task.shown(of_metrics), task.metrics(of_metrics), list[Block]()
    everything = published[published["metric"].isin(metrics)]
    if of_metrics:
        shown = shown[shown["value"].notna()]
    runs, published = shown[shown["protocol"] == ""], everything[everything["protocol"] == ""]
    ending = f", {of_metrics}" if of_metrics else ""

    def block(title: str, note: str, group: pd.DataFrame, quoted: pd.DataFrame) -> Block:
        blind = None if of_metrics else blind_score(group)
        lead = [] if blind is None else [(BLIND, number(blind))]
        sections = [Section(group, quoted)]
        return block_by_size(f"{title}{ending}", note, sections, metrics, task.controls, lead=lead, costs=costs)

    whole = task.on_benchmark(runs)
    for recipe, group in runs[whole].groupby("recipe", sort=True):
        quoted = published[published["recipe"].isin(["", recipe])]
        found.append(block(f"{task.title}: {task.benchmark}, recipe {recipe}", "", group, quoted))
    for recipe, quoted in published.groupby("recipe", sort=True):
        if recipe in set(runs[whole]["recipe"]) or (not recipe and whole.any()):
            continue
        which = f", recipe {recipe!s}" if recipe else ""
        title = f"{task.title}: {task.benchmark}{which} (no full run recorded yet)"
        found.append(block(title, "", runs.iloc[:0], quoted))
    for preset in PRESETS:
        others = runs[(runs["preset"] == preset) & ~whole]
        for (data, _, recipe), group in others.groupby(["data", "data_fingerprint", "recipe"], sort=True):
            title = f"{group['heading'].iloc[0]}, {preset}: {data}, recipe {recipe}"
            found.append(block(title, PRESET_NOTES[preset], group, published.iloc[:0]))
    others = everything[everything["protocol"] != ""]
    if len(others) and not (task.on_benchmark(shown) & (shown["protocol"] != "")).any():
        title = f"{task.title}: {task.benchmark}, by protocol{ending} (no full run recorded yet)"
        found.append(protocol_columns(title, "", shown.iloc[:0], others, metrics, task.controls))
    for preset in PRESETS:
        of_preset = shown[shown["preset"] == preset]
        for (data, _), group in of_preset.groupby(["data", "data_fingerprint"], sort=True):
            if (group["protocol"] != "").any():
                on_benchmark = bool(task.on_benchmark(group).all())
                heading = group["heading"].iloc[0]
                title = f"{heading}: {data}" if on_benchmark else f"{heading}, {preset}: {data}"
                quoted = everything.iloc[: None if on_benchmark else 0]
                note = "" if on_benchmark else PRESET_NOTES[preset]
                found.append(
                    protocol_columns(f"{title}, by protocol{ending}", note, group, quoted, metrics, task.controls)
                )
    return found
