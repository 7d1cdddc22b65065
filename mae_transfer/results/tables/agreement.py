"""Whether tasks and protocols put encoders in the same order: Kendall's tau-b of every pair of columns."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mae_transfer.results.names import PRESET_NOTES
from mae_transfer.results.rank_correlation import BOOTSTRAP, FEWEST, kendall_tau, tau_interval
from mae_transfer.results.statistics import Interval
from mae_transfer.results.tables.scores import Scores
from mae_transfer.results.tables.table import MISSING, Cell, Table

NOTE = (
    "Kendall's tau-b of two columns of the overview over the encoders that both have: 1 is the same order, -1 the "
    f"opposite one. In brackets the 95 % interval over encoders (under {BOOTSTRAP} of them the inverted parametric "
    "bootstrap, else the percentile bootstrap); * marks one without zero; n is the number of encoders. Scores are "
    "means over seeds, higher is better in every column. No correction is made for the number of pairs."
)
TOO_FEW = f"Rank agreement is not shown: no two columns have {FEWEST} encoders in common."


@dataclass(frozen=True)
class Agreement:
    tau: float
    interval: Interval
    encoders: int


def agreements(columns: Sequence[Scores]) -> dict[tuple[int, int], Agreement]:
    """(first, second) -> agreement of each pair of columns, 0-based, that has a tau and enough common encoders."""
    scores, found = [column.scores() for column in columns], {}
    for first, second in itertools.combinations(range(len(columns)), 2):
        common = sorted(scores[first].keys() & scores[second].keys())
        x, y = (np.array([scores[column][encoder] for encoder in common]) for column in (first, second))
        tau, interval = (kendall_tau(x, y), tau_interval(x, y)) if len(common) >= FEWEST else (None, None)
        if tau is not None and interval is not None:
            found[first, second] = Agreement(tau, interval, len(common))
    return found


def agreement_table(preset: str, columns: Sequence[Scores]) -> Table | None:
    """Rows and columns are the overview's columns, numbered; None where no pair has enough common encoders."""
    found = agreements(columns)
    if not found:
        return None
    rows = []
    for second in range(1, len(columns)):
        cells = tuple(_cell(found.get((first, second))) for first in range(len(columns) - 1))
        rows.append((f"({second + 1}) {columns[second].head}", cells))
    pairs = len(columns) * (len(columns) - 1) // 2
    notes = [f"(1) is {columns[0].head}."]
    if pairs > len(found):
        few = f"under {FEWEST} common encoders, or a column that ties them all"
        notes.append(f"{pairs - len(found)} of {pairs} pairs are not shown: {few}.")
    head = ("column", *(f"({number})" for number in range(1, len(columns))))
    if preset == "full":
        return Table("Rank agreement", NOTE, head, tuple(rows), tuple(notes))
    return Table(f"Rank agreement, {preset}", f"{PRESET_NOTES[preset]} {NOTE}", head, tuple(rows), tuple(notes))


def _cell(agreement: Agreement | None) -> Cell:
    """'0.67 [−0.10, 0.95] (n=6)'."""
    if agreement is None:
        return MISSING
    low, high = agreement.interval.low, agreement.interval.high
    mark = "*" if agreement.interval.excludes_zero else ""
    text = f"{_text(agreement.tau)} [{_text(low)}, {_text(high)}]{mark} (n={agreement.encoders})"
    return Cell(text, agreement.tau, n=agreement.encoders, low=low, high=high)


def _text(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
