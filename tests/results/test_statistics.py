"""Intervals against scipy, closed forms and simulation; the bootstrap against its plain definition."""

import numpy as np
import pytest
from scipy import stats
from support.many_images import detected_by_two, part_of

from mae_transfer.results.statistics import accuracy_interval, ap_interval, miou_interval, resampled_ap, t_interval
from mae_transfer.run_folder.matches import AveragePrecision
from mae_transfer.run_folder.per_image import Arrays


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


def ap_difference(runs: tuple[Arrays, Arrays]) -> float:
    """Of the second run to the first."""
    every = np.ones((1, len(runs[0]["ids"])), bool)
    first, second = (float(AveragePrecision(run, "box")(every)[0]) for run in runs)
    return second - first


def drawn_interval(
    population: tuple[Arrays, Arrays], size: int, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Of some of the images: the difference, the ends of its interval, and how far the resamples are from it."""
    chosen = np.sort(rng.choice(len(population[0]["ids"]), size, replace=False))
    runs = (part_of(population[0], chosen), part_of(population[1], chosen))
    measured = ap_difference(runs)
    control, resampled = (resampled_ap(AveragePrecision(run, "box"), size) for run in runs)
    found = ap_interval(measured, resampled, control)
    assert found is not None
    return measured, found.low, found.high, float((resampled - control).mean()) - measured


def test_the_interval_of_ap_is_as_wide_as_differences_scatter() -> None:
    """And narrower than what one AP alone does: it is paired."""
    rng, size = np.random.default_rng(5), 200
    population = detected_by_two(rng, 10_000)
    measured, low, high, _ = np.array([drawn_interval(population, size, rng) for _ in range(3)]).T
    assert (low + high) / 2 == pytest.approx(measured, abs=1e-9)
    parts = [np.sort(rng.choice(10_000, size, replace=False)) for _ in range(40)]
    runs = [(part_of(population[0], part), part_of(population[1], part)) for part in parts]
    scatter = np.std([ap_difference(pair) for pair in runs], ddof=1)
    assert np.mean(high - low) / 2 == pytest.approx(1.96 * scatter, rel=0.3), "40 draws leave 11 %"
    every = np.ones((1, size), bool)
    assert scatter < np.std([float(AveragePrecision(one, "box")(every)[0]) for one, _ in runs], ddof=1)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "draws"), [(100, 120), (300, 80), (1000, 50)])
def test_the_interval_of_ap_covers_the_true_difference(size: int, draws: int) -> None:
    """Quoted in docs/results.md; -s prints it. The truth is the difference of 60,000 images."""
    held = []
    for world, (gain, shared) in enumerate([(0.25, 0.7), (0.0, 0.9), (0.6, 0.4)]):
        rng = np.random.default_rng(world)
        population = detected_by_two(rng, 60_000, gain, shared)
        truth = ap_difference(population)
        measured, low, high, moved = np.array([drawn_interval(population, size, rng) for _ in range(draws)]).T
        held.append(100 * np.mean((low <= truth) & (truth <= high)))
        numbers = held[-1], truth, np.mean(high - low) / 2, measured.mean() - truth, moved.mean()
        print(size, "images, world", world, [round(float(number), 2) for number in numbers])
    assert 93 <= np.mean(held) <= 97
    assert min(held) >= 89
