"""One table on top: a row per encoder, a column per task, data set and protocol, with the metric runs are judged by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mae_transfer.results.comparable_runs import ComparableRuns, changes, comparable_runs
from mae_transfer.results.names import (
    INIT_ORDER,
    PRESET_NOTES,
    PRESETS,
    SIZE_ORDER,
    in_order,
    init_title,
    metric_title,
    size_title,
)
from mae_transfer.results.tables.by_size import data_notes
from mae_transfer.results.tables.described import TaskTables
from mae_transfer.results.tables.differences import Comparison, difference
from mae_transfer.results.tables.partial import PARTIAL
from mae_transfer.results.tables.table import MISSING, Cell, Table

NOTE = (
    "Rows are encoders, columns the main metric of each task and protocol that has runs, in mean ± standard deviation "
    "over seeds. Runs of unlike settings never share a column. † marks the best of a column where the 95 % interval of "
    "its difference to each other row leaves out zero. The mean rank is over all columns, among the rows that have "
    "every one."
)
BEST = " †"

Encoder = tuple[str, str, str]
"""Initialisation, backbone, weights."""


@dataclass(frozen=True)
class Scores:
    """A column: runs of one protocol, recipe and settings on one data set."""

    head: str
    metric: str
    better: str
    rows: Mapping[Encoder, ComparableRuns]
    task: str
    fingerprint: str
    """Of the data."""

    def sign(self) -> int:
        return -1 if self.better == "lower" else 1


def overviews(tasks: Sequence[TaskTables], comparison: Comparison) -> list[Table]:
    """The overview of each preset that has runs, full runs first."""
    tables = []
    for preset in PRESETS:
        notes: list[str] = []
        columns = [column for task in tasks for column in _columns(task, preset, notes)]
        if columns:
            kept = [task.runs[task.runs["preset"] == preset] for task in tasks]
            notes += data_notes(pd.concat([runs for runs in kept if len(runs)]))
            tables.append(_table(preset, _told_apart(columns), notes, comparison))
    return tables


def _told_apart(columns: Sequence[Scores]) -> list[Scores]:
    """Columns whose heads are the same with the name of their task or, within one, digits of their data's
    fingerprint."""
    found = list(columns)
    for own in (lambda column: f", {column.task}", lambda column: f" [{column.fingerprint[:8]}]"):
        of_head: dict[str, set[str]] = {}
        for column in found:
            of_head.setdefault(column.head, set()).add(own(column))
        found = [replace(c, head=c.head + own(c)) if len(of_head[c.head]) > 1 else c for c in found]
    return found


def _columns(task: TaskTables, preset: str, notes: list[str]) -> list[Scores]:
    """The columns of a task; `notes` gets a footnote for each that only its settings tell from an earlier one."""
    runs = task.runs[(task.runs["preset"] == preset) & task.runs["main"].astype(bool) & task.runs["value"].notna()]
    found: list[Scores] = []
    for (data, fingerprint, _, protocol), part in runs.groupby(["data", "data_fingerprint", "rank", "protocol"]):
        metric = part["metric"].iloc[0]
        part = part[part["metric"] == metric]
        title, better = part[["metric_title", "better"]].iloc[0]
        recipes = part["recipe"].nunique()
        for recipe, of_recipe in part.groupby("recipe"):
            what = " ".join(filter(None, (str(protocol), str(recipe) if recipes > 1 else "")))
            head = metric_title(f"{title}{f', {what}' if what else ''}: {data}", better)
            for own, rows in _by_settings(head, comparable_runs(of_recipe), notes):
                found.append(Scores(own, metric, better, rows, task.name, str(fingerprint)))
    return found


def _by_settings(
    head: str, groups: Sequence[ComparableRuns], notes: list[str]
) -> list[tuple[str, dict[Encoder, ComparableRuns]]]:
    """Head and rows of a column for each settings id, that of most encoders first."""
    of_settings: dict[str, list[ComparableRuns]] = {}
    for group in groups:
        of_settings.setdefault(group.settings_id, []).append(group)
    ordered = sorted(of_settings.values(), key=lambda of: (-len(of), min(group.first for group in of)))
    columns = []
    heads: dict[str, ComparableRuns] = {}
    for of in ordered:
        sizes = {group.size for group in of}
        own = f"{head}, {size_title(of[0].size)}" if len(ordered) > 1 and len(sizes) == 1 else head
        if of[0].protocol == PARTIAL:
            own += f", {of[0].blocks:g} blocks"
        if own in heads:
            notes.append(f"[{len(notes) + 1}] {own}: {_unlike(of[0], heads[own])}.")
            own += f" [{len(notes)}]"
        heads.setdefault(own, of[0])
        columns.append((own, {(g.init, g.backbone, g.weights): g for g in of}))
    return columns


def _unlike(group: ComparableRuns, first: ComparableRuns) -> str:
    """What tells the settings of a column from those of the first."""
    return changes(replace(group, init=""), first) or "other settings"


def _table(preset: str, columns: Sequence[Scores], notes: Sequence[str], comparison: Comparison) -> Table:
    labels = _labels({encoder: group for column in columns for encoder, group in column.rows.items()})
    best = [_best(column, comparison) for column in columns]
    ranks = _mean_ranks(columns)
    rows = []
    for encoder, label in labels.items():
        cells = [column.rows[encoder].cell(column.metric) if encoder in column.rows else MISSING for column in columns]
        cells = [
            replace(cell, text=cell.text + BEST) if first == encoder else cell
            for cell, first in zip(cells, best, strict=True)
        ]
        if ranks:
            cells.append(Cell(f"{ranks[encoder]:.1f}", ranks[encoder]) if encoder in ranks else MISSING)
        rows.append((label, tuple(cells)))
    head = ("encoder", *(column.head for column in columns), *(["mean rank"] if ranks else []))
    title, note = "Overview", NOTE
    if preset != "full":
        title, note = f"Overview, {preset}", f"{PRESET_NOTES[preset]} {NOTE}"
    return Table(title, note, head, tuple(rows), tuple(notes))


def _labels(encoders: Mapping[Encoder, ComparableRuns]) -> dict[Encoder, str]:
    """Encoder -> 'MAE, B', in the order of rows; with backbone and weights where the short names are the same."""
    size = {encoder: _size(group) for encoder, group in encoders.items()}
    inits = in_order({init for init, _, _ in encoders}, INIT_ORDER)
    sizes = in_order(set(size.values()), SIZE_ORDER)
    order = sorted(encoders, key=lambda e: (sizes.index(size[e]), inits.index(e[0]), e))
    short = {e: f"{init_title(e[0])}, {size_title(size[e])}" for e in order}
    named = {e: f"{short[e]} ({e[1]})" for e in order}
    full = {e: f"{short[e]} ({e[1]}, {e[2][:8]})" for e in order}
    found = {}
    for encoder in order:
        choices = [labels[encoder] for labels in (short, named) if _once(labels[encoder], labels)]
        found[encoder] = choices[0] if choices else full[encoder]
    return found


def _once(label: str, labels: Mapping[Encoder, str]) -> bool:
    return list(labels.values()).count(label) == 1


def _size(group: ComparableRuns) -> str:
    """The encoder's size, without the image size of the run."""
    letters = group.size.rstrip("0123456789")
    return letters if letters in SIZE_ORDER else group.size


