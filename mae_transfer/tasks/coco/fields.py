"""The fields of a COCO file one by one: each is what COCO says it is, or an error that names the entry."""

import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from faster_coco_eval.core import mask as rle

from mae_transfer.errors import UserError
from mae_transfer.files import parse_json
from mae_transfer.tasks.coco.checks import RLE, Polygons

# The two flat boxes of COCO's own train2017 (cocodataset/cocoapi#355): annotation id -> image id.
FLAT_IN_COCO = {918: 200365, 2206849: 550395}
LARGEST_ID = 2**63 - 1
LARGEST_AREA = 2.0**63
LARGEST_SIDE = 10**6
"""Pixels of an image: the evaluator takes memory by the length of an outline."""


def fail(path: Path, what: str, remedy: str) -> NoReturn:
    raise UserError(f"{path}: {what}; {remedy}")


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = parse_json(path.read_bytes(), _pack_polygons)
    except OSError as error:
        fail(path, f"cannot be read ({error.strerror})", "give a COCO-format annotation file")
    except ValueError as error:
        fail(path, f"not valid JSON ({error})", "the file may be cut short; fetch or write it again")
    if not isinstance(data, dict):
        fail(path, f"not COCO format (a {type(data).__name__} at top level)", "it must be a JSON object with images")
    return data


def _pack_polygons(node: dict[str, Any]) -> dict[str, Any]:
    """While parsing: polygons as arrays, since COCO train's 45 million coordinates are 1.4 GB of Python floats."""
    polygons = node.get("segmentation")
    if isinstance(polygons, list):
        node["segmentation"] = [_packed(polygon) for polygon in polygons]
    return node


def _packed(polygon: Any) -> Any:
    """The polygon as float64 (2k,), or unchanged when it is no list of numbers."""
    try:
        array = np.array(polygon)
    except (ValueError, OverflowError):  # ragged; integers beyond 64 bits
        return polygon
    return array.astype(np.float64) if array.ndim == 1 and array.dtype.kind in "if" else polygon


def rows_of(path: Path, data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    rows = data.get(key)
    if not isinstance(rows, list) or not all(type(row) is dict for row in rows):
        what = (
            f"not COCO format ({key!r} is missing or no list of objects; it has {', '.join(sorted(data)) or 'no keys'})"
        )
        fail(path, what, "it must hold images, annotations and categories, such as instances_val2017.json")
    if not rows and key != "annotations":
        fail(path, f"{key!r} is empty", "there is nothing to train on or evaluate")
    return rows


def integers(path: Path, kind: str, rows: list[dict[str, Any]], key: str, lowest: int | None = None) -> np.ndarray:
    """Column `key` of all rows, each an integer >= `lowest`."""
    values = [row.get(key) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if type(value) is not int or abs(value) > LARGEST_ID or (lowest is not None and value < lowest):
            name = f"{kind} {row.get('id')}" if key != "id" else f"{kind} number {values.index(value) + 1}"
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


def is_crowd(path: Path, row: dict[str, Any]) -> bool:
    crowd = row.get("iscrowd", 0)
    if crowd not in (0, 1):
        fail(path, f"annotation {row['id']} has iscrowd {crowd!r}", "it must be 0 or 1")
    if row.get("ignore"):
        fail(path, f"annotation {row['id']} has ignore {row['ignore']!r}", "COCO uses iscrowd for this")
    return bool(crowd)


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
    for row in rows:
        area = row.get("area")
        if area is not None and (type(area) not in (int, float) or not 0 <= area < LARGEST_AREA):
            what = f"annotation {row['id']} has area {str(area)[:40]}"
            fail(path, what, "it must be the mask's area in pixels, or be left out")
    return np.array([math.nan if row.get("area") is None else float(row["area"]) for row in rows])


def boxes_of(path: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    """All boxes as float64 (n, 4)."""
    for row in rows:
        box = row.get("bbox")
        if type(box) is not list or len(box) != 4 or any(type(v) not in (int, float) for v in box):
            fail(path, f"annotation {row['id']} has bbox {box!r}", "four numbers are needed: x, y, width, height")
        if not all(abs(v) < LARGEST_AREA for v in box):
            fail(path, f"annotation {row['id']} has bbox {str(box)[:60]}", "its numbers must be finite")
    return np.array([row["bbox"] for row in rows], dtype=np.float64)


def masks_there(path: Path, rows: list[dict[str, Any]]) -> bool:
    """Whether the annotations have masks; raises UserError unless all have one, or none has."""
    bare = [row["id"] for row in rows if not row.get("segmentation")]
    if bare and len(bare) < len(rows):
        what = f"annotation {bare[0]} has no segmentation ({len(bare)} of {len(rows)} have none)"
        fail(path, what, "give every object a mask, polygons or RLE, or take all out to score boxes alone")
    return not bare


def segmentation_of(path: Path, row: dict[str, Any], image_id: int, height: int, width: int) -> Polygons | RLE:
    """The annotation's polygons, finite but of any length, or its RLE compressed and known to fill the image."""
    value = row.get("segmentation")
    name = f"annotation {row['id']}"
    if isinstance(value, list):
        for polygon in value:
            if not isinstance(polygon, np.ndarray) or not math.isfinite(polygon.sum()):
                fail(
                    path, f"{name} has a polygon that is no list of finite numbers", "write it as [x1, y1, x2, y2, ...]"
                )
        return value
    size = value.get("size") if isinstance(value, dict) else None
    if isinstance(value, dict) and size == [height, width] and all(type(side) is int for side in size):
        counts = value.get("counts")
        try:
            if isinstance(counts, list):
                if all(type(c) is int and c >= 0 for c in counts) and sum(counts) == height * width:
                    return dict(rle.frPyObjects(value, height, width))
                raise ValueError("counts must be whole numbers that add up to height * width")
            if not isinstance(counts, str):
                raise ValueError("it has no counts")
            value = {"size": value["size"], "counts": counts.encode("ascii")}
            rle.decode(value)  # the library checks the decoded length
            return value
        except (ValueError, RuntimeError) as error:  # the library raises both; UnicodeEncodeError is a ValueError
            reason = str(error).rstrip(".")
    else:
        reason = f"size must be [height, width] = [{height}, {width}] of image {image_id}, in whole numbers"
    fail(path, f"{name} has a malformed RLE ({reason})", "write it with pycocotools.mask.encode")
