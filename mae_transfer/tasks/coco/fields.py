"""The fields of a COCO file one by one: each is what COCO says it is, or an error that names the entry."""

import math
from array import array
from contextlib import suppress
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.masks import LONGEST, RLE, compressed, run_lengths

# The two flat boxes of COCO's own train2017 (cocodataset/cocoapi#355): annotation id -> image id.
FLAT_IN_COCO = {918: 200365, 2206849: 550395}
LARGEST_ID = 2**63 - 1
LARGEST_AREA = 2.0**63
LARGEST_SIDE = 10**6
"""Pixels of an image: the evaluator takes memory by the length of an outline."""


def fail(path: Path, what: str, remedy: str) -> NoReturn:
    raise UserError(f"{path}: {what}; {remedy}")


def values_of(rows: list[dict[str, Any]], key: str) -> list[Any]:
    """The values of a key, None where it is missing."""
    try:
        return list(map(itemgetter(key), rows))
    except KeyError:
        return [row.get(key) for row in rows]


def integers(
    path: Path, kind: str, rows: list[dict[str, Any]], key: str, lowest: int | None = None, start: int = 0
) -> np.ndarray:
    """Column `key` of all rows, each an integer >= `lowest`; the first row is entry number `start` of its list."""
    values = values_of(rows, key)
    with suppress(OverflowError):
        if set(map(type, values)) == {int}:
            column = np.array(values, dtype=np.int64)
            if column.min() >= (-LARGEST_ID if lowest is None else lowest):
                return column
    for place, (row, value) in enumerate(zip(rows, values, strict=True), start=start + 1):
        if type(value) is not int or abs(value) > LARGEST_ID or (lowest is not None and value < lowest):
            name = f"{kind} {row.get('id')}" if key != "id" else f"{kind} number {place}"
            at_least = " below 2**63" if lowest is None else f" of at least {lowest}"
            fail(
                path,
                f"{name} has {key} {value!r}" if key in row else f"{name} has no {key}",
                f"an integer{at_least} is needed",
            )
    return np.array(values, dtype=np.int64)


def check_unique(path: Path, kind: str, ids: np.ndarray) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        again = values[counts > 1]
        fail(
            path, f"{kind} id {again[0]} occurs {counts.max()} times ({len(again)} ids repeated)", "ids must be unique"
        )


