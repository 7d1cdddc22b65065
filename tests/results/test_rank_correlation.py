"""Kendall's tau-b against scipy, and the coverage of its interval by simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from mae_transfer.results.rank_correlation import BOOTSTRAP, kendall_tau, tau_interval
from mae_transfer.results.statistics import Interval


@pytest.mark.parametrize("count", [2, 3, 4, 7, 30])
def test_tau_is_scipys_with_ties_and_without(count: int) -> None:
    rng = np.random.default_rng(count)
    for ties in (0, 3, 50):
        x, y = rng.normal(size=(2, count)) if not ties else rng.integers(0, ties, (2, count)).astype(float)
        theirs = stats.kendalltau(x, y, variant="b").statistic
        found = kendall_tau(x, y)
        assert found is None if theirs != theirs else found == pytest.approx(theirs, abs=1e-12)
    assert kendall_tau(np.arange(count), np.ones(count)) is None


def test_the_bootstrap_is_that_of_its_plain_definition() -> None:
    rng = np.random.default_rng(5)
    x = rng.integers(0, 12, BOOTSTRAP + 2).astype(float)
    y = x + rng.normal(0, 3, len(x)).round()
    picks = rng.integers(0, len(x), (2000, len(x)))
    plain = [stats.kendalltau(x[pick], y[pick]).statistic for pick in picks]
    found = tau_interval(x, y)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(np.nanpercentile(plain, [2.5, 97.5])), abs=0.03)


@pytest.mark.parametrize("count", [4, 5, 6])
def test_zero_is_left_out_where_the_exact_test_says_so(count: int) -> None:
    """All orders of a few encoders: p is the share of those with as large a tau, mid-p from five encoders on."""
    x = np.arange(count, dtype=float)
    values = np.array([kendall_tau(x, np.array(order)) for order in itertools.permutations(range(count))], dtype=float)
    for tau in sorted(set(values.round(9))):
        y = np.array(list(itertools.permutations(range(count)))[int(np.abs(values - tau).argmin())], dtype=float)
        same = np.mean(np.abs(np.abs(values) - abs(tau)) < 1e-9)
        p = np.mean(np.abs(values) >= abs(tau) - 1e-9) - (0 if count == 4 else same / 2)
        found = tau_interval(x, y)
        assert found is not None
        assert found.low <= tau + 0.002, "it holds the value itself, but for the grid"
        assert found.high >= tau - 0.002
        if abs(p - 0.05) > 0.01:  # simulated tails have noise of their own
            assert found.excludes_zero == (p < 0.05), (tau, p)


def test_too_few_encoders_have_no_interval() -> None:
    x = np.arange(3.0)
    assert tau_interval(x, x) is None
    assert tau_interval(np.arange(5.0), np.ones(5)) is None


def covered(count: int, tau: float, copula: str, times: int) -> float:
    rng = np.random.default_rng(count)
    hits = 0
    for _ in range(times):
        if copula == "normal":
            rho = np.sin(np.pi * tau / 2)
            x, noise = rng.standard_normal((2, count))
            y = rho * x + np.sqrt(1 - rho**2) * noise
        else:  # Clayton's, whose tau is theta / (theta + 2)
            theta = max(2 * tau / (1 - tau), 1e-3)
            x, v = rng.random((2, count))
            y = (x**-theta * (v ** (-theta / (1 + theta)) - 1) + 1) ** (-1 / theta)
        found = tau_interval(x, y)
        assert found is not None
        hits += found.low - 1e-9 <= tau <= found.high + 1e-9
    return hits / times


def test_coverage() -> None:
    """Single values of tau scatter, since tau of few encoders has few values; the mean is at the level."""
    shares = [covered(count, tau, "normal", 500) for count in (6, 9, 14) for tau in (0.0, 0.3, 0.6, 0.85)]
    assert 0.93 <= np.mean(shares) <= 0.97, shares
    assert min(shares) >= 0.91, shares
    assert max(shares) <= 0.99, shares
    assert np.mean([covered(BOOTSTRAP + 4, tau, "clayton", 60) for tau in (0.3, 0.7)]) >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("copula", ["normal", "clayton"])
@pytest.mark.parametrize("count", [4, 5, 6, 8, 10, 12, 15, 16, 20, 30])
def test_coverage_of_every_size(count: int, copula: str) -> None:
    shares = [covered(count, tau, copula, 1000) for tau in (0.0, 0.15, 0.3, 0.45, 0.6, 0.7, 0.85, 0.93)]
    print(count, copula, shares, np.mean(shares))
    assert 0.93 <= np.mean(shares) <= (0.99 if count == 4 else 0.97)  # of four: whole tails, so too wide
    assert min(shares) >= 0.90


def test_ties_tell_of_no_order() -> None:
    few = np.array([1.0, 1, 1, 1, 2])
    assert tau_interval(few, few) == Interval(-1.0, 1.0), "an exact permutation test has p = 0.2"
    one_order = np.arange(17.0)
    interval = tau_interval(one_order, one_order)
    assert interval is not None
    assert 0.5 < interval.low < 0.99
    assert interval.high == 1
