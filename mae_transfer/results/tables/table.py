"""A table as data, and its cells; `render.py` writes it down."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """What a cell says, and the numbers that it says it of, for those who read the table by program."""

    text: str
    value: float | None = None
    std: float | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None


MISSING = Cell("-")


@dataclass(frozen=True)
class Table:
    """`head` names the column of labels and then those of cells; a row is its label and its cells."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    footnotes: tuple[str, ...] = ()
    published_only: bool = False
    """Whether no run stands in it."""


def number(value: float, digits: int = 1) -> Cell:
    """A number on its own, such as a published one; MISSING for NaN."""
    return MISSING if value != value else Cell(f"{value:.{digits}f}", value)