def _best(column: Scores, comparison: Comparison) -> Encoder | None:
    """The encoder that is better than each other, each by an interval without zero; None where none is."""
    means = {encoder: group.cell(column.metric).value for encoder, group in column.rows.items()}
    first = max(means, key=lambda encoder: column.sign() * (means[encoder] or 0.0))
    others = [group for encoder, group in column.rows.items() if encoder != first]
    cells = [difference(column.rows[first], group, column.metric, comparison) for group in others]
    bounds = [cell.low if column.better != "lower" else cell.high for cell in cells]
    wins = [bound is not None and column.sign() * bound > 0 for bound in bounds]
    return first if wins and all(wins) else None


def _mean_ranks(columns: Sequence[Scores]) -> dict[Encoder, float]:
    """Encoder -> mean of its ranks, 1 the best, ties at their mean; empty under two columns or two complete rows."""
    complete = sorted(set.intersection(*(set(column.rows) for column in columns)))
    if len(columns) < 2 or len(complete) < 2:
        return {}
    scores = pd.DataFrame(
        [[-c.sign() * (c.rows[e].cell(c.metric).value or 0.0) for c in columns] for e in complete], index=complete
    )
    means = np.mean(scores.rank(axis=0).to_numpy(), axis=1)
    return dict(zip(complete, map(float, means), strict=True))