def crowds_of(path: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    """Bool (n,)."""
    crowd = [row.get("iscrowd", 0) for row in rows]
    if not set(map(type, crowd)) <= {int} or not set(crowd) <= {0, 1} or any(row.get("ignore") for row in rows):
        for row, value in zip(rows, crowd, strict=True):
            if value not in (0, 1):
                fail(path, f"annotation {row['id']} has iscrowd {value!r}", "it must be 0 or 1")
            if row.get("ignore"):
                fail(path, f"annotation {row['id']} has ignore {row['ignore']!r}", "COCO uses iscrowd for this")
    return np.array(crowd, dtype=bool)


def is_flat(path: Path, row: dict[str, Any], box: list[float], crowd: bool) -> bool:
    """Whether an annotation is one of COCO's own without an area, which are left out; others are an error."""
    if crowd or min(box[2:]) > 0:
        return False
    if FLAT_IN_COCO.get(row["id"]) == row["image_id"] and row.get("area") == 0:
        return True
    what = f"annotation {row['id']} has a box of no area, width {box[2]:g} and height {box[3]:g}"
    fail(path, what, "bbox is [x, y, width, height]; correct it or take it out")


def areas_of(path: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    """Float64 (n,), NaN where an annotation has none."""
    areas = values_of(rows, "area")
    with suppress(OverflowError):
        if set(map(type, areas)) <= {int, float, type(None)}:
            found = np.array(areas, dtype=np.float64)
            given = np.array([area is not None for area in areas])
            if ((found[given] >= 0) & (found[given] < LARGEST_AREA)).all():
                return found
    for row, area in zip(rows, areas, strict=True):
        if area is not None and (type(area) not in (int, float) or not 0 <= area < LARGEST_AREA):
            what = f"annotation {row['id']} has area {repr(area)[:40]}"
            fail(path, what, "it must be the mask's area in pixels, or be left out")
    return np.array(areas, dtype=np.float64)


def boxes_of(path: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    """All boxes as float64 (n, 4)."""
    boxes = values_of(rows, "bbox")
    with suppress(TypeError, ValueError, OverflowError):
        numbers, lengths = _numbers(boxes)
        if (lengths == 4).all() and (np.abs(numbers) < LARGEST_AREA).all():
            return numbers.reshape(-1, 4)
    for row, box in zip(rows, boxes, strict=True):
        if type(box) is not list or len(box) != 4 or any(type(v) not in (int, float) for v in box):
            fail(path, f"annotation {row['id']} has bbox {box!r}", "four numbers are needed: x, y, width, height")
        if not all(abs(v) < LARGEST_AREA for v in box):
            fail(path, f"annotation {row['id']} has bbox {str(box)[:60]}", "its numbers must be finite")
    return np.array(boxes, dtype=np.float64)


def polygons_of(path: Path, rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The polygons of all rows, finite but of any length: all coordinates, numbers of each polygon, polygons of each
    row. A row without a list has none."""
    masks = [found if type(found) is list else () for found in values_of(rows, "segmentation")]
    polygons = list(chain.from_iterable(masks))
    try:
        coordinates, lengths = _numbers(polygons)
        if not np.isfinite(coordinates).all():
            raise ValueError("a number is none")
    except (TypeError, ValueError, OverflowError):
        wrong = next(row for row, mask in zip(rows, masks, strict=True) if not all(map(_is_polygon, mask)))
        what = f"annotation {wrong['id']} has a polygon that is no list of finite numbers"
        fail(path, what, "write it as [x1, y1, x2, y2, ...]")
    return coordinates, lengths, np.fromiter(map(len, masks), dtype=np.int64, count=len(masks))


def _numbers(lists: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """What the lists hold as float64, one after the other, and the lengths of the lists as int64.

    Raises TypeError, ValueError or OverflowError if one is no list of numbers.
    """
    found = array("d")
    for values in lists:
        found.fromlist(values)
    numbers = np.array(found, copy=None)
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    doubted = np.flatnonzero((numbers == 0) | (numbers == 1))  # `true` counts as 1 in an array
    owners = np.unique(np.searchsorted(np.cumsum(lengths), doubted, side="right"))
    if any(bool in map(type, lists[i]) for i in owners.tolist()):
        raise ValueError("true and false are no numbers")
    return numbers, lengths


def _is_polygon(value: object) -> bool:
    try:
        return type(value) is list and all(type(v) in (int, float) and math.isfinite(v) for v in value)
    except OverflowError:
        return False


def encoding_of(path: Path, number: int, value: object, image_id: int, height: int, width: int) -> RLE:
    """The run-length encoding of annotation `number`, compressed and known to fill its image."""
    name = f"annotation {number}"
    size = value.get("size") if isinstance(value, dict) else None
    if isinstance(value, dict) and size == [height, width] and all(type(side) is int for side in size):
        counts = value.get("counts")
        try:
            if isinstance(counts, list):
                if not all(type(c) is int and c >= 0 for c in counts):
                    raise ValueError("counts must be whole numbers, none below 0")
                if sum(counts) != height * width:
                    raise ValueError(f"its counts add up to {f'{sum(counts)}'[:20]} of {height * width}")
                if max(counts) > LONGEST:
                    raise ValueError(f"a run of more than {LONGEST} pixels is not read")
                return {"size": size, "counts": compressed([np.array(counts, np.int64)])[0]}
            if not isinstance(counts, str):
                raise ValueError("it has no counts")
            if not counts.isascii():
                raise ValueError("its counts have other characters than ASCII")
            value = {"size": value["size"], "counts": counts.encode("ascii")}
            runs = run_lengths(value["counts"])
            if runs.min() < 0 or runs.sum() != height * width:
                raise ValueError(f"its runs, of which none may be negative, add up to {runs.sum()} of {height * width}")
            return value
        except ValueError as error:
            reason = str(error).rstrip(".")
    else:
        reason = f"size must be [height, width] = [{height}, {width}] of image {image_id}, in whole numbers"
    fail(path, f"{name} has a malformed RLE ({reason})", "write it with pycocotools.mask.encode")
