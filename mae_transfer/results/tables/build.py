"""Tables from run records, next to the published numbers. Builds in seconds, without torch.

Rows are initialisations, columns are metrics by encoder size, cells are mean ± standard deviation over seeds with n.
Presets, data sets and recipes each have a table of their own. Within one, runs that followed unlike protocols are never
averaged: they get a row each, with a footnote that names what differs. Controls (random, supervised) have a row also
where no run of them is recorded. A table of runs is followed by one of differences to a control and one of costs.
Image classification, where the protocols of a data set stand in one table, is in `classification_tables.py`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mae_transfer.errors import UserError
from mae_transfer.results.comparable_runs import LikeRuns, changes, like_runs, references, stacked
from mae_transfer.results.long_table import long_table
from mae_transfer.results.tables.costs import cost_table
from mae_transfer.results.tables.differences import Column, Comparison, Row, difference_table
from mae_transfer.results.tables.render import FORMATS
from mae_transfer.results.tables.table import MISSING, Cell, Table, number

METRICS = {"ade20k": {"mIoU": "mIoU"}, "coco": {"box_AP": "AP box", "mask_AP": "AP mask"}}
"""Task -> metric -> column title."""

INIT_TITLES = {
    "random": "random",
    "sup": "supervised",
    "mocov3": "MoCo v3",
    "dino": "DINO",
    "beit": "BEiT",
    "mae": "MAE",
}
"""Known initialisations in the order of the paper's table; others follow by name."""

INIT_ORDER = list(INIT_TITLES)
CONTROLS = ("random", "sup")
"""Initialisations that have a row in every table of runs."""
SIZE_ORDER = ["nano", "ti", "s", "b", "l", "h"]
BENCHMARK_DATA = {"ade20k": "ADE20K val", "coco": "COCO val2017"}
"""Task -> name of the data set that the published numbers are of."""
PRESET_NOTES = {
    "full": "The full recipe on another data set than the published numbers.",
    "mini": "Mini runs: a small recipe of this project, comparable with each other and with nothing published.",
    "smoke": "Smoke runs: a few steps on a tiny subset or generated images. They show that the code runs; the "
    "numbers mean nothing.",
}
PUBLISHED = Path(__file__).parents[1] / "published.csv"


def read_published() -> pd.DataFrame:
    """The published numbers: `recipe` is empty where a task has but one, `protocol` where it has none, `blocks` NaN but
    for partial fine-tuning."""
    published = pd.read_csv(PUBLISHED, keep_default_na=False, na_values={"blocks": [""]})
    return published if "recipe" in published else published.assign(recipe="")


def make_tables(
    records: Iterable[Mapping[str, Any]],
    *,
    style: str = "markdown",
    control: str | None = None,
    warnings: list[str] | None = None,
) -> str:
    """All tables as one text; the same text whatever the order of the records.

    style: markdown, latex, csv or html.
    control: the initialisation to compare with; None is supervised where there is such a run, else random.
    warnings: gets a line for each file of per-image results that cannot be used.

    Raises UserError for a control that no record has.
    """
    return FORMATS[style][0](build_tables(records, control=control, warnings=warnings))


def build_tables(
    records: Iterable[Mapping[str, Any]], *, control: str | None = None, warnings: list[str] | None = None
) -> list[Table]:
    """The tables of `make_tables`. The published rows stand in the table of the full preset on the full data set, which
    is there even while no run is."""
    from mae_transfer.results.tables.classification import classification_tables  # which is built on this module

    runs, published = long_table(records), read_published()
    comparison = Comparison(control, [] if warnings is None else warnings)
    inits = sorted(runs["init"].unique())
    if control is not None and control not in inits:
        raise UserError(f"--control {control}: no record has this initialisation; there are: {', '.join(inits)}")
    tables: list[Table] = []
    for task in sorted(METRICS):
        tables += dense_tables(task, runs[runs["task"] == task], published[published["task"] == task], comparison)
    return tables + classification_tables(runs, published, comparison)


def dense_tables(task: str, runs: pd.DataFrame, published: pd.DataFrame, comparison: Comparison) -> list[Table]:
    """The tables of COCO or ADE20K: those of each recipe on the benchmark, then other data sets and presets."""
    name, parts = task.upper(), list[Table]()
    runs = runs[runs["metric"].isin(METRICS[task])]
    benchmark = (runs["preset"] == "full") & (runs["data"] == BENCHMARK_DATA[task])
    for recipe, group in runs[benchmark].groupby("recipe", sort=True):
        title = f"{name}: {BENCHMARK_DATA[task]}, recipe {recipe}"
        quoted = published[published["recipe"].isin(["", recipe])]
        parts += task_tables(title, "", [Section("", group, quoted)], METRICS[task], task, comparison)
    for recipe, quoted in published.groupby("recipe", sort=True):
        if recipe in set(runs[benchmark]["recipe"]) or (not recipe and benchmark.any()):
            continue
        which = f", recipe {recipe!s}" if recipe else ""
        title = f"{name}: {BENCHMARK_DATA[task]}{which} (no full run recorded yet)"
        parts += task_tables(title, "", [Section("", runs.iloc[:0], quoted)], METRICS[task], task, comparison)
    for preset in ("full", "mini", "smoke"):
        others = runs[(runs["preset"] == preset) & ~benchmark]
        for (data, _, recipe), group in others.groupby(["data", "data_fingerprint", "recipe"], sort=True):
            title, note = f"{name}, {preset}: {data}, recipe {recipe}", PRESET_NOTES[preset]
            sections = [Section("", group, published.iloc[:0])]
            parts += task_tables(title, note, sections, METRICS[task], task, comparison)
    return parts


