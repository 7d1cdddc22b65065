"""Blocks whose columns are metrics by the encoder's size: those of dense tasks and of protocols."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mae_transfer.results.comparable_runs import ComparableRuns, changes, comparable_runs, references, size_of, stacked
from mae_transfer.results.names import (
    INIT_ORDER,
    in_order,
    init_title,
    metric_title,
    size_title,
    sizes_in_order,
)
from mae_transfer.results.tables.block import Block, Column, Quoted, Row
from mae_transfer.results.tables.table import Cell, number


@dataclass(frozen=True)
class Section:
    """Runs of one protocol and recipe, and the published numbers that they are compared with."""

    runs: pd.DataFrame
    quoted: pd.DataFrame
    title: str = ""
    """Put before the initialisation in a row's label."""
    suffix: str = ""
    """Put after it."""
    frozen: bool = False
    """The encoder is, so that a random one is no training from scratch."""

    def label(self, init: str) -> str:
        frozen = " (frozen)" if self.frozen and init == "random" else ""
        return f"{self.title}{init_title(init)}{frozen}{self.suffix}"


def block_by_size(
    title: str,
    note: str,
    sections: Sequence[Section],
    metrics: Mapping[str, tuple[str, str]],
    controls: Sequence[str],
    *,
    first: str = "initialisation",
    lead: Sequence[tuple[str, Cell]] = (),
    costs: bool = True,
) -> Block:
    """A block with a column for each metric and size.

    Args:
        metrics: key -> title and direction, in the order of the columns.
        lead: rows before all others, with what they say in each column of the first metric.
    """
    groups = [comparable_runs(section.runs) for section in sections]
    sizes = sizes_in_order(
        {g.size for part in groups for g in part} | {s for section in sections for s in section.quoted["size"]}
    )
    columns = tuple(
        Column(metric_title(f"{metrics[metric][0]} {size_title(size)}", metrics[metric][1]), metric, size)
        for metric in metrics
        for size in sizes
    )
    top, footnotes = next(iter(metrics)), list[str]()
    rows: list[tuple[Row | Quoted, ...]] = [
        tuple(Quoted(label, {column: cell for column in columns if column.metric == top}) for label, cell in lead)
    ]
    for section, of_section in zip(sections, groups, strict=True):
        reference = references(of_section)
        found: list[Row | Quoted] = []
        for init in in_order({*section.runs["init"], *section.quoted["init"]}, INIT_ORDER):
            quoted = section.quoted[section.quoted["init"] == init]
            found += published_rows(section.label(init), quoted.assign(place=quoted["size"]), columns)
            found += run_rows(section.label(init), [g for g in of_section if g.init == init], reference, footnotes)
        rows.append(tuple(found))
    runs = pd.concat([section.runs for section in sections]) if sections else None
    footnotes += data_notes(runs) if runs is not None else []
    return Block(
        *(title, note, first, columns, tuple(rows), tuple(controls), lambda size: size_title(str(size))),
        *(tuple(footnotes), costs),
    )


def data_notes(runs: pd.DataFrame) -> list[str]:
    """What is odd about the images of some runs of a table."""
    notes = []
    one_each = runs.drop_duplicates("run_id")
    for column, text in (
        ("skipped", "skipped images that could not be decoded"),
        ("overlap", "were evaluated on val images that are training images too"),
    ):
        counts = one_each[column][one_each[column] > 0]
        if len(counts):
            some = f"{counts.min():g}" if counts.min() == counts.max() else f"{counts.min():g} to {counts.max():g}"
            notes.append(f"[!] {len(counts)} of {len(one_each)} runs {text} ({some}).")
    return notes


def published_rows(label: str, quoted: pd.DataFrame, columns: Sequence[Column]) -> list[Quoted]:
    """A row for each source of one initialisation's published numbers that has one in a column, by its `place`."""
    rows = []
    for source, group in quoted.groupby("source", sort=False):
        found = dict(zip(zip(group["metric"], group["place"], strict=True), group["value"], strict=True))
        cells = {c: number(float(found[c.metric, c.place])) for c in columns if (c.metric, c.place) in found}
        if cells:
            rows.append(Quoted(f"{label}, published ({source})", cells))
    return rows


def run_rows(
    label: str,
    groups: Sequence[ComparableRuns],
    reference: Mapping[str, ComparableRuns],
    footnotes: list[str],
    place: Callable[[ComparableRuns], str] = size_of,
) -> list[Row]:
    """The rows of one initialisation, what is like the reference run of its place first; a footnote for each that is
    not."""
    rows, kind = [], "size" if place is size_of else "column"
    for places in stacked(sorted(groups, key=lambda g: bool(changes(g, reference[place(g)]))), place):
        differs = [f"{where}: {change}" for where, g in places.items() if (change := changes(g, reference[where]))]
        marker = ""
        if differs:
            footnotes.append(f"[{len(footnotes) + 1}] unlike the reference run of its {kind} in {'; '.join(differs)}.")
            marker = f" [{len(footnotes)}]"
        rows.append(Row(label + marker, places))
    return rows
