"""What a part of the val images tells of the whole, of metrics that are no share of images. Needs no torch.

AP and mIoU of a part are off by more than chance: classes have few objects there, or none. On parts of m images the
expected metric is taken as that of the whole plus c / sqrt(m), and c is read from halves of the part. The estimate for
the whole of N images, from a part of n, is

    T(part) = metric(part) + f * (metric(part) - mean of metric(half)),  f = (1 - sqrt(n / N)) / (sqrt(2) - 1)

and the interval is T ± 1.96 standard errors. These are the spread of T over smaller parts, which have a share `KEEP` of
the part's images, drawn without replacement: their variance is that of T times (1 - KEEP) / KEEP. As the part too is
drawn without replacement, its own is smaller by 1 - n / N. Halves come in complementary pairs: their mean has little
noise, and what remains is subtracted. tests/results/test_part.py measures how often the interval holds the whole.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from scipy.special import ndtri

from mae_transfer.results.statistics import LEVEL, Interval, mean_over_classes
from mae_transfer.run_folder.matches import AveragePrecision
from mae_transfer.run_folder.per_image import IOU, KINDS, Arrays, dense, values_of

LEAST = 100
"""Images of a part; of fewer an interval has not been measured."""
KEEP = 2 / 3
PARTS, PAIRS = 100, 2
"""Parts of the part, and pairs of halves of each."""
FIRST_PAIRS = 50
"""Pairs of halves of the part itself."""
Metric: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Bool (B, n), whether each image counts -> (B,)."""


def metric_of(arrays: Arrays, source: str) -> Metric:
    """The metric of a part of a run's images, by what it follows from (`run_folder/per_image.py`)."""
    if source in KINDS:
        return AveragePrecision(arrays, source)
    if source == IOU:
        intersection, union = dense(arrays, 1 + int(arrays["label"].max(initial=0)))
        areas = intersection.astype(float), union.astype(float)  # whole numbers below 2^53: exact
        return lambda counts: 100 * mean_over_classes(*(counts @ area for area in areas))
    values = values_of(arrays, source)
    unit = 100 if values.dtype == bool else 1
    return lambda counts: unit * (counts @ values.astype(float)) / counts.sum(1)


def interval_of_whole(metric: Metric, count: int, of: int) -> Interval | None:
    """At 95 %, for the metric of `of` images of which `count` were drawn at random without replacement.

    None where some part of the part has no value.
    """
    rng = np.random.default_rng(0)
    factor = (1 - math.sqrt(count / of)) / (math.sqrt(2) - 1)
    everything = np.ones((1, count), bool)
    value = float(metric(everything)[0])
    estimate = value + factor * (value - float(_halves(metric, everything, FIRST_PAIRS, rng).mean()))
    parts = np.array([_drawn(everything[0], round(KEEP * count), rng) for _ in range(PARTS)])
    halves = _halves(metric, parts, PAIRS, rng)
    estimates = metric(parts) * (1 + factor) - factor * halves.mean(1)
    noise = factor**2 * halves.var(1, ddof=1).mean() / PAIRS
    variance = max(estimates.var(ddof=1) - noise, 0) * KEEP / (1 - KEEP) * (1 - count / of)
    half = float(ndtri(0.5 + LEVEL / 2)) * math.sqrt(variance)
    if not math.isfinite(estimate + half):
        return None
    return Interval(estimate - half, estimate + half)


def _drawn(images: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Bool (n,): so many of those that are set in bool (n,)."""
    drawn = np.zeros(len(images), bool)
    drawn[rng.permutation(np.flatnonzero(images))[:count]] = True
    return drawn


def _halves(metric: Metric, parts: np.ndarray, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """(P, pairs): means of the metric over two complementary halves of each of the parts bool (P, n)."""
    means = np.empty((len(parts), pairs))
    for mean, part in zip(means, parts, strict=True):
        halves = np.array([_drawn(part, int(part.sum()) // 2, rng) for _ in range(pairs)])
        mean[:] = (metric(halves) + metric(part & ~halves)) / 2
    return means
