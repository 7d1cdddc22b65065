"""Runs that may share a cell of a table, and what tells others from them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from mae_transfer.results.tables.table import MISSING, Cell

Settings: TypeAlias = Mapping[str, Any]
"""Flat: section.key -> value."""
Pair = tuple[int, int]
"""(seed, draw): over these a cell averages, and by these two runs are paired."""


@dataclass
class ComparableRuns:
    """Runs of one backbone, weights, size and settings: they differ in seed and draw alone.

    A seed (and draw of few shots) that was run twice counts once: the run with the last run id, which starts with its
    time.
    """

    init: str
    size: str
    backbone: str
    weights: str
    settings_id: str
    protocol: str
    recipe: str
    blocks: float
    settings: Settings
    first: str
    """The first run id."""
    pretraining: Settings | None = None
    """Settings of the weights' pre-training, where its record is known."""
    runs: dict[Pair, dict[str, Any]] = field(default_factory=dict)
    """What the long table says of each run."""
    values: dict[Pair, dict[str, float]] = field(default_factory=dict)
    """The metrics of each run that have a value."""

    def of(self, metric: str) -> dict[Pair, float]:
        return {pair: values[metric] for pair, values in sorted(self.values.items()) if metric in values}

    def cell(self, metric: str) -> Cell:
        """'50.3 (n=1)', '50.3 ± 0.1 (n=3)' (the sample's standard deviation), or '-' where no run is recorded."""
        values = list(self.of(metric).values())
        if not values:
            return MISSING
        mean = float(np.mean(values))
        if len(values) == 1:
            return Cell(f"{mean:.1f} (n=1)", mean, n=1)
        std = float(np.std(values, ddof=1))
        return Cell(f"{mean:.1f} ± {std:.1f} (n={len(values)})", mean, std, len(values))


KEYS = ("size", "backbone", "weights", "settings_id")
FACTS = (
    *("run_id", "processor", "hours", "peak_memory_bytes", "parameters", "encoder_flops"),
    *("folder", "per_image", "sources", "fingerprint"),
)


def comparable_runs(table: pd.DataFrame) -> list[ComparableRuns]:
    """All sets of comparable runs of one data set, in the order of size, backbone, weights and settings."""
    found: dict[tuple[object, ...], ComparableRuns] = {}
    for row in table.to_dict("records"):
        key = (row["init"], *(row[name] for name in KEYS))
        if key not in found:
            names = (*KEYS, "init", "protocol", "recipe", "blocks", "settings", "pretraining")
            found[key] = ComparableRuns(first=row["run_id"], **{name: row[name] for name in names})
        group, pair = found[key], (row["seed"], row["draw"])
        if pair not in group.runs or group.runs[pair]["run_id"] != row["run_id"]:  # rows are in the order of run ids
            group.runs[pair] = {name: row[name] for name in FACTS}
            group.values[pair] = {}
        if row["value"] == row["value"]:
            group.values[pair][row["metric"]] = row["value"]
    return [found[key] for key in sorted(found)]


def size_of(group: ComparableRuns) -> str:
    """Where runs stand in a table whose columns are sizes."""
    return group.size


def references(
    groups: Iterable[ComparableRuns], place: Callable[[ComparableRuns], str] = size_of
) -> dict[str, ComparableRuns]:
    """Per place the runs that the others' settings are compared with: MAE's where there are some, else the first."""
    best: dict[str, ComparableRuns] = {}
    for group in sorted(groups, key=lambda g: (g.init != "mae", g.first)):
        best.setdefault(place(group), group)
    return best


def changes(group: ComparableRuns, reference: ComparableRuns, ignore: Sequence[str] = ()) -> str:
    """'optim.lr 8e-05 -> 4e-05, ...' from the reference to the group, empty where they agree."""
    found = []
    if group.init == reference.init:
        old, new = vars(reference), vars(group)
        found = [f"{key} {old[key]} -> {new[key]}" for key in ("backbone", "weights") if old[key] != new[key]]
        if group.pretraining and reference.pretraining and group.weights != reference.weights:
            found[-1] = f"pre-training {_differing(group.pretraining, reference.pretraining)}"
    if group.settings_id != reference.settings_id:
        found.append(_differing(group.settings, reference.settings, ignore))
    return ", ".join(filter(None, found))


def _differing(settings: Settings, reference: Settings, ignore: Sequence[str] = ()) -> str:
    keys = sorted({*reference, *settings} - {*ignore})
    pairs = ((key, reference.get(key), settings.get(key)) for key in keys)
    return ", ".join(f"{key} {old} -> {new}" for key, old, new in pairs if old != new)


def stacked(
    groups: Iterable[ComparableRuns], place: Callable[[ComparableRuns], str] = size_of
) -> list[dict[str, ComparableRuns]]:
    """Rows of a table, place -> comparable runs: the k-th set of a place stands in the k-th row, so no cell mixes
    any."""
    rows: list[dict[str, ComparableRuns]] = []
    depth: dict[str, int] = {}
    for group in groups:
        where = place(group)
        k = depth.get(where, 0)
        depth[where] = k + 1
        if k == len(rows):
            rows.append({})
        rows[k][where] = group
    return rows
