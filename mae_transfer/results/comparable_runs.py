"""Runs that may share a cell of a table, and what tells others from them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mae_transfer.results.tables.table import MISSING, Cell

Pair = tuple[int, int]
"""(seed, draw): over these a cell averages, and by these two runs are paired."""


@dataclass
class LikeRuns:
    """Runs of one backbone, weights, size and protocol: they differ in seed and draw alone.

    A seed (and draw of few shots) that was run twice counts once: the run with the last run id, which starts with its
    time.
    """

    init: str
    size: str
    backbone: str
    weights: str
    protocol_id: str
    kind: str
    recipe: str
    blocks: float
    protocol: Mapping[str, Any]
    first: str
    """The first run id."""
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


KEYS = ("size", "backbone", "weights", "protocol_id")
FACTS = ("run_id", "processor", "hours", "peak_memory_bytes", "parameters", "encoder_flops", "folder", "per_image")


def like_runs(table: pd.DataFrame) -> list[LikeRuns]:
    """All sets of like runs of a long table, of one data set, in the order of size, backbone, weights and protocol."""
    found: dict[tuple[Any, ...], LikeRuns] = {}
    for row in table.to_dict("records"):
        key = (row["init"], *(row[name] for name in KEYS))
        if key not in found:
            names = (*KEYS, "init", "kind", "recipe", "blocks", "protocol")
            found[key] = LikeRuns(first=row["run_id"], **{name: row[name] for name in names})
        group, pair = found[key], (row["seed"], row["draw"])
        if pair not in group.runs or group.runs[pair]["run_id"] != row["run_id"]:  # rows are in the order of run ids
            group.runs[pair] = {name: row[name] for name in FACTS}
            group.values[pair] = {}
        if row["value"] == row["value"]:
            group.values[pair][row["metric"]] = row["value"]
    return [found[key] for key in sorted(found)]


def references(groups: Iterable[LikeRuns]) -> dict[str, LikeRuns]:
    """Per size the runs that the others' protocols are compared with: MAE's where there are some, else the first."""
    best: dict[str, LikeRuns] = {}
    for group in sorted(groups, key=lambda g: (g.init != "mae", g.first)):
        best.setdefault(group.size, group)
    return best


def changes(group: LikeRuns, reference: LikeRuns, ignore: Sequence[str] = ()) -> str:
    """'optim.lr 8e-05 -> 4e-05, ...' from the reference to the group, empty where they agree."""
    found = []
    if group.init == reference.init:
        old, new = vars(reference), vars(group)
        found = [f"{key} {old[key]} -> {new[key]}" for key in ("backbone", "weights") if old[key] != new[key]]
    if group.protocol_id != reference.protocol_id:
        old, new = dict(reference.protocol), dict(group.protocol)
        keys = sorted({*old, *new} - {*ignore})
        found += [f"{key} {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
    return ", ".join(found)


def stacked(groups: Iterable[LikeRuns]) -> list[dict[str, LikeRuns]]:
    """Rows of a table, size -> like runs: the k-th set of a size stands in the k-th row, so no cell mixes any."""
    rows: list[dict[str, LikeRuns]] = []
    depth: dict[str, int] = {}
    for group in groups:
        k = depth.get(group.size, 0)
        depth[group.size] = k + 1
        if k == len(rows):
            rows.append({})
        rows[k][group.size] = group
    return rows
