"""What one setting of a pre-training changes: the MAE paper's ablations from anybody's records, its numbers beside."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from mae_transfer.results.comparable_runs import ComparableRuns
from mae_transfer.results.factors import FACTORS, Factor, amount
from mae_transfer.results.names import PRESET_NOTES, PRESETS, metric_title
from mae_transfer.results.tables.described import TaskTables
from mae_transfer.results.tables.differences import Comparison, difference
from mae_transfer.results.tables.scores import Scores, main_columns
from mae_transfer.results.tables.table import MISSING, Cell, Table, number

NOTE = (
    "Pre-trainings by MAE that differ in this alone, in mean ± standard deviation over seeds. Each second column has "
    "the difference to the pre-training that stands in most of these tables, with its 95 % interval, as in the tables "
    "of differences; * marks an interval without zero. Hours are GPU- or core-hours of one pre-training. Published: "
    "the paper's, of ViT-L and 800 epochs on ImageNet-1K, its other settings those of its Table 1; comparable with "
    "each other alone."
)
PUBLISHED = ("finetune", "linear")


def ablation_tables(
    tasks: Sequence[TaskTables], runs: pd.DataFrame, variants: pd.DataFrame, comparison: Comparison
) -> list[Table]:
    """A table for each setting that pre-trainings with runs differ in, in the order of the paper.

    Args:
        runs: the long table, for what pre-trainings cost.
        variants: `read_published(variants=True)`.
    """
    own = runs[~runs["transfers"].astype(bool)].drop_duplicates("run_id")
    alone = own.groupby("settings_id")["processor"].nunique().eq(1)  # GPU-hours and core-hours have no mean
    hours = own.groupby("settings_id")["hours"].mean().where(alone)
    found: list[Table] = []
    for preset in PRESETS:
        columns, _ = main_columns(tasks, preset)
        pretrained = pretrained_by_mae(group for column in columns for group in column.rows.values())
        base = standard(pretrained)
        for factor in FACTORS:
            for values in alike(pretrained, factor):
                title = f"Pre-training: {factor.title} (MAE {factor.source}){'' if preset == 'full' else f', {preset}'}"
                same = sum(table.title.startswith(title) for table in found)
                published = variants[variants["source"].str.endswith(factor.source)]
                table = _table(columns, values, base, hours, published, comparison)
                note = NOTE if preset == "full" else f"{PRESET_NOTES[preset]} {NOTE}"
                found.append(Table(f"{title} ({same + 1})" if same else title, note, *table))
    return found


def pretrained_by_mae(groups: Iterable[ComparableRuns]) -> dict[str, ComparableRuns]:
    """Weights -> their first runs, of MAE's pre-trainings that have a record."""
    found: dict[str, ComparableRuns] = {}
    for group in sorted(groups, key=lambda group: group.first):
        if group.pretraining and group.pretraining.get("method") == "mae":
            found.setdefault(group.weights, group)
    return found


def alike(pretrained: Mapping[str, ComparableRuns], factor: Factor) -> Iterator[dict[str, str]]:
    """Weights -> name of the factor's value, for each set of pre-trainings that differ in the factor alone.

    Where two of a set have one name, they differ in what goes with the factor: the set is then split by that.
    """
    for names in _sets(pretrained, factor, factor.keys):
        if len(set(names.values())) == len(names):
            found = [names]
        else:
            found = list(_sets({weights: pretrained[weights] for weights in names}, factor, factor.keys[:1]))
        for each in found:
            kinds = {name.split(",")[0] for name in each.values()}  # masks of one kind are the factor of ratios
            if len(set(each.values())) == len(each) > 1 and (factor.title != "mask sampling" or len(kinds) > 1):
                yield each


def _sets(pretrained: Mapping[str, ComparableRuns], factor: Factor, keys: Sequence[str]) -> Iterator[dict[str, str]]:
    """Weights -> name, of pre-trainings that agree in all but these keys."""
    sets: dict[str, dict[str, str]] = {}
    for weights, group in pretrained.items():
        settings = group.pretraining or {}
        rest = factor.rest(settings, keys)
        if rest is not None:
            sets.setdefault(rest, {})[weights] = factor.name(settings)
    yield from sets.values()


def standard(pretrained: Mapping[str, ComparableRuns]) -> str | None:
    """The pre-training that stands in most tables, of as many the first: what the others change one setting of."""
    sets = [names for factor in FACTORS for names in alike(pretrained, factor)]
    order = sorted(pretrained, key=lambda w: (-sum(w in names for names in sets), pretrained[w].first))
    return order[0] if order else None


def _table(
    columns: Sequence[Scores],
    values: Mapping[str, str],
    base: str | None,
    hours: pd.Series,
    published: pd.DataFrame,
    comparison: Comparison,
) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[Cell, ...]], ...]]:
    """Head and rows."""
    first = base if base is not None and base in values else next(iter(values))
    what, own = values[first].split(": ")
    shown = []
    for column in columns:
        rows = {group.weights: group for group in column.rows.values() if group.weights in values}
        if len(rows) > 1:
            shown.append((column, rows))
    quoted = [protocol for protocol in PUBLISHED if (published["protocol"] == protocol).any()]
    head = ["value"]
    for column, _ in shown:
        head += [column.head, f"− {own}"]
    head += ["hours", *(f"{metric_title('top-1', 'higher')}, {protocol}, published" for protocol in quoted)]
    names = {name: weights for weights, name in values.items()}
    parts = {variant: str(variant).split("; ") for variant in published["variant"]}
    told = {variant: name for variant, of in parts.items() for name in of if name.startswith(f"{what}: ")}
    lines = []
    for name in sorted({*names, *told.values()}, key=lambda name: (amount(name) is None, amount(name) or 0.0, name)):
        weights = names.get(name, "")
        cells: list[Cell] = []
        for column, rows in shown:
            group, reference = rows.get(weights), rows.get(first)
            cells.append(group.cell(column.metric) if group else MISSING)
            if group and reference and weights != first:
                cells.append(difference(group, reference, column.metric, comparison))
            else:
                cells.append(MISSING)
        cells.append(number(float(hours.get(weights, float("nan"))), 2))
        for protocol in quoted:
            of = published[(published["protocol"] == protocol) & (published["variant"].map(told) == name)]
            cells.append(number(float(of["value"].iloc[0])) if len(of) else MISSING)
        lines.append((name.split(": ")[1], tuple(cells)))
    return tuple(head), tuple(lines)
