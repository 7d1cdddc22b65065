"""Intervals against scipy, closed forms and simulation; the bootstrap against its plain definition."""

import numpy as np
import pytest
from scipy import stats

from mae_transfer.results.statistics import accuracy_interval, miou_interval, t_interval


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_the_t_interval_is_scipys(count: int) -> None:
    rng = np.random.default_rng(count)
    one, other = rng.normal(50, 1, count), rng.normal(49, 1, count)
    found = t_interval(list(one - other))
    theirs = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-10)


def test_runs_that_no_seed_changes_have_no_interval_over_seeds() -> None:
    assert t_interval([1.5]) is None
    assert t_interval([1.5, 1.5, 1.5]) is None
    assert t_interval([0.1 + 0.2, 0.3, 0.3]) is None, "equal but for rounding"


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_t_interval_covers_the_true_difference(seeds: int) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0.7, 0.3, (4000, seeds))
    intervals = [t_interval(list(row)) for row in noise]
    covered = np.mean([interval is not None and interval.low <= 0.7 <= interval.high for interval in intervals])
    assert 0.93 <= covered <= 0.97


def test_the_bootstrap_of_images_covers_the_true_difference() -> None:
    """300 images that two models have right with correlated chances; the truth is the difference of the chances."""
    rng = np.random.default_rng(1)
    hits, truth = 0, 100 * 0.05  # 70 % and 65 %
    for _ in range(600):
        joint = rng.choice(4, size=300, p=[0.55, 0.15, 0.10, 0.20])  # both, first, second, none
        found = accuracy_interval(joint <= 1, (joint == 0) | (joint == 2))
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / 600 <= 0.97


def test_the_multinomial_shortcut_is_the_bootstrap_of_images() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.random(200) < 0.7, rng.random(200) < 0.6
    picks = rng.integers(0, 200, (20_000, 200))
    plain = 100 * (one[picks].mean(1) - other[picks].mean(1))
    found = accuracy_interval(one, other)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.51)  # one image
    assert accuracy_interval(one, one).excludes_zero is False


def test_the_bootstrap_of_miou_is_that_of_its_plain_definition() -> None:
    one, other = areas(250, 0.75, 0), areas(250, 0.70, 1)
    rng = np.random.default_rng(3)
    plain = []
    for _ in range(4000):
        picks = rng.integers(0, 250, 250)
        means = []
        for intersection, union in (one, other):
            total = union[picks].sum(0)
            means.append(np.mean([i / u for i, u in zip(intersection[picks].sum(0), total, strict=True) if u]))
        plain.append(100 * (means[0] - means[1]))
    found = miou_interval(*one, *other)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.25)


def areas(images: int, quality: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unions of a few of 6 classes in each image, the last of them nowhere, and the share of them that is hit."""
    union = np.random.default_rng(9).integers(0, 4000, (images, 6)) * (
        np.random.default_rng(8).random((images, 6)) < 0.4
    )
    union[:, 5] = 0
    return (union * np.random.default_rng(seed).uniform(quality - 0.2, quality + 0.2, union.shape)).astype(int), union


def test_the_bootstrap_of_miou_covers_the_true_difference() -> None:
    """The truth is of a very large set from the same distribution as sets of 300 images."""
    rng, classes = np.random.default_rng(4), 5

    def draw(images: int) -> list[np.ndarray]:
        union = rng.integers(500, 4000, (images, classes)) * (rng.random((images, classes)) < 0.5)
        shares = [rng.uniform(0.5, 1, union.shape), rng.uniform(0.45, 1, union.shape)]
        hits = [(union * share).astype(int) for share in shares]
        return [hits[0], union, hits[1], union]

    large = [array.sum(0) for array in draw(400_000)]
    truth = 100 * (np.mean(large[0] / large[1]) - np.mean(large[2] / large[3]))
    intervals = [miou_interval(*draw(300)) for _ in range(150)]
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert 0.90 <= covered <= 0.99  # 95 % of 150 is known to +- 3.5 points only


def test_the_same_results_give_the_same_interval() -> None:
    one, other = areas(50, 0.7, 0), areas(50, 0.6, 1)
    assert miou_interval(*one, *other) == miou_interval(*one, *other)
