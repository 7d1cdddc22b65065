"""Reads a COCO-format annotation file and checks all of it.

Follows detectron2's `load_coco_json`: category ids sorted and numbered 0..K-1, images in order of id, polygons of fewer
than 3 points dropped, crowds kept. Differs in that everything else which would fail or mislead later is an error here:
unknown and repeated ids, boxes without area, masks that cannot be read, objects of which nothing is left, and numbers
that contradict each other (`checks.py`). Ids may be any whole numbers: the evaluation numbers objects anew, since the
evaluators of COCO take id 0 for "not matched" (cocodataset/cocoapi#332).
"""

import os
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mae_transfer.data.index_cache import Index
from mae_transfer.data.json_stream import read_in_blocks
from mae_transfer.files import JSON
from mae_transfer.tasks.coco.checks import Objects, Report, check_objects
from mae_transfer.tasks.coco.fields import (
    LARGEST_SIDE,
    areas_of,
    boxes_of,
    check_unique,
    crowds_of,
    encoding_of,
    fail,
    integers,
    is_flat,
    polygons_of,
    values_of,
)
from mae_transfer.tasks.coco.masks import LEAST, Masks

MASK_ARRAYS = tuple(field.name for field in fields(Masks))
_OF_IMAGE = ("id", "file_name", "height", "width")
_OF_CATEGORY = ("id", "name")


@dataclass
class About:
    """What of an annotation file is no column."""

    category_ids: list[int]
    names: list[str]
    num_annotations: int
    has_masks: bool
    warnings: list[str]
    """Without the path that they begin with."""
    sha256: str


def read_annotations(path: Path, scored: bool) -> Index:
    """The columns of the file.

    Raises:
        OSError: it cannot be read.
        UserError: anything wrong with its content.
    """
    images, annotations, categories = _Rows(_OF_IMAGE), _Annotations(path), _Rows(_OF_CATEGORY)
    lists = {"images": images, "annotations": annotations, "categories": categories}
    try:
        data, sha256 = read_in_blocks(path, {key: rows.take for key, rows in lists.items()})
    except ValueError as error:
        fail(path, f"not valid JSON ({error})", "the file may be cut short; fetch or write it again")
    if not isinstance(data, dict):
        fail(path, f"not COCO format (a {type(data).__name__} at top level)", "it must be a JSON object with images")
    there = ", ".join(sorted({*data, *(key for key, rows in lists.items() if rows.given)})) or "no keys"
    for key, rows in lists.items():
        if not rows.given or rows.strange:
            what = f"not COCO format ({key!r} is missing or no list of objects; it has {there})"
            fail(path, what, "it must hold images, annotations and categories, such as instances_val2017.json")
        if not rows.count and key != "annotations":
            fail(path, f"{key!r} is empty", "there is nothing to train on or evaluate")
    category_ids, names = _categories(path, categories.kept)
    columns = _images(path, images.kept)
    images.kept.clear()
    warnings, has_masks = annotations.check(columns, np.array(category_ids), scored)
    warnings = [warning.removeprefix(f"{path}: ") for warning in warnings]
    return Index(asdict(About(category_ids, names, annotations.count, has_masks, warnings, sha256)), columns)


