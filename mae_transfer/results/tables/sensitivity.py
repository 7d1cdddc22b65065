"""What a frozen protocol's choice of layer, norm or standardising changes: runs that differ in nothing else."""

from collections.abc import Sequence

import pandas as pd

from mae_transfer.results.comparable_runs import ComparableRuns, comparable_runs
from mae_transfer.results.names import PRESET_NOTES, PRESETS, metric_title
from mae_transfer.results.tables.described import TaskTables
from mae_transfer.results.tables.differences import Comparison, difference
from mae_transfer.results.tables.overview import encoder_labels
from mae_transfer.results.tables.table import MISSING, Cell, Table
from mae_transfer.run_folder.settings import settings_id

KEYS = ("probe.layers", "probe.blocks", "probe.final_norm", "probe.batch_norm", "probe.standardise")
NOTE = (
    "Runs of a frozen protocol that differ in layer, norm or standardising alone. The second column is what most "
    "encoders were run with, each further one has its difference to that: paired over seeds, else over val images, "
    "with the 95 % interval, as in the tables of differences; * marks an interval without zero."
)
Variant = tuple[str, ...]
"""The values of `KEYS`."""


def sensitivity_tables(tasks: Sequence[TaskTables], comparison: Comparison) -> list[Table]:
    """A table for each protocol, recipe, data set and preset with such runs."""
    found = []
    for preset in PRESETS:
        for task in tasks:
            runs = task.runs[(task.runs["preset"] == preset) & (task.runs["frozen"] == True)]  # noqa: E712
            runs = runs[runs["main"].eq(True) & runs["value"].notna()]
            keys = ["data", "data_fingerprint", "rank", "protocol", "recipe"]
            for (data, _, _, protocol, recipe), part in runs.groupby(keys, sort=True):
                what = f"{part['heading'].iloc[0]}, {protocol}, recipe {recipe}: {data}"
                found += _tables_of(part[part["metric"] == part["metric"].iloc[0]], preset, what, comparison)
    return found


def _tables_of(runs: pd.DataFrame, preset: str, what: str, comparison: Comparison) -> list[Table]:
    alike: dict[str, dict[Variant, list[ComparableRuns]]] = {}
    for group in comparable_runs(runs):
        rest = settings_id({key: value for key, value in group.settings.items() if key not in KEYS})
        alike.setdefault(rest, {}).setdefault(_variant(group), []).append(group)
    alike = {rest: variants for rest, variants in alike.items() if len(variants) > 1}
    titles = [f"Sensitivity{'' if preset == 'full' else f', {preset}'}: {what}"] * len(alike)
    titles = [title if len(alike) == 1 else f"{title} ({i})" for i, title in enumerate(titles, 1)]
    tables = [_table(title, variants, runs, comparison) for title, variants in zip(titles, alike.values(), strict=True)]
    note = NOTE if preset == "full" else f"{PRESET_NOTES[preset]} {NOTE}"
    return [Table(table.title, note, table.head, table.rows) for table in tables if table]


def _table(
    title: str, variants: dict[Variant, list[ComparableRuns]], runs: pd.DataFrame, comparison: Comparison
) -> Table | None:
    """None where no encoder has two variants."""
    metric = str(runs["metric"].iloc[0])
    order = sorted(variants, key=lambda v: (-len(variants[v]), min(group.first for group in variants[v])))
    of_encoder: dict[tuple[str, str, str], dict[Variant, ComparableRuns]] = {}
    for variant in order:
        for group in variants[variant]:
            of_encoder.setdefault((group.init, group.backbone, group.weights), {})[variant] = group
    of_encoder = {encoder: groups for encoder, groups in of_encoder.items() if len(groups) > 1}
    if not of_encoder:
        return None
    order = [variant for variant in order if any(variant in groups for groups in of_encoder.values())]
    differing = [i for i in range(len(KEYS)) if len({variant[i] for variant in order}) > 1]
    names = [", ".join(f"{KEYS[i].removeprefix('probe.')} {variant[i]}" for i in differing) for variant in order]
    main = metric_title(str(runs["metric_title"].iloc[0]), str(runs["better"].iloc[0]))
    head = ["encoder", f"{main}, {names[0]}"]
    for name in names[1:]:
        head += [f"{main}, {name}", f"{name} − {names[0]}"]
    labels = encoder_labels({encoder: next(iter(groups.values())) for encoder, groups in of_encoder.items()})
    rows = []
    for encoder, label in labels.items():
        groups = of_encoder[encoder]
        first = groups.get(order[0])
        cells: list[Cell] = [first.cell(metric) if first else MISSING]
        for variant in order[1:]:
            other = groups.get(variant)
            cells.append(other.cell(metric) if other else MISSING)
            cells.append(difference(other, first, metric, comparison) if other and first else MISSING)
        rows.append((label, tuple(cells)))
    return Table(title, NOTE, tuple(head), tuple(rows))


def _variant(group: ComparableRuns) -> Variant:
    return tuple(str(group.settings.get(key)) for key in KEYS)