@dataclass
class Section:
    """Rows of a table that are compared with each other: the runs of a protocol and recipe, and published numbers.

    title: put before the initialisation in a row's label.
    suffix: put after it.
    frozen: the encoder is, so that a random one is no training from scratch.
    """

    title: str
    runs: pd.DataFrame
    quoted: pd.DataFrame
    suffix: str = ""
    frozen: bool = False

    def label(self, init: str) -> str:
        frozen = " (frozen)" if self.frozen and init == "random" else ""
        return f"{self.title}{INIT_TITLES.get(init, init)}{frozen}"

    def inits(self) -> list[str]:
        return in_order({*self.runs["init"], *self.quoted["init"], *CONTROLS}, INIT_ORDER)


def task_tables(
    title: str,
    note: str,
    sections: Sequence[Section],
    metrics: Mapping[str, str],
    task: str,
    comparison: Comparison,
    *,
    first: str = "initialisation",
    lead: Sequence[tuple[str, Cell]] = (),
    costs: bool = True,
) -> list[Table]:
    """A table with a column for each metric and size, that of its differences, and that of its costs.

    lead: rows before all others, with what they say in each column of the first metric.
    """
    groups = [like_runs(section.runs) for section in sections]
    sizes = in_order(
        {g.size for part in groups for g in part} | {s for section in sections for s in section.quoted["size"]},
        SIZE_ORDER,
        lambda size: size.rstrip("0123456789"),
    )
    columns = [Column(f"{metrics[metric]} {size_title(size)}", metric, size) for metric in metrics for size in sizes]
    top = next(iter(metrics))
    lines = [(label, tuple(cell if c.metric == top else MISSING for c in columns)) for label, cell in lead]
    notes, compared = list[str](), list[list[Row]]()
    for section, of_section in zip(sections, groups, strict=True):
        rows: list[Row] = []
        reference = references(of_section)
        for init in section.inits():
            lines += published_lines(section, init, columns)
            own = run_rows(
                section.label(init) + section.suffix, [g for g in of_section if g.init == init], reference, notes
            )
            lines += [run_line(row, columns) for row in own]
            if not own and init in CONTROLS:
                lines.append((section.label(init) + section.suffix, (MISSING,) * len(columns)))
            rows += own
        compared.append(rows)
    table = Table(title, note, (first, *(column.head for column in columns)), tuple(lines), tuple(notes))
    return [table, *after(title, first, compared, columns, task, comparison, costs=costs, name=size_title)]


def after(
    title: str,
    first: str,
    sections: Sequence[Sequence[Row]],
    columns: Sequence[Column],
    task: str,
    comparison: Comparison,
    *,
    costs: bool = True,
    name: Callable[[Any], str],
) -> list[Table]:
    """What follows a table of runs: the differences to the control, and the costs."""
    found = [difference_table(f"{title}: differences", first, sections, columns, INIT_TITLES, task, comparison)]
    found += [cost_table(f"{title}: costs", first, sections, name)] if costs else []
    return [table for table in found if table is not None]


def published_lines(section: Section, init: str, columns: Sequence[Column]) -> list[tuple[str, tuple[Cell, ...]]]:
    """A row for each source that has a number of this initialisation in one of the columns."""
    lines = []
    quoted = section.quoted[section.quoted["init"] == init]
    for source, group in quoted.groupby("source", sort=False):
        found = {(row.metric, row.size): float(row.value) for row in group.itertuples()}
        cells = tuple(
            number(found[column.metric, column.place]) if (column.metric, column.place) in found else MISSING
            for column in columns
        )
        if any(cell is not MISSING for cell in cells):
            lines.append((f"{section.title}{INIT_TITLES.get(init, init)}, published ({source})", cells))
    return lines


def run_rows(label: str, groups: Sequence[LikeRuns], reference: Mapping[str, LikeRuns], notes: list[str]) -> list[Row]:
    """The rows of one initialisation; a footnote for each that is unlike the reference run of its size."""
    rows = []
    for places in stacked(groups):
        differs = [f"{size}: {change}" for size, g in places.items() if (change := changes(g, reference[size]))]
        marker = ""
        if differs:
            notes.append(f"[{len(notes) + 1}] unlike the reference run of its size in {'; '.join(differs)}.")
            marker = f" [{len(notes)}]"
        rows.append(Row(label + marker, places))
    return rows


def run_line(row: Row, columns: Sequence[Column]) -> tuple[str, tuple[Cell, ...]]:
    cells = (
        row.places[column.place].cell(column.metric) if column.place in row.places else MISSING for column in columns
    )
    return row.label, tuple(cells)


def in_order(names: Iterable[str], order: Sequence[str], key: Any = lambda name: name) -> list[str]:
    """Those that `order` has first, in its order, then the others by name."""
    return sorted(names, key=lambda name: (order.index(key(name)) if key(name) in order else len(order), name))


def size_title(size: str) -> str:
    """'b' -> 'B', 'h448' -> 'H 448'; one that is no standard size, such as 384x12, as it is."""
    letters = size.rstrip("0123456789")
    if letters not in SIZE_ORDER:
        return size
    name = letters.upper() if len(letters) == 1 else letters
    return f"{name} {size[len(letters) :]}".strip()
