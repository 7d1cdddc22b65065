"""Reads a COCO-format annotation file, checks all of it, and keeps it small.

Follows detectron2's `load_coco_json`: category ids sorted and numbered 0..K-1, images in order of id, polygons of fewer
than 3 points dropped (and the object with them when none is left), crowds kept. Differs in that everything else which
would fail or mislead later is an error here: unknown and repeated ids, boxes without area, masks that cannot be read,
and annotation id 0, which every COCO evaluator takes for "not matched" (cocodataset/cocoapi#332).

Each image's record is kept pickled in one byte array. A list of dicts would be copied into every loader process as soon
as Python counts references to it.
"""

import json
import math
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from faster_coco_eval.core import mask as rle

from mae_transfer.errors import UserError

# The two flat boxes of COCO's own train2017 (cocodataset/cocoapi#355): annotation id -> image id.
FLAT_IN_COCO = {918: 200365, 2206849: 550395}
# The C++ evaluator holds ids as doubles.
LARGEST_ID = 2**53

Polygons = list[np.ndarray]
RLE = dict[str, Any]


class ObjectRecord(NamedTuple):
    """One annotation. `category` is contiguous, `bbox` is x, y, width, height in pixels."""

    id: int
    category: int
    bbox: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: Polygons | RLE
    """float64 arrays (2k,) of x, y pairs, or a run-length encoding with `size` and compressed `counts`."""


class ImageRecord(NamedTuple):
    id: int
    file_name: str
    height: int
    width: int
    objects: list[ObjectRecord]


class CocoAnnotations:
    """The checked content of one annotation file; item i is the `ImageRecord` of the i-th image in order of id.

    `names[k]` and `category_ids[k]` belong to class k; `image_ids`, `file_names` and `num_objects` (crowds not counted)
    are per image; `warnings` has a line for each kind of thing that was dropped. Raises UserError on anything wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data = _read_json(path)
        images, annotations, categories = (_rows(path, data, key) for key in ("images", "annotations", "categories"))
        self.category_ids, self.names = _categories(path, categories)
        records = _images(path, images)
        self.image_ids = np.array(sorted(records), dtype=np.int64)
        dropped = _add_objects(path, annotations, records, {c: k for k, c in enumerate(self.category_ids)})
        self.warnings = [f"{path}: dropped {count} {what}" for what, count in dropped.items()]
        ordered = [records[i] for i in self.image_ids.tolist()]
        self.file_names = [record.file_name for record in ordered]
        self.num_objects = np.array([sum(not o.crowd for o in r.objects) for r in ordered], dtype=np.int64)
        pickled = [pickle.dumps(record, protocol=5) for record in ordered]
        self._ends = np.cumsum([len(p) for p in pickled])
        self._bytes = np.frombuffer(b"".join(pickled), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> ImageRecord:
        start = self._ends[index - 1] if index else 0
        record: ImageRecord = pickle.loads(self._bytes[start : self._ends[index]].data)
        return record

    def check_files(self, folder: Path) -> None:
        """Raise UserError unless every image's file is in `folder`; lists each directory once."""
        by_directory: dict[str, list[str]] = {}
        for file_name in self.file_names:
            directory, name = os.path.split(file_name)
            by_directory.setdefault(directory, []).append(name)
        missing: list[str] = []
        for directory, names in by_directory.items():
            there = set(os.listdir(folder / directory)) if (folder / directory).is_dir() else set()
            missing += [os.path.join(directory, name) for name in names if name not in there]
        if missing:
            first = ", ".join(sorted(missing)[:3])
            raise UserError(
                f"{folder}: {len(missing)} of the {len(self)} images of {self.path} are not there: {first}"
                f"{', ...' if len(missing) > 3 else ''}; complete the folder or take them out of the annotation file"
            )


def check_same_categories(train: CocoAnnotations, val: CocoAnnotations) -> None:
    """Raise UserError unless both files have the same category ids and names, hence the same class numbers."""
    ours = dict(zip(train.category_ids, train.names, strict=True))
    theirs = dict(zip(val.category_ids, val.names, strict=True))
    for i in sorted(ours.keys() | theirs.keys()):
        if ours.get(i) != theirs.get(i):
            raise UserError(
                f"{val.path}: category id {i} is {theirs.get(i)!r} here and {ours.get(i)!r} in {train.path}; "
                "both files must list the same categories"
            )


