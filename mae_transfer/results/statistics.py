"""Intervals of the difference of two runs' metrics, at 95 %, paired over seeds or over val images. Needs no torch.

Over seeds: Student's t of the differences of runs of one seed, as of a paired t-test. It tells what another seed
(initialisation of the head, order of the images) would change; the val images are taken as given.

Over images: the percentile bootstrap, both runs on the same resampled images. It tells what other val images would
change; the two trained models are taken as given. Resamples are drawn from a fixed seed: the same files give the same
interval. AP takes longest and has fewer resamples: its interval is the difference ± 1.96 of their standard deviations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from mae_transfer.run_folder.matches import AveragePrecision

LEVEL = 0.95
RESAMPLES = 10_000
RESAMPLES_OF_VALUES = 2_000
"""Of numbers, where each resample is a sum over all images."""
RESAMPLES_OF_AP = 200
"""Their standard deviation is known to 5 %."""


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def wilson_interval(share: float, count: int, of: int | None = None) -> Interval:
    """Wilson's interval of a share of `count` independent images, of which `share` (0..1) were right.

    of: where the images are a part of a whole of so many, drawn without replacement, the interval of the whole's share;
    a part that is nearly the whole then tells more.
    """
    z = float(ndtri(0.5 + LEVEL / 2))
    part = of is not None and of > count
    count_as = count * (of - 1) / (of - count) if of is not None and part else float(count)
    centre = (share + z**2 / (2 * count_as)) / (1 + z**2 / count_as)
    half = z / (1 + z**2 / count_as) * math.sqrt(share * (1 - share) / count_as + z**2 / (4 * count_as**2))
    return Interval(max(centre - half, 0.0), min(centre + half, 1.0))


def t_interval(differences: Sequence[float]) -> Interval | None:
    """Of the mean of paired differences; None of fewer than two, and of equal ones: those of deterministic runs say
    nothing of what a seed changes."""
    count = len(differences)
    if count < 2:
        return None
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if deviation <= 1e-12 * max(1.0, abs(mean)):  # rounding of equal differences
        return None
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(count)
    return Interval(mean - half, mean + half)


def accuracy_interval(correct: np.ndarray, control: np.ndarray) -> Interval:
    """Of the difference in percent of two accuracies on the same images; bool (n,) each.

    A resample of n paired results is a multinomial draw of how many are won, lost and equal: exactly that bootstrap.
    """
    count = len(correct)
    won, lost = int((correct & ~control).sum()), int((~correct & control).sum())
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, np.array([won, lost, count - won - lost]) / count, size=RESAMPLES)
    return _percentiles(100 * (drawn[:, 0] - drawn[:, 1]) / count)


def miou_interval(
    intersection: np.ndarray, union: np.ndarray, control_intersection: np.ndarray, control_union: np.ndarray
) -> Interval:
    """Of the difference in percent of two mIoU on the same images; int64 (n, K) each.

    In each resample areas are summed over its images before they are divided, and a class that it does not have is left
    out of the mean, as in the metric.
    """
    count = len(intersection)
    rng = np.random.default_rng(0)
    totals = [array.astype(float) for array in (intersection, union, control_intersection, control_union)]
    differences = []
    for _ in range(RESAMPLES_OF_VALUES // _BLOCK):
        times = rng.multinomial(count, np.full(count, 1 / count), size=_BLOCK).astype(float)
        a, b, c, d = (times @ total for total in totals)  # whole numbers below 2^53: exact
        differences.append(mean_over_classes(a, b) - mean_over_classes(c, d))
    return _percentiles(100 * np.concatenate(differences))


def mean_interval(values: np.ndarray, control: np.ndarray) -> Interval:
    """Of the difference of two means over the same images; float64 (n,) each, in the unit of the metric."""
    differences, count = np.asarray(values, float) - np.asarray(control, float), len(values)
    rng, block = np.random.default_rng(0), max(1, min(_BLOCK, 10**7 // count))
    means = []
    for start in range(0, RESAMPLES_OF_VALUES, block):
        size = min(block, RESAMPLES_OF_VALUES - start)
        means.append(rng.multinomial(count, np.full(count, 1 / count), size=size) @ differences / count)
    return _percentiles(np.concatenate(means))


def resampled_ap(average_precision: AveragePrecision, count: int) -> np.ndarray:
    """(resamples,): AP in percent of `count` images drawn with replacement, the same ones for each run of so many."""
    rng = np.random.default_rng(0)
    return average_precision(rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES_OF_AP))


def ap_interval(difference: float, resampled: np.ndarray, control: np.ndarray) -> Interval | None:
    """Of a difference of two APs by those of the same resamples; None where one of these has no object.

    AP of a resample is too high: images that it has twice support each other's scores. Both runs' is, by nearly the
    same (docs/results.md), and the interval's middle is the measured difference.
    """
    half = float(ndtri(0.5 + LEVEL / 2)) * float(np.std(resampled - control, ddof=1))
    return Interval(difference - half, difference + half) if math.isfinite(half) else None


_BLOCK = 500  # resamples at a time, for the memory


def mean_over_classes(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """(resamples,): the mean of intersection over union (resamples, K) over the classes that occur."""
    occurs = union > 0
    means: np.ndarray = (intersection / np.where(occurs, union, 1)).sum(1) / occurs.sum(1)
    return means


def _percentiles(values: np.ndarray) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))
