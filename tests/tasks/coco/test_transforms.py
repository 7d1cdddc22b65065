"""Jitter and resize against detectron2's own results (goldens), Pillow and NumPy by hand, and mask against mask."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference
from support import paths

from mae_transfer.tasks.coco.annotations import ObjectRecord
from mae_transfer.tasks.coco.config import DataConfig
from mae_transfer.tasks.coco.transforms import (
    bitmap_box,
    draw_jitter,
    evaluation_size,
    resize_for_evaluation,
    transform_objects,
)

GOLDENS = json.loads((paths.GOLDENS / "coco_transforms.json").read_text())


class Drawn:
    """A generator whose numbers are given, as shares of the range asked for."""

    def __init__(self, shares: list[float]) -> None:
        self.shares = list(shares)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.shares.pop(0)


def config(side: int = 96, **changes: object) -> DataConfig:
    return DataConfig.model_validate({"image_size": side, "scale_min": 0.1, "scale_max": 2.0} | changes)


def polygon_object(number: int, polygons: list[list[float]]) -> ObjectRecord:
    return ObjectRecord(number + 1, number, (0, 0, 1, 1), 1.0, False, [np.array(p, dtype=np.float64) for p in polygons])


def bitmap_object(bitmap: np.ndarray, crowd: bool = False) -> ObjectRecord:
    return ObjectRecord(1, 0, (0, 0, 1, 1), 1.0, crowd, reference.encode(np.asfortranarray(bitmap)))


def vertices(polygon: list[float] | np.ndarray) -> np.ndarray:
    """Vertices in an order of their own: which one an outline starts with depends on the GEOS version."""
    points = np.round(np.asarray(polygon, dtype=np.float64).reshape(-1, 2), 9)
    return points[np.lexsort(points.T)]


@pytest.mark.parametrize("case", GOLDENS["jitter"], ids=range(len(GOLDENS["jitter"])))
def test_jitter_is_detectron2s(case):
    height, width = case["size"]
    jitter = draw_jitter(height, width, config(case["side"], pad_value=case["pad_value"]), Drawn(case["uniform"]))
    assert list(jitter.padded) == case["out_size"]
    objects = [polygon_object(i, polygons) for i, polygons in enumerate(case["objects"])]
    boxes, classes, masks = transform_objects(objects, jitter)
    assert classes.tolist() == case["classes"]
    assert boxes.dtype == np.float32
    np.testing.assert_array_equal(boxes, np.array(case["boxes"], dtype=np.float32).reshape(-1, 4))
    for mine, theirs in zip(masks, case["polygons"], strict=True):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(vertices(a), vertices(b), rtol=0, atol=1e-8)


def test_goldens_cover_what_matters():
    cases = GOLDENS["jitter"]
    assert {case["pad_value"] for case in cases} == {None, 128}
    assert {case["uniform"][2] < 0.5 for case in cases} == {True, False}
    assert any(len(case["classes"]) < len(case["objects"]) for case in cases)
    parts = [(p, c["objects"][k]) for c in cases for p, k in zip(c["polygons"], c["classes"], strict=True)]
    assert any(len(after) > len(before) for after, before in parts)


@pytest.mark.parametrize("row", GOLDENS["evaluation_sizes"], ids=str)
def test_evaluation_size_is_detectron2s(row):
    height, width, side, new_height, new_width = row
    assert evaluation_size(height, width, side) == (new_height, new_width)


@pytest.mark.parametrize("pad_value", [None, 128])
@pytest.mark.parametrize("share", [0.02, 0.45, 0.9])
@pytest.mark.parametrize("flip", [0.0, 0.99])
def test_image_and_bitmap_by_hand(share, flip, pad_value):
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (70, 110, 3), dtype=np.uint8)
    bitmap = (rng.random((70, 110)) < 0.5).astype(np.uint8)
    side, position = 64, 0.3
    jitter = draw_jitter(70, 110, config(side, pad_value=pad_value), Drawn([share, position, flip]))

    ratio = min(side * (0.1 + 1.9 * share) / 70, side * (0.1 + 1.9 * share) / 110)
    height, width = round(70 * ratio), round(110 * ratio)
    top, left = round(max(height - side, 0) * position), round(max(width - side, 0) * position)

    def by_hand(array: np.ndarray, how: Image.Resampling, fill: int) -> np.ndarray:
        array = np.asarray(Image.fromarray(array).resize((width, height), how))[top : top + side, left : left + side]
        if pad_value is not None:
            missing = [(0, side - array.shape[0]), (0, side - array.shape[1]), (0, 0)][: array.ndim]
            array = np.pad(array, missing, constant_values=fill)
        return array[:, ::-1] if flip < 0.5 else array

    np.testing.assert_array_equal(
        np.asarray(jitter.image(Image.fromarray(pixels))), by_hand(pixels, Image.Resampling.BILINEAR, 128)
    )
    expected = by_hand(bitmap, Image.Resampling.NEAREST, 0)
    np.testing.assert_array_equal(jitter.bitmap(bitmap), expected)
    boxes, _, masks = transform_objects([bitmap_object(bitmap)], jitter)
    np.testing.assert_array_equal(masks[0], expected)
    rows, columns = expected.nonzero()
    assert boxes[0].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_polygons_and_bitmaps_stay_together():
    """The same object as polygon and as bitmap covers the same pixels after the same jitter."""
    outline = [20.0, 15.0, 90.0, 25.0, 70.0, 80.0, 30.0, 60.0]
    bitmap = reference.decode(reference.merge(reference.frPyObjects([outline], 100, 120)))
    for seed in range(12):
        rng = np.random.default_rng(seed)
        jitter = draw_jitter(100, 120, config(128, scale_min=0.6), rng)
        _, _, (polygons,) = transform_objects([polygon_object(0, [outline])], jitter)
        _, _, (mask,) = transform_objects([bitmap_object(bitmap)], jitter)
        drawn = reference.decode(reference.merge(reference.frPyObjects([p.tolist() for p in polygons], *jitter.padded)))
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.93


def test_crowds_and_what_the_crop_removed_are_left_out():
    bitmap = np.zeros((100, 100), np.uint8)
    bitmap[90:, 90:] = 1
    jitter = draw_jitter(100, 100, config(50), Drawn([0.999, 0.0, 0.9]))  # twice the side, cut at the top left
    inside = polygon_object(3, [[0, 0, 20, 0, 20, 20]])
    boxes, classes, masks = transform_objects(
        [bitmap_object(bitmap), polygon_object(1, [[90, 90, 99, 90, 99, 99]]), bitmap_object(1 - bitmap, True), inside],
        jitter,
    )
    assert classes.tolist() == [3]
    assert boxes.shape == (1, 4)
    assert len(masks) == 1
    boxes, classes, masks = transform_objects([bitmap_object(bitmap)], jitter)
    assert (boxes.shape, classes.shape, masks) == ((0, 4), (0,), [])
    assert bitmap_box(np.zeros((3, 3), np.uint8)).tolist() == [0, 0, 0, 0]


def test_draws_in_the_order_scale_position_flip():
    jitter = draw_jitter(300, 400, config(96), np.random.default_rng(8))
    scale, position, flip = np.random.default_rng(8).random(3)
    again = draw_jitter(300, 400, config(96), Drawn([scale, position, flip]))
    assert jitter == again
    assert draw_jitter(300, 400, config(96, flip=0.0), Drawn([0.5, 0.5, 0.0])).flip is False


def test_a_thin_image_keeps_a_pixel():
    jitter = draw_jitter(2, 2000, config(64), Drawn([0.0, 0.0, 0.9]))
    assert jitter.image(Image.new("RGB", (2000, 2))).size == (6, 1)
    assert resize_for_evaluation(Image.new("RGB", (2000, 2)), 64).size == (64, 1)


def test_resize_for_evaluation_is_pillows():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    for side in (45, 135):
        expected = Image.fromarray(pixels).resize((side, round(side * 2 / 3)), Image.Resampling.BILINEAR)
        assert resize_for_evaluation(Image.fromarray(pixels), side).tobytes() == expected.tobytes()
