"""What a table is going to say, before it is laid out: sections of rows, and the columns they share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mae_transfer.results.comparable_runs import ComparableRuns
from mae_transfer.results.tables.table import MISSING, Cell

Place: TypeAlias = str | float
"""Where runs of a row stand: the encoder's size, or a number of blocks."""


@dataclass(frozen=True)
class Column:
    """A metric at a place."""

    head: str
    metric: str
    place: Place


@dataclass(frozen=True)
class Quoted:
    """A row of cells that are no runs: published numbers, or chance."""

    label: str
    cells: Mapping[Column, Cell] = field(default_factory=dict)

    def line(self, columns: tuple[Column, ...]) -> tuple[str, tuple[Cell, ...]]:
        return self.label, tuple(self.cells.get(column, MISSING) for column in columns)


@dataclass(frozen=True)
class Row:
    """A row of runs: its place -> the comparable runs that stand there."""

    label: str
    places: Mapping[Any, ComparableRuns]

    def line(self, columns: tuple[Column, ...]) -> tuple[str, tuple[Cell, ...]]:
        cells = (self.places[c.place].cell(c.metric) if c.place in self.places else MISSING for c in columns)
        return self.label, tuple(cells)


@dataclass(frozen=True)
class Block:
    """A table of runs. The rows of a section are compared with each other, and with the section's control."""

    title: str
    note: str
    first: str
    """Head of the column of labels."""
    columns: tuple[Column, ...]
    sections: tuple[tuple[Row | Quoted, ...], ...]
    controls: tuple[str, ...]
    """Initialisations that may be the control, the best first."""
    place_title: Callable[[Place], str]
    footnotes: tuple[str, ...] = ()
    costs: bool = True

    def runs_of(self, section: tuple[Row | Quoted, ...]) -> list[Row]:
        return [row for row in section if isinstance(row, Row)]
