"""The paper's claims judged by the records at hand: found, opposite, or not found at this size."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from mae_transfer.results.claims import Claim, read_claims
from mae_transfer.results.comparable_runs import ComparableRuns
from mae_transfer.results.factors import FACTORS, amount
from mae_transfer.results.names import PRESET_NOTES, PRESETS
from mae_transfer.results.statistics import t_interval
from mae_transfer.results.tables.ablations import alike, pretrained_by_mae, standard
from mae_transfer.results.tables.described import TaskTables
from mae_transfer.results.tables.differences import Comparison, difference
from mae_transfer.results.tables.partial import LINEAR, LINEAR_RECIPE, PARTIAL
from mae_transfer.results.tables.scores import Scores, main_columns
from mae_transfer.results.tables.table import Cell, Table

FEWEST = 3
"""Pre-trainings of each side, for a verdict."""
NOT_JUDGED = "not judged"
METHODS = {
    "mae": "MAE (this project)",
    "supervised": "supervised (this project)",
    "beit": "BEiT-style (this project)",
    "mocov3": "MoCo v3 (this project)",
}
"""Released weights are one pre-training each, of other data and compute, and judge no claim."""
ALIKE = ("backbone", "data_fingerprint", "data.image_size")
"""What pre-trainings by two methods agree in."""
NOTE = (
    "Claims of the MAE paper (arXiv 2111.06377) that these runs can judge, and its own numbers. Differences are paired "
    "over seeds, with their 95 % intervals by Student's t; speeds are of one pre-training over the other's, per image "
    "and on one machine, by the means of their logarithms. Found: an interval of three pre-trainings or more a side is "
    "on the paper's side of zero (of one, for speeds); opposite: it is on the other; else not found at this size. No "
    "correction is made for the number of claims."
)
HEAD = ("claim", "published", "here, in", "better", "worse", "difference", "verdict")
Row = tuple[str, tuple[Cell, ...]]


def claim_tables(tasks: Sequence[TaskTables], runs: pd.DataFrame, comparison: Comparison) -> list[Table]:
    """A table for each preset with runs of both sides of a claim.

    Args:
        runs: the long table, for the speeds of pre-trainings.
    """
    found = []
    claims = read_claims()
    for preset in PRESETS[:2]:  # the numbers of smoke runs mean nothing
        columns, _ = main_columns(tasks, preset)
        speeds = _speeds(runs[runs["preset"] == preset])
        rows = [row for claim in claims for row in _rows(claim, columns, speeds, comparison)]
        title, note = ("", NOTE) if preset == "full" else (f", {preset}", f"{PRESET_NOTES[preset]} {NOTE}")
        found += [Table(f"The paper's claims{title}", note, HEAD, tuple(rows))] if rows else []
    return found


def _speeds(runs: pd.DataFrame) -> dict[str, dict[tuple[int, str], float]]:
    """Weights -> seed and machine -> images a second of the pre-training."""
    of = runs[~runs["transfers"].astype(bool) & runs["images_per_second"].gt(0)].drop_duplicates("run_id")
    found: dict[str, dict[tuple[int, str], float]] = {}
    columns = (of[name] for name in ("settings_id", "seed", "machine", "images_per_second"))
    for weights, seed, machine, speed in zip(*columns, strict=True):
        found.setdefault(str(weights), {})[int(seed), str(machine)] = float(speed)
    return found


def _rows(
    claim: Claim,
    columns: Sequence[Scores],
    speeds: Mapping[str, dict[tuple[int, str], float]],
    comparison: Comparison,
) -> Iterator[Row]:
    label = f"{claim.says} ({claim.source})"
    for over, published in claim.published.items():
        if isinstance(published, float):
            groups = {group.weights: group for column in columns for group in column.rows.values()}
            sides = list(_sides(claim, list(groups.values())))
            for better, worse in sides[:1]:  # a pre-training is as fast whatever it is transferred to
                if better.weights in speeds and worse.weights in speeds:
                    yield label, _speed_cells(published, speeds[better.weights], speeds[worse.weights])
            continue
        for column in columns:
            for better, worse in _compared(claim, over, column, columns):
                cell = difference(better, worse, column.metric, comparison)
                sides_of = better.cell(column.metric), worse.cell(column.metric)
                gain = published[0] - published[1]
                paper = Cell(f"{gain:+.1f} ({published[0]:.1f} − {published[1]:.1f})", gain)
                where = Cell(f"{column.head}{_values(claim, better, worse)}")
                judged = _verdict(cell, column.sign()) if _pretrainings(better, worse) >= FEWEST else NOT_JUDGED
                yield label, (paper, where, *sides_of, cell, Cell(judged))


def _compared(
    claim: Claim, over: str, column: Scores, columns: Sequence[Scores]
) -> Iterator[tuple[ComparableRuns, ComparableRuns]]:
    """The pairs of a column that the claim is about.

    over: protocol or metric of the paper's numbers.
    """
    groups = list(column.rows.values())
    protocol = groups[0].protocol
    if claim.better == PARTIAL:
        probes = [p for c in columns if c.fingerprint == column.fingerprint for p in c.rows.values()]
        probes = [p for p in probes if p.protocol == LINEAR and p.recipe == LINEAR_RECIPE]
        for group in groups:
            same = [p for p in probes if p.weights == group.weights]
            if protocol == PARTIAL and group.blocks == 1 and group.init == METHODS["mae"] and len(same) == 1:
                yield group, same[0]
    elif claim.task is None:
        yield from _sides(claim, groups) if protocol == over else ()
    elif claim.task == column.task and not protocol:  # the paper's are of fine-tuning, a dense task's first protocol
        yield from _sides(claim, groups)


def _sides(claim: Claim, groups: Sequence[ComparableRuns]) -> Iterator[tuple[ComparableRuns, ComparableRuns]]:
    """Runs of both sides of a claim, of encoders that differ in nothing else."""
    pretrained = pretrained_by_mae(groups)
    if claim.factor is None:
        chosen = standard(pretrained)
        for better in [pretrained[chosen]] if chosen and claim.better == "mae" else []:
            for worse in groups:
                settings = (better.pretraining or {}, worse.pretraining or {})
                if worse.init == METHODS.get(claim.worse) and all(
                    s.get(k) == settings[0].get(k) for s in settings for k in ALIKE
                ):
                    yield better, worse
        return
    factor = next(factor for factor in FACTORS if factor.title == claim.factor)
    for values in alike(pretrained, factor):
        numbers = {weights: amount(name) or 0.0 for weights, name in values.items()}
        order = sorted((w for w in numbers if numbers[w] <= (claim.up_to or math.inf)), key=lambda w: numbers[w])
        named = {name: weights for weights, name in values.items()}
        if len(order) > 1:
            named |= {"most": order[-1], "least": order[0]}
        if claim.better in named and claim.worse in named:
            yield pretrained[named[claim.better]], pretrained[named[claim.worse]]


def _pretrainings(better: ComparableRuns, worse: ComparableRuns) -> int:
    """Of the side with fewer: weights that differ, each with a seed of its own. Draws of few labels are no more of
    them."""
    seeds = {pair[0] for pair in better.runs.keys() & worse.runs.keys()}
    weights = [{run["fingerprint"] for run in side.runs.values()} for side in (better, worse)]
    draws = any(draw for _, draw in better.runs)
    return 0 if draws else min(len(seeds), *map(len, weights))


def _values(claim: Claim, better: ComparableRuns, worse: ComparableRuns) -> str:
    """', 2 blocks against 1 block': what the most and the least of a setting are here."""
    factor = next((factor for factor in FACTORS if factor.title == claim.factor), None)
    if factor is None or claim.better != "most":
        return ""
    names = [factor.name(side.pretraining or {}).split(": ")[1] for side in (better, worse)]
    return f", {names[0]} against {names[1]}"


def _speed_cells(
    published: float, better: Mapping[tuple[int, str], float], worse: Mapping[tuple[int, str], float]
) -> tuple[Cell, ...]:
    """Paired where seed and machine are the same."""
    seeds = sorted(better.keys() & worse.keys())
    logs = [math.log(better[seed] / worse[seed]) for seed in seeds]
    times, interval = (math.exp(float(np.mean(logs))) if logs else math.nan), t_interval(logs)
    over = f"(n={len(seeds)})"
    if interval is None:
        cell = Cell(f"{times:.2f}× {over}", times, n=len(seeds))
    else:
        low, high = math.exp(interval.low), math.exp(interval.high)
        text = f"{times:.2f}× [{low:.2f}, {high:.2f}]{'*' if interval.excludes_zero else ''} {over}"
        cell = Cell(text, times, n=len(seeds), low=low, high=high)
    means = (float(np.mean(list(side.values()))) for side in (better, worse))
    sides = (Cell(f"{mean:.0f} images/s", mean) for mean in means)
    logged = Cell("", n=cell.n, low=interval.low, high=interval.high) if interval else cell
    return Cell(f"{published:.1f}×", published), Cell("speed of pre-training"), *sides, cell, Cell(_verdict(logged, 1))


def _verdict(cell: Cell, sign: int) -> str:
    if cell.low is None or cell.high is None or (cell.n or 0) < FEWEST:
        return NOT_JUDGED
    low, high = sorted((sign * cell.low, sign * cell.high))
    return "found" if low > 0 else "opposite" if high < 0 else "not found at this size"
