"""Masks in few arrays: polygons that are none are left out wherever they stand; areas, and runs of an encoding."""

import numpy as np
import pytest
from pycocotools import mask as rle
from shapely.geometry import Polygon

from mae_transfer.tasks.coco.checks import measure_polygons
from mae_transfer.tasks.coco.masks import LONGEST, Masks, compressed, pixels, run_lengths

LENGTHS = [[6], [7, 8, 4], [0, 12], [6, 6, 10], [2, 9, 20, 3], [40]]
"""Numbers of the polygons of each mask; those of an odd count or of less than 6 are none."""


def masks() -> Masks:
    """Polygons around a centre each, so that none crosses itself."""
    rng = np.random.default_rng(0)
    coordinates = []
    for length in (length for lengths in LENGTHS for length in lengths):
        points = -(-length // 2)
        angles, radius = np.sort(rng.uniform(0, 2 * np.pi, points)), rng.uniform(5, 50, points)
        outline = rng.uniform(100, 200, 2) + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        coordinates.append(outline.reshape(-1)[:length])
    ends = np.cumsum([0, *map(len, coordinates)])
    lasts = np.cumsum([0, *map(len, LENGTHS)])
    none = np.zeros((len(LENGTHS), 2), dtype=np.int64)
    parts = np.stack([lasts[:-1], lasts[1:]], axis=1)
    return Masks(np.concatenate(coordinates), ends, parts, np.zeros(0, np.uint8), none, none + 480)


def test_whole_polygons_are_those_of_each_mask() -> None:
    for rows in ([0, 1, 2, 3, 4, 5], [4, 1, 1], [3]):
        some = masks().of(np.array(rows))
        points, starts, numbers = some.whole_polygons()
        wanted = [polygon for mask in some for polygon in mask]
        assert numbers.tolist() == [len(mask) for mask in some]
        assert [part.reshape(-1).tolist() for part in np.split(points, starts[1:])] == [p.tolist() for p in wanted]


def test_boxes_and_areas_are_those_of_shapely() -> None:
    boxes, areas = measure_polygons(masks())
    for box, area, mask in zip(boxes, areas, masks(), strict=True):
        shapes = [Polygon(polygon.reshape(-1, 2)) for polygon in mask if not isinstance(polygon, str)]
        low, high = np.array([shape.bounds[:2] for shape in shapes]), np.array([shape.bounds[2:] for shape in shapes])
        assert box.tolist() == [*low.min(0).tolist(), *high.max(0).tolist()]
        np.testing.assert_allclose(area, sum(shape.area for shape in shapes), rtol=1e-12)


def test_runs_and_pixels_are_those_that_pycocotools_draws() -> None:
    rng = np.random.default_rng(1)
    encoded, areas = [], []
    for share in (0.0, 0.02, 0.5, 1.0) * 80:
        size = tuple(rng.integers(1, 200, 2).tolist())
        bitmap = rng.random(size) < share
        flat = np.r_[False, bitmap.reshape(-1, order="F")]
        ends = np.r_[np.flatnonzero(np.diff(flat)), bitmap.size]
        mask = rle.encode(np.asfortranarray(bitmap, dtype=np.uint8))
        assert run_lengths(mask["counts"]).tolist() == np.diff(ends, prepend=0).tolist()
        encoded.append(mask)
        areas.append(bitmap.sum())
    assert pixels(encoded).tolist() == areas, "more of them than a byte counts"
    assert pixels([]).shape == (0,)
    far = {"size": [20000, 20000], "counts": [399_999_990, 5, 5]}
    assert run_lengths(rle.frPyObjects(far, 20000, 20000)["counts"]).tolist() == far["counts"]


def test_runs_are_compressed_as_by_pycocotools() -> None:
    rng = np.random.default_rng(2)
    runs = [rng.integers(0, 2 ** rng.integers(1, 24), rng.integers(1, 40)) for _ in range(300)]
    wanted = [rle.frPyObjects({"size": [1, int(of.sum())], "counts": of}, 1, int(of.sum()))["counts"] for of in runs]
    assert compressed(runs) == wanted
    assert compressed([]) == []
    wide = np.array([2**24, LONGEST, 0, 2**26, LONGEST, 1, 2])
    [text] = compressed([wide])
    assert run_lengths(text).tolist() == wide.tolist()


def number_in(groups: int, value: int) -> bytes:
    return bytes(48 + ((value >> 5 * i) & 31) + 32 * (i < groups - 1) for i in range(groups))


def test_numbers_longer_than_they_need_to_be_are_those_of_pycocotools_or_refused() -> None:
    """-20 in seven groups is -4 to pycocotools."""
    runs = [(2, 100), (2, 30), (2, 100), (6, -20), (2, 60)]
    text = b"".join(number_in(*run) for run in runs)
    assert run_lengths(text).tolist() == [100, 30, 100, 10, 160]
    assert rle.area({"size": [20, 20], "counts": text}) == 40
    with pytest.raises(ValueError, match="too long"):
        run_lengths(text.replace(number_in(6, -20), number_in(7, -20)))


@pytest.mark.parametrize("counts", [b"", b"P", b"5\x01", b"5p", b"o" * 6 + b"0", b"5 1"])
def test_bytes_that_are_no_runs_are_refused(counts: bytes) -> None:
    with pytest.raises(ValueError, match="it "):
        run_lengths(counts)
