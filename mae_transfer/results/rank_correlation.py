"""Kendall's tau-b of two scores of the same encoders, and a 95 % interval over encoders. Needs no torch.

Encoders are taken as drawn from a larger number of encoders. Those of one family are alike, so that the interval is
rather too narrow than too wide.

From `BOOTSTRAP` encoders on it is the percentile bootstrap over encoders (Efron and Tibshirani 1993, chapter 13). With
fewer, and where all are in one order, that one is far too narrow: so are all resamples. There it is the parametric
bootstrap with the test inverted (Carpenter 1999, "Test inversion bootstrap confidence intervals", JRSS B 61): all tau
of which neither tail of simulated values, from the found one outwards, is under 2.5 %. Scores are simulated as
bivariate normal, where rho = sin(pi tau / 2) (Kruskal 1958, "Ordinal measures of association", JASA 53); tau depends
on ranks alone. A tail has half of the probability of the found value itself (mid-p, Lancaster 1961); of four encoders
the whole, since mid-p would leave out zero at an exact p of 8 %. docs/results.md has the coverage.
"""

from functools import cache

import numpy as np

from mae_transfer.results.statistics import LEVEL, RESAMPLES_OF_VALUES, Interval

FEWEST = 4
"""Of fewer encoders no order is unlikely: three are in the same order by chance once in six times."""
BOOTSTRAP = 16
DRAWS = 4000
_GRID = 0.999 * np.sin(np.linspace(-np.pi / 2, np.pi / 2, 61))
_ROUNDING = 1e-9


def kendall_tau(x: np.ndarray, y: np.ndarray) -> float | None:
    """tau-b of two scores (n,); None where a score ties all.

    Concordant less discordant pairs, over the geometric mean of the numbers of pairs that are not tied in x and in y
    (Kendall 1945, "The treatment of ties in ranking problems", Biometrika 33).
    """
    found = _weighted(_signs(x), _signs(y), np.ones((1, len(x))))
    return float(found[0]) if len(found) else None


def tau_interval(x: np.ndarray, y: np.ndarray) -> Interval | None:
    """Of tau-b, over encoders; None under `FEWEST` of them, and where a score ties all.

    Ties tell of no order: the interval is that of as many encoders as there are different scores, under `FEWEST` all.
    """
    count, tau = len(x), kendall_tau(x, y)
    distinct = min(len(np.unique(x)), len(np.unique(y)))
    if count < FEWEST or tau is None:
        return None
    if distinct < FEWEST:
        return Interval(-1.0, 1.0)
    if count < BOOTSTRAP or abs(tau) > 1 - _ROUNDING:
        return _inverted(distinct, round(tau, 9))
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES_OF_VALUES)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(_weighted(_signs(x), _signs(y), times.astype(float)), [tail, 100 - tail])
    return Interval(float(low), float(high))


def _signs(values: np.ndarray) -> np.ndarray:
    """(n, n): the sign of each difference."""
    values = np.asarray(values, float)
    return np.sign(values[:, None] - values)


def _weighted(x: np.ndarray, y: np.ndarray, times: np.ndarray) -> np.ndarray:
    """tau-b of each resample, in which encoder i is times[r, i] times; those in which a score ties all are left out."""

    def pairs(signs: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.einsum("ri,ri->r", times @ signs, times)
        return found

    concordant, of_x, of_y = pairs(x * y), pairs(np.abs(x)), pairs(np.abs(y))
    there = (of_x > 0) & (of_y > 0)
    return concordant[there] / np.sqrt(of_x[there] * of_y[there])


@cache
def _inverted(count: int, tau: float) -> Interval:
    simulated, tail = _simulated(count), (1 - LEVEL) / 2
    at_least = (simulated >= tau - _ROUNDING).mean(1)
    above = (simulated > tau + _ROUNDING).mean(1)
    same = (at_least - above) * (1.0 if count == FEWEST else 0.5)
    upper = np.maximum.accumulate(above + same)
    lower = np.maximum.accumulate((1 - at_least + same)[::-1])
    low = -1.0 if upper[0] >= tail else float(np.interp(tail, upper, _GRID))
    high = 1.0 if lower[0] >= tail else float(np.interp(tail, lower, _GRID[::-1]))
    return Interval(low, high)


@cache
def _simulated(count: int) -> np.ndarray:
    """(len(_GRID), DRAWS): tau of `count` draws of a bivariate normal with each tau of the grid."""
    rng = np.random.default_rng(0)
    x, noise = np.sort(rng.standard_normal((DRAWS, count)), axis=1), rng.standard_normal((DRAWS, count))
    found = np.empty((len(_GRID), DRAWS))
    for row, tau in zip(found, _GRID, strict=True):
        y = np.sin(np.pi * tau / 2) * x + np.cos(np.pi * tau / 2) * noise
        concordant = sum((y[:, lag:] > y[:, :-lag]).sum(1) for lag in range(1, count))  # x ascends
        row[:] = 4 * concordant / (count * (count - 1)) - 1
    return found
