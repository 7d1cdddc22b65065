"""The blocks of a task with protocols: those of a data set in one table, partial fine-tuning, groups of metrics.

A row is a protocol and an initialisation, a column a metric and an encoder's size (with the image size where it is not
224 pixels). Published numbers stand in the tables of full runs on the whole benchmark. The blind row is the accuracy
of always naming the commonest class of the training set, or of chance where a record does not hold that.
"""

from collections.abc import Mapping

import pandas as pd

from mae_transfer.results.names import PRESET_NOTES, PRESETS
from mae_transfer.results.tables.block import Block
from mae_transfer.results.tables.by_size import Section, block_by_size
from mae_transfer.results.tables.described import TaskTables
from mae_transfer.results.tables.partial import PARTIAL, partial_block
from mae_transfer.results.tables.table import Cell, number

BLIND = "blind (the commonest class)"
CHANCE = "chance (one of the classes)"
FIRST = "protocol, initialisation"


def protocol_blocks(task: TaskTables, published: pd.DataFrame) -> list[Block]:
    """The blocks of a task that has a run: the benchmark, then other data sets and presets."""
    runs, found = task.runs[task.runs["metric_title"].notna()], list[Block]()
    if runs.empty:
        return []
    whole = task.on_benchmark(runs)
    if whole.any():
        found += _blocks_of(task, task.benchmark, "", runs[whole], published)
    elif task.benchmark:
        title = f"{task.benchmark} (no full run recorded yet)"
        found += _blocks_of(task, title, "", runs.iloc[:0], published)
    for preset in PRESETS:
        others = runs[(runs["preset"] == preset) & ~whole]
        for (data, _), group in others.groupby(["data", "data_fingerprint"], sort=True):
            title = f"{group['heading'].iloc[0]}, {preset}: {data}"
            found += _blocks_of(task, title, PRESET_NOTES[preset], group, published.iloc[:0])
    return found


def _blocks_of(task: TaskTables, title: str, note: str, runs: pd.DataFrame, quoted: pd.DataFrame) -> list[Block]:
    """The blocks of one data set: the first metrics, then partial fine-tuning and groups of metrics that have runs."""
    partial, quoted_partial = runs["protocol"] == PARTIAL, quoted["protocol"] == PARTIAL
    metrics, main = task.metrics(""), task.main
    shown = metrics if len(runs) or main not in metrics else {main: metrics[main]}
    found = []
    rest = runs[~partial & runs["metric"].isin(shown)]
    first = _sections(task, rest, quoted[~quoted_partial], shown)
    if first:
        lead = _blind_row(runs)
        found.append(block_by_size(title, note, first, shown, task.controls, first=FIRST, lead=lead))
    if partial.any() or quoted_partial.any():
        found.append(
            partial_block(f"{title}, partial fine-tuning", note, runs, quoted[quoted_partial], main, task.controls)
        )
    for group in task.groups():
        of_group = task.metrics(group)
        own = runs[runs["metric"].isin(of_group) & runs["value"].notna()]
        if len(own) or quoted["metric"].isin(of_group).any():
            sections = _sections(task, own, quoted, of_group)
            name = f"{title}, {group}"
            found.append(block_by_size(name, note, sections, of_group, task.controls, first=FIRST, costs=False))
    return found


def _sections(
    task: TaskTables, runs: pd.DataFrame, quoted: pd.DataFrame, metrics: Mapping[str, tuple[str, str]]
) -> list[Section]:
    """A section for each protocol and recipe; published numbers stand in the first of their protocol."""
    quoted, found = quoted[quoted["metric"].isin(metrics)], []
    for protocol, frozen in task.protocols(runs, quoted):
        own, published = runs[runs["protocol"] == protocol], quoted[quoted["protocol"] == protocol]
        recipes = sorted(own["recipe"].unique())
        for place, recipe in enumerate(recipes or [""]):
            found.append(
                Section(
                    own[own["recipe"] == recipe],
                    published.iloc[: None if place == 0 else 0],
                    f"{protocol}, ",
                    f" ({recipe})" if len(recipes) > 1 else "",
                    frozen,
                )
            )
    return found


def _blind_row(runs: pd.DataFrame) -> list[tuple[str, Cell]]:
    """The commonest class, or chance; a range where the shots of the draws differ."""
    for label, values in ((BLIND, runs["blind"]), (CHANCE, 100 / runs["classes"])):
        found = sorted(values.dropna().unique())
        if len(found) == 1:
            return [(label, number(found[0]))]
        if found:
            return [(label, Cell(f"{found[0]:.1f} to {found[-1]:.1f}"))]
    return []
