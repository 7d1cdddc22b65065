"""Intervals for the whole from a part: of a mean the closed form, and how often those of AP and mIoU hold the whole."""

import math

import numpy as np
import pytest
from support.many_images import detected, part_of, segmented

from mae_transfer.results.part import interval_of_whole, metric_of
from mae_transfer.run_folder.per_image import Arrays


def test_of_a_mean_it_is_the_textbooks() -> None:
    """Mean ± 1.96 s / sqrt(n) * sqrt(1 - n / N) (Cochran, Sampling Techniques, 2.26)."""
    values = np.random.default_rng(3).gamma(2.0, 3.0, 400)
    metric = metric_of({"ids": np.arange(400).astype("S"), "error": values}, "error")
    for of in (500, 1000, 100_000):
        found = interval_of_whole(metric, 400, of)
        half = 1.96 * values.std(ddof=1) / math.sqrt(400) * math.sqrt(1 - 400 / of)
        assert found is not None
        assert (found.low + found.high) / 2 == pytest.approx(values.mean(), abs=1e-9)
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)
    whole = interval_of_whole(metric, 400, 400)
    assert whole is not None
    assert [whole.low, whole.high] == pytest.approx([values.mean()] * 2, abs=1e-12), "all are known"
    assert interval_of_whole(lambda counts: np.full(len(counts), np.nan), 400, 500) is None


def coverage(arrays: Arrays, source: str, size: int, draws: int) -> tuple[float, float, float]:
    """Share in percent of parts whose interval holds the whole's value; mean error of a part's value and of the middle
    of its interval."""
    of, rng = len(arrays["ids"]), np.random.default_rng(size)
    value = float(metric_of(arrays, source)(np.ones((1, of), bool))[0])
    held, errors = 0, []
    for _ in range(draws):
        metric = metric_of(part_of(arrays, np.sort(rng.choice(of, size, replace=False))), source)
        found = interval_of_whole(metric, size, of)
        assert found is not None
        held += found.low <= value <= found.high
        errors.append((float(metric(np.ones((1, size), bool))[0]) - value, (found.low + found.high) / 2 - value))
    plain, middle = np.mean(errors, axis=0)
    return 100 * held / draws, float(plain), float(middle)


def test_it_holds_the_miou_of_the_whole() -> None:
    held, plain, middle = coverage(segmented(np.random.default_rng(0), 2000), "iou", 300, 100)
    assert held >= 90
    assert plain < -1, "rare classes: a part's mIoU is too low"
    assert abs(middle) < 0.8


def test_it_holds_the_ap_of_the_whole() -> None:
    held, plain, middle = coverage(detected(np.random.default_rng(1), 800), "box", 200, 8)
    assert held >= 75, "at least 6 of 8"
    assert plain > 1, "few objects: a part's AP is too high"
    assert abs(middle) < plain - 0.5, "8 draws leave an error of 0.8"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sizes", "draws"), [("iou", (200, 500, 1000), 300), ("box", (500,), 100)])
def test_it_holds_the_whole_95_times_in_100(kind: str, sizes: tuple[int, ...], draws: int) -> None:
    """Quoted in docs/verify.md; -s prints it."""
    found = []
    for world in range(3):
        rng = np.random.default_rng(world)
        arrays = segmented(rng, 2000) if kind == "iou" else detected(rng, 5000)
        for size in sizes:
            found.append(coverage(arrays, kind, size, draws))
            print(kind, "world", world, "images", size, "of", len(arrays["ids"]), [round(v, 2) for v in found[-1]])
    assert 93 <= np.mean([held for held, *_ in found]) <= 97
    assert all(held >= 88 for held, *_ in found)
