"""The block of a dense task with a column for each protocol, recipe and encoder's size."""

from collections.abc import Mapping, Sequence

import pandas as pd

from mae_transfer.results.comparable_runs import ComparableRuns, comparable_runs, references
from mae_transfer.results.names import (
    INIT_ORDER,
    in_order,
    init_title,
    metric_title,
    size_title,
    sizes_in_order,
)
from mae_transfer.results.tables.block import Block, Column, Quoted, Row
from mae_transfer.results.tables.by_size import data_notes, published_rows, run_rows


def protocol_columns(
    title: str,
    note: str,
    runs: pd.DataFrame,
    quoted: pd.DataFrame,
    metrics: Mapping[str, tuple[str, str]],
    controls: Sequence[str],
) -> Block:
    """Rows are initialisations. Recipes of a protocol and their settings never share a cell.

    Args:
        runs: of one data set and preset.
        quoted: published numbers of the same data.
        metrics: key -> title and direction, in the order of the columns.
    """
    groups = comparable_runs(runs)
    places: dict[str, None] = {}
    kinds = runs[["rank", "recipe"]].drop_duplicates().sort_values(["rank", "recipe"])
    of_quoted = sorted(set(quoted["recipe"][quoted["protocol"] != ""]) - {""})
    for recipe in dict.fromkeys([*kinds["recipe"], *of_quoted]):
        sizes = {g.size for g in groups if g.recipe == recipe} | set(quoted[quoted["recipe"] == recipe]["size"])
        places |= dict.fromkeys(_place(recipe, size) for size in sizes_in_order(sizes))
    columns = tuple(
        Column(metric_title(f"{metrics[metric][0]} {place}", metrics[metric][1]), metric, place)
        for metric in metrics
        for place in places
    )
    reference, footnotes, rows = references(groups, _place_of), list[str](), list[Row | Quoted]()
    for init in in_order({*runs["init"], *quoted["init"]}, INIT_ORDER):
        of_init = quoted[quoted["init"] == init]
        where = [_place(*each) for each in zip(of_init["recipe"], of_init["size"], strict=True)]
        rows += published_rows(init_title(init), of_init.assign(place=where), columns)
        own_groups = [group for group in groups if group.init == init]
        rows += run_rows(init_title(init), own_groups, reference, footnotes, _place_of)
    footnotes += data_notes(runs)
    return Block(title, note, "initialisation", columns, (tuple(rows),), tuple(controls), str, tuple(footnotes))


def _place(recipe: str, size: str) -> str:
    return f"{recipe} {size_title(size)}"


def _place_of(group: ComparableRuns) -> str:
    return _place(group.recipe, group.size)
