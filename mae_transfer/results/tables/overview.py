"""One table on top: a row per encoder, a column per task, data set and protocol, with the metric runs are judged by."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mae_transfer.results.comparable_runs import ComparableRuns, changes
from mae_transfer.results.names import (
    INIT_ORDER,
    PRESET_NOTES,
    PRESETS,
    SIZE_ORDER,
    in_order,
    init_title,
    size_title,
)
from mae_transfer.results.tables.ablations import pretrained_by_mae, standard
from mae_transfer.results.tables.agreement import TOO_FEW, agreement_table
from mae_transfer.results.tables.by_size import data_notes
from mae_transfer.results.tables.described import TaskTables
from mae_transfer.results.tables.differences import Comparison, difference
from mae_transfer.results.tables.scores import Encoder, Scores, main_columns
from mae_transfer.results.tables.table import MISSING, Cell, Table, number

NOTE = (
    "Rows are encoders, columns the main metric of each task and protocol that has runs, in mean ± standard deviation "
    "over seeds. Runs of unlike settings never share a column. † marks the best of a column where the 95 % interval of "
    "its difference to each other row leaves out zero. Blind is what is scored without a look at the images: the "
    "commonest class everywhere, or one mean box. The mean rank is over all columns, among the rows that have "
    "every one."
)
BEST = " †"


def overviews(tasks: Sequence[TaskTables], comparison: Comparison) -> list[Table]:
    """The overview of each preset that has runs, full runs first; each is followed by its rank agreement."""
    tables: list[Table] = []
    for preset in PRESETS:
        columns, notes = main_columns(tasks, preset)
        if columns:
            kept = [task.runs[task.runs["preset"] == preset] for task in tasks]
            notes += data_notes(pd.concat([runs for runs in kept if len(runs)]))
            agreement = agreement_table(preset, columns)
            if agreement is None and len(columns) > 1:
                notes.append(TOO_FEW)
            tables += [_table(preset, columns, notes, comparison), *([agreement] if agreement else [])]
    return tables


def _table(preset: str, columns: Sequence[Scores], notes: Sequence[str], comparison: Comparison) -> Table:
    labels = encoder_labels({encoder: group for column in columns for encoder, group in column.rows.items()})
    best = [_best(column, comparison) for column in columns]
    ranks = _mean_ranks(columns)
    rows = []
    if any(column.blind is not None for column in columns):
        known = [MISSING if column.blind is None else number(column.blind) for column in columns]
        rows.append(("blind", (*known, *([MISSING] if ranks else []))))
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


def encoder_labels(encoders: Mapping[Encoder, ComparableRuns]) -> dict[Encoder, str]:
    """Encoder -> 'MAE, B', in the order of rows; with what tells them apart where the short names are the same.

    That is the backbone, else what is unlike in the pre-training to the standard one, else digits of the weights.
    """
    size = {encoder: _size(group) for encoder, group in encoders.items()}
    inits = in_order({init for init, _, _ in encoders}, INIT_ORDER)
    sizes = in_order(set(size.values()), SIZE_ORDER)
    order = sorted(encoders, key=lambda e: (sizes.index(size[e]), inits.index(e[0]), e))
    short = {e: f"{init_title(e[0])}, {size_title(size[e])}" for e in order}
    named = {e: f"{short[e]} ({e[1]})" for e in order}
    trained = _by_pretraining(short, encoders)
    full = {e: f"{short[e]} ({e[1]}, {e[2][:8]})" for e in order}
    found = {}
    for encoder in order:
        choices = [labels[encoder] for labels in (short, named, trained) if _once(labels[encoder], labels)]
        found[encoder] = choices[0] if choices else full[encoder]
    return found


def _by_pretraining(short: Mapping[Encoder, str], encoders: Mapping[Encoder, ComparableRuns]) -> dict[Encoder, str]:
    """'MAE, B' of the standard pre-training of an initialisation and backbone, 'MAE, B: mask.ratio 0.75 -> 0.5'."""
    found, alike = dict(short), dict[tuple[str, str], dict[Encoder, ComparableRuns]]()
    for encoder, group in encoders.items():
        if group.pretraining:
            alike.setdefault(encoder[:2], {})[encoder] = group
    for groups in alike.values():
        by_mae = pretrained_by_mae(groups.values())
        chosen = standard(by_mae)
        first = by_mae[chosen] if chosen else min(groups.values(), key=lambda group: group.first)
        for encoder, group in groups.items():
            unlike = changes(group, replace(first, settings_id=group.settings_id))
            found[encoder] += f": {unlike.removeprefix('pre-training ')}" if unlike else ""
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