def _fail(path: Path, what: str, remedy: str) -> NoReturn:
    raise UserError(f"{path}: {what}; {remedy}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file, object_hook=_pack_polygons)
    except OSError as error:
        _fail(path, f"cannot be read ({error.strerror})", "give a COCO-format annotation file")
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        _fail(path, f"not valid JSON ({error})", "the file may be cut short; fetch or write it again")
    if not isinstance(data, dict):
        _fail(path, f"not COCO format (a {type(data).__name__} at top level)", "it must be a JSON object with images")
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


def _rows(path: Path, data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    rows = data.get(key)
    if not isinstance(rows, list) or not all(type(row) is dict for row in rows):
        what = (
            f"not COCO format ({key!r} is missing or no list of objects; it has {', '.join(sorted(data)) or 'no keys'})"
        )
        _fail(path, what, "it must hold images, annotations and categories, such as instances_val2017.json")
    if not rows and key != "annotations":
        _fail(path, f"{key!r} is empty", "there is nothing to train on or evaluate")
    return rows


def _integers(path: Path, kind: str, rows: list[dict[str, Any]], key: str, lowest: int | None = None) -> np.ndarray:
    """Column `key` of all rows, each an integer >= `lowest`."""
    values = [row.get(key) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if type(value) is not int or abs(value) > LARGEST_ID or (lowest is not None and value < lowest):
            name = f"{kind} {row.get('id')}" if key != "id" else f"{kind} number {values.index(value) + 1}"
            at_least = "" if lowest is None else f" of at least {lowest}"
            _fail(
                path,
                f"{name} has {key} {value!r}" if key in row else f"{name} has no {key}",
                f"an integer{at_least} is needed",
            )
    return np.array(values, dtype=np.int64)


def _check_unique(path: Path, kind: str, ids: np.ndarray) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        again = values[counts > 1]
        _fail(
            path, f"{kind} id {again[0]} occurs {counts.max()} times ({len(again)} ids repeated)", "ids must be unique"
        )


def _categories(path: Path, rows: list[dict[str, Any]]) -> tuple[list[int], list[str]]:
    ids = _integers(path, "category", rows, "id")
    _check_unique(path, "category", ids)
    for row in rows:
        if not isinstance(row.get("name"), str):
            _fail(path, f"category {row['id']} has no name", "give every category a name")
    names = [rows[i]["name"] for i in np.argsort(ids)]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        _fail(path, f"{count} categories have the name {name!r}", "give each its own, so that AP per class has a name")
    return np.sort(ids).tolist(), names


def _images(path: Path, rows: list[dict[str, Any]]) -> dict[int, ImageRecord]:
    ids = _integers(path, "image", rows, "id")
    _check_unique(path, "image", ids)
    heights, widths = (_integers(path, "image", rows, key, lowest=1).tolist() for key in ("height", "width"))
    for row in rows:
        if not isinstance(row.get("file_name"), str) or not row["file_name"]:
            _fail(path, f"image {row['id']} has no file_name", "give the path of its file below the image folder")
    records = zip(ids.tolist(), (row["file_name"] for row in rows), heights, widths, strict=True)
    return {image_id: ImageRecord(image_id, name, height, width, []) for image_id, name, height, width in records}


def _add_objects(
    path: Path, rows: list[dict[str, Any]], images: dict[int, ImageRecord], classes: dict[int, int]
) -> Counter[str]:
    """Append every annotation to its image's objects; returns what was dropped, and how many of each."""
    dropped: Counter[str] = Counter()
    if not rows:
        return dropped
    ids = _integers(path, "annotation", rows, "id")
    _check_unique(path, "annotation", ids)
    if (ids == 0).any():
        _fail(path, "annotation id 0 is never matched by any COCO evaluator", "number the annotations from 1")
    for key, known in (("image_id", images.keys()), ("category_id", classes.keys())):
        values = _integers(path, "annotation", rows, key)
        unknown = ~np.isin(values, list(known))
        if unknown.any():
            at = int(unknown.argmax())
            what = f"annotation {ids[at]} has {key} {values[at]}, which is not in the file's list"
            _fail(path, f"{what} ({unknown.sum()} such annotations)", "complete the list or take them out")
    boxes = _boxes(path, rows)
    for row, box in zip(rows, boxes.tolist(), strict=True):
        crowd = row.get("iscrowd", 0)
        if crowd not in (0, 1):
            _fail(path, f"annotation {row['id']} has iscrowd {crowd!r}", "it must be 0 or 1")
        if row.get("ignore"):
            _fail(path, f"annotation {row['id']} has ignore {row['ignore']!r}", "COCO uses iscrowd for this")
        if type(row.get("area")) not in (int, float) or not 0 <= row["area"] < math.inf:
            what = f"annotation {row['id']} has area {row.get('area')!r}"
            _fail(path, what, "COCO's AP by size needs the mask area in pixels")
        if not crowd and min(box[2:]) <= 0:
            if FLAT_IN_COCO.get(row["id"]) == row["image_id"] and row["area"] == 0:
                dropped["objects of no area that are known from COCO train2017"] += 1
                continue
            what = f"annotation {row['id']} has a box of no area, width {box[2]:g} and height {box[3]:g}"
            _fail(path, what, "bbox is [x, y, width, height]; correct it or take it out")
        image = images[row["image_id"]]
        segmentation = _segmentation(path, row, image)
        if isinstance(segmentation, list):
            whole = [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]
            if len(whole) < len(segmentation):
                dropped["polygons of fewer than 3 points"] += len(segmentation) - len(whole)
            if not whole:
                dropped["objects without any polygon of 3 points"] += 1
                continue
            segmentation = whole
        category = classes[row["category_id"]]
        image.objects.append(
            ObjectRecord(row["id"], category, tuple(box), float(row["area"]), bool(crowd), segmentation)
        )
    return dropped


def _boxes(path: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    """All boxes as float64 (n, 4)."""
    for row in rows:
        box = row.get("bbox")
        if type(box) is not list or len(box) != 4 or any(type(v) not in (int, float) for v in box):
            _fail(path, f"annotation {row['id']} has bbox {box!r}", "four numbers are needed: x, y, width, height")
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64)
    infinite = ~np.isfinite(boxes).all(axis=1)
    if infinite.any():
        row = rows[int(infinite.argmax())]
        _fail(path, f"annotation {row['id']} has bbox {row['bbox']!r}", "its numbers must be finite")
    return boxes


def _segmentation(path: Path, row: dict[str, Any], image: ImageRecord) -> Polygons | RLE:
    """The annotation's polygons, finite but of any length, or its RLE compressed and known to fill the image."""
    value = row.get("segmentation")
    name = f"annotation {row['id']}"
    if not value:
        _fail(path, f"{name} has no segmentation", "mask AP needs a mask for every object: polygons or RLE")
    if isinstance(value, list):
        for polygon in value:
            if not isinstance(polygon, np.ndarray) or not math.isfinite(polygon.sum()):
                _fail(
                    path, f"{name} has a polygon that is no list of finite numbers", "write it as [x1, y1, x2, y2, ...]"
                )
        return value
    if isinstance(value, dict) and value.get("size") == [image.height, image.width]:
        counts = value.get("counts")
        try:
            if isinstance(counts, list):
                if all(type(c) is int and c >= 0 for c in counts) and sum(counts) == image.height * image.width:
                    return dict(rle.frPyObjects(value, image.height, image.width))
                raise ValueError("counts must be whole numbers that add up to height * width")
            if not isinstance(counts, str):
                raise ValueError("it has no counts")
            value = {"size": value["size"], "counts": counts.encode("ascii")}
            rle.decode(value)  # the library checks the decoded length
            return value
        except (ValueError, RuntimeError) as error:  # the library raises both; UnicodeEncodeError is a ValueError
            reason = str(error).rstrip(".")
    else:
        reason = f"size must be [height, width] = [{image.height}, {image.width}] of image {image.id}"
    _fail(path, f"{name} has a malformed RLE ({reason})", "write it with pycocotools.mask.encode")