class _Rows:
    """The entries of a list, with some of their keys."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = frozenset(keys)
        self.given = self.strange = False
        self.count = 0
        self.kept: list[dict[str, Any]] = []

    def take(self, block: list[JSON]) -> None:
        self.given = True
        rows = [row for row in block if type(row) is dict]
        self.strange |= len(rows) < len(block)
        self.add(rows)
        self.count += len(block)

    def add(self, rows: list[dict[str, Any]]) -> None:
        self.kept += [{key: row[key] for key in self.keys & row.keys()} for row in rows]


class _Annotations(_Rows):
    """Annotations as columns, in the order of the file."""

    def __init__(self, path: Path) -> None:
        super().__init__(())
        self.path = path
        self._blocks: list[dict[str, np.ndarray]] = []
        self._coordinates = array("d")
        self._encoded: list[tuple[int, object]] = []

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Check the fields of some annotations, one by one."""
        if not rows:
            return
        path = self.path
        ids = integers(path, "annotation", rows, "id", start=self.count)
        image_ids, categories = (integers(path, "annotation", rows, key) for key in ("image_id", "category_id"))
        boxes, areas = boxes_of(path, rows), areas_of(path, rows)
        crowd = crowds_of(path, rows)
        flat = np.zeros(len(rows), dtype=bool)
        for i in np.flatnonzero(~crowd & (boxes[:, 2:].min(axis=1) <= 0)).tolist():
            flat[i] = is_flat(path, rows[i], boxes[i].tolist(), False)
        shapes = values_of(rows, "segmentation")
        coordinates, lengths, polygons = polygons_of(path, rows)
        self._coordinates.frombytes(coordinates.data.cast("B"))
        self._encoded += [
            (self.count + i, shape) for i, shape in enumerate(shapes) if shape and not isinstance(shape, list)
        ]
        bare = np.array([not shape for shape in shapes])
        block = {"ids": ids, "image_ids": image_ids, "categories": categories, "boxes": boxes, "areas": areas}
        self._blocks.append(
            block | {"crowd": crowd, "flat": flat, "bare": bare, "polygons": polygons, "lengths": lengths}
        )

    def check(self, columns: dict[str, np.ndarray], category_ids: np.ndarray, scored: bool) -> tuple[list[str], bool]:
        """Add the columns of objects to those of images; returns warnings, and whether there are masks."""
        path = self.path
        if not self._blocks:
            columns |= _no_objects(len(columns["image_ids"]))
            return [], True
        column = {name: np.concatenate([block[name] for block in self._blocks]) for name in self._blocks[0]}
        self._blocks.clear()
        ids, image_ids, categories = column["ids"], column["image_ids"], column["categories"]
        check_unique(path, "annotation", ids)
        for key, values, known in (
            ("image_id", image_ids, columns["image_ids"]),
            ("category_id", categories, category_ids),
        ):
            unknown = ~np.isin(values, known)
            if unknown.any():
                at = int(unknown.argmax())
                what = f"annotation {ids[at]} has {key} {values[at]}, which is not in the file's list"
                fail(path, f"{what} ({unknown.sum()} such annotations)", "complete the list or take them out")
        bare, flat, crowd, areas, boxes = (column[name] for name in ("bare", "flat", "crowd", "areas", "boxes"))
        if bare.any() and not bare.all():
            what = f"annotation {ids[bare.argmax()]} has no segmentation ({bare.sum()} of {len(ids)} have none)"
            fail(path, what, "give every object a mask, polygons or RLE, or take all out to score boxes alone")
        owners = np.searchsorted(columns["image_ids"], image_ids)
        sizes = columns["image_sizes"][owners]
        masks = self._masks(column, sizes)
        whole = (masks.lengths >= LEAST) & (masks.lengths % 2 == 0)
        drawn = masks.any_polygon(whole) | masks.encoded
        warnings = [] if bare.all() else _check_polygons(path, column, masks, drawn)
        kept = np.flatnonzero(~flat & (drawn | bare))
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)[kept]
        of_kept = (ids[kept], image_ids[kept], categories[kept], sizes[kept, ::-1].astype(np.float64), crowd[kept])
        objects = Objects(*of_kept, corners, areas[kept], None if bare.all() else masks.of(kept))
        lost = int(flat.sum())
        warnings += [f"{path}: dropped {lost} objects of no area that are COCO's own"] if lost else []
        warnings += check_objects(path, objects, scored=scored)
        if (ids == 0).any():
            warnings.append(f"{path}: an annotation has the id 0; it is scored, where pycocotools counts it as missed")
        areas[kept] = np.where(np.isnan(areas[kept]), objects.mask_areas, areas[kept])
        order = kept[np.argsort(owners[kept], kind="stable")]
        places = np.arange(len(columns["image_ids"]) + 1)
        columns |= {
            "num_objects": np.bincount(owners[kept][~crowd[kept]], minlength=len(places) - 1),
            "objects": order,
            "first_objects": np.searchsorted(owners[order], places),
            "ids": ids,
            "classes": np.searchsorted(category_ids, categories),
            "boxes": boxes,
            "areas": areas,
            "crowd": crowd,
        } | {f"mask_{name}": getattr(masks, name) for name in MASK_ARRAYS}
        return warnings, not bare.all()

    def _masks(self, column: dict[str, np.ndarray], sizes: np.ndarray) -> Masks:
        found: dict[int, bytes] = {}
        for row, value in self._encoded:
            height, width = sizes[row].tolist()
            number, image = int(column["ids"][row]), int(column["image_ids"][row])
            found[row] = encoding_of(self.path, number, value, image, height, width)["counts"]
        ends, lasts = _ends(column["lengths"]), _ends(column["polygons"])
        runs = np.zeros(len(sizes), dtype=np.int64)
        runs[list(found)] = [len(counts) for counts in found.values()]
        stops = _ends(runs)
        return Masks(
            np.array(self._coordinates, copy=None),
            ends,
            np.stack([lasts[:-1], lasts[1:]], axis=1),
            np.frombuffer(b"".join(found.values()), dtype=np.uint8),
            np.stack([stops[:-1], stops[1:]], axis=1),
            sizes,
        )


def _ends(lengths: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    return found


def _no_objects(images: int) -> dict[str, np.ndarray]:
    """The columns of a file without an annotation."""
    whole, real, pairs = np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 2), np.int64)
    columns: dict[str, np.ndarray] = {
        "num_objects": np.zeros(images, np.int64),
        "first_objects": np.zeros(images + 1, np.int64),
    }
    columns |= dict.fromkeys(("objects", "ids", "classes"), whole)
    columns |= {"boxes": np.zeros((0, 4)), "areas": real, "crowd": np.zeros(0, bool)}
    empty = Masks(real, np.zeros(1, np.int64), pairs, np.zeros(0, np.uint8), pairs, pairs)
    return columns | {f"mask_{name}": getattr(empty, name) for name in MASK_ARRAYS}


def _categories(path: Path, rows: list[dict[str, Any]]) -> tuple[list[int], list[str]]:
    ids = integers(path, "category", rows, "id")
    check_unique(path, "category", ids)
    for row in rows:
        if not isinstance(row.get("name"), str):
            fail(path, f"category {row['id']} has no name", "give every category a name")
    names = [rows[i]["name"] for i in np.argsort(ids)]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        fail(path, f"{count} categories have the name {name!r}", "give each its own, so that AP per class has a name")
    return np.sort(ids).tolist(), names


def _images(path: Path, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The columns of images: ids in the order of the file, and ids, names and sizes in order of id."""
    ids = integers(path, "image", rows, "id")
    check_unique(path, "image", ids)
    sizes = np.stack([integers(path, "image", rows, key, lowest=1) for key in ("height", "width")], axis=1)
    names: list[bytes] = []
    for row in rows:
        if not isinstance(row.get("file_name"), str) or not row["file_name"]:
            fail(path, f"image {row['id']} has no file_name", "give the path of its file below the image folder")
        if max(row["height"], row["width"]) > LARGEST_SIDE:
            fail(path, f"image {row['id']} is {row['width']}x{row['height']}", "give its size in pixels")
        try:
            names.append(os.fsencode(row["file_name"]))
        except UnicodeEncodeError:
            fail(path, f"image {row['id']} has file_name {row['file_name']!r}", "no file can have this name")
    order = np.argsort(ids)
    ordered = [names[i] for i in order.tolist()]
    return {
        "listed": ids,
        "image_ids": ids[order],
        "image_sizes": sizes[order],
        "name_bytes": np.frombuffer(b"".join(ordered), dtype=np.uint8),
        "name_ends": _ends(np.array([len(name) for name in ordered])),
    }


def _check_polygons(path: Path, column: dict[str, np.ndarray], masks: Masks, drawn: np.ndarray) -> list[str]:
    """Warnings of polygons that were dropped; raises UserError for objects that would vanish or change with them.

    Args:
        drawn: bool (n,), whether anything is left of a mask.
    """
    there = ~column["flat"]
    odd = masks.any_polygon(masks.lengths % 2 == 1) & there
    short = masks.any_polygon(masks.lengths < LEAST) & there
    gone = ~drawn & there
    report = Report(path, column["ids"], column["image_ids"])
    report.refuse(odd, "have a polygon of an odd count of numbers", "a point is x and y: write [x1, y1, x2, y2, ...]")
    report.refuse(
        gone & ~odd,
        "have no polygon of 3 points",
        "write [x1, y1, x2, y2, x3, y3, ...], also for a box: 4 numbers are a box to pycocotools, 2 points no mask",
    )
    report.warn(short & ~gone, "have polygons of fewer than 3 points", "these are left out")
    return report.warnings
