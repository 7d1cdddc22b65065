"""Reads a COCO-format annotation file, checks all of it, and keeps it small.

Follows detectron2's `load_coco_json`: category ids sorted and numbered 0..K-1, images in order of id, polygons of fewer
than 3 points dropped, crowds kept. Differs in that everything else which would fail or mislead later is an error here:
unknown and repeated ids, boxes without area, masks that cannot be read, objects of which nothing is left, and numbers
that contradict each other (`checks.py`). Ids may be any whole numbers: the evaluation numbers objects anew, since the
evaluators of COCO take id 0 for "not matched" (cocodataset/cocoapi#332).

Each image's record is kept pickled in one byte array. A list of dicts would be copied into every loader process as soon
as Python counts references to it.
"""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.checks import RLE, Objects, Polygons, Report, check_objects
from mae_transfer.tasks.coco.fields import (
    LARGEST_SIDE,
    areas_of,
    boxes_of,
    check_unique,
    fail,
    integers,
    is_crowd,
    is_flat,
    masks_there,
    read_json,
    rows_of,
    segmentation_of,
)


class ObjectRecord(NamedTuple):
    """One annotation. `category` is contiguous, `bbox` is x, y, width, height in pixels."""

    id: int
    category: int
    bbox: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: Polygons | RLE | None
    """float64 arrays (2k,) of x, y pairs, or a run-length encoding with `size` and compressed `counts`; None in a file
    of boxes alone."""


class ImageRecord(NamedTuple):
    id: int
    file_name: str
    height: int
    width: int
    objects: list[ObjectRecord]


class CocoAnnotations:
    """The checked content of one annotation file; item i is the `ImageRecord` of the i-th image in order of id.

    `names[k]` and `category_ids[k]` belong to class k; `image_ids`, `file_names` and `num_objects` (crowds not counted)
    are per image; `listed` are the ids in the order of the file; `num_annotations` is that of the file; `has_masks` is
    False for a file of boxes alone; `warnings` has a line for each kind of thing that was dropped. Raises UserError on
    anything wrong.

    scored: detections are compared with its boxes. They are not in a file that is trained on alone, whose boxes may be
    off their masks: training takes those of the masks.
    """

    def __init__(self, path: Path, *, scored: bool = True) -> None:
        self.path = path
        data = read_json(path)
        images, annotations, categories = (rows_of(path, data, key) for key in ("images", "annotations", "categories"))
        self.category_ids, self.names = _categories(path, categories)
        records = _images(path, images)
        self.listed = np.array(list(records), dtype=np.int64)
        self.image_ids = np.sort(self.listed)
        self.num_annotations = len(annotations)
        classes = {c: k for k, c in enumerate(self.category_ids)}
        self.warnings, self.has_masks = _add_objects(path, annotations, records, classes, scored)
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


def check_same_kind(train: CocoAnnotations, val: CocoAnnotations) -> list[str]:
    """A line for data of boxes alone; raises UserError if one of the files has masks and the other has none."""
    if train.has_masks != val.has_masks:
        masked, bare = (train, val) if train.has_masks else (val, train)
        raise UserError(
            f"{bare.path}: none of its {bare.num_annotations} annotations has a segmentation, while all "
            f"{masked.num_annotations} of {masked.path} have one; give both files masks, or take them out of both to "
            "score boxes alone"
        )
    if train.has_masks:
        return []
    return [f"{train.path}, {val.path}: boxes without masks: the detector has no mask head, and box AP alone is scored"]


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


def _images(path: Path, rows: list[dict[str, Any]]) -> dict[int, ImageRecord]:
    ids = integers(path, "image", rows, "id")
    check_unique(path, "image", ids)
    heights, widths = (integers(path, "image", rows, key, lowest=1).tolist() for key in ("height", "width"))
    for row in rows:
        if not isinstance(row.get("file_name"), str) or not row["file_name"]:
            fail(path, f"image {row['id']} has no file_name", "give the path of its file below the image folder")
        if max(row["height"], row["width"]) > LARGEST_SIDE:
            fail(path, f"image {row['id']} is {row['width']}x{row['height']}", "give its size in pixels")
    records = zip(ids.tolist(), (row["file_name"] for row in rows), heights, widths, strict=True)
    return {image_id: ImageRecord(image_id, name, height, width, []) for image_id, name, height, width in records}


def _add_objects(
    path: Path,
    rows: list[dict[str, Any]],
    images: dict[int, ImageRecord],
    classes: dict[int, int],
    scored: bool,
) -> tuple[list[str], bool]:
    """Append every annotation to its image's objects; returns warnings, and whether there are masks."""
    if not rows:
        return [], True
    ids = integers(path, "annotation", rows, "id")
    check_unique(path, "annotation", ids)
    image_ids, category_ids = (integers(path, "annotation", rows, key) for key in ("image_id", "category_id"))
    for key, values, known in (("image_id", image_ids, images), ("category_id", category_ids, classes)):
        unknown = ~np.isin(values, list(known))
        if unknown.any():
            at = int(unknown.argmax())
            what = f"annotation {ids[at]} has {key} {values[at]}, which is not in the file's list"
            fail(path, f"{what} ({unknown.sum()} such annotations)", "complete the list or take them out")
    boxes, areas, has_masks = boxes_of(path, rows), areas_of(path, rows), masks_there(path, rows)
    crowd = np.array([is_crowd(path, row) for row in rows])
    flat = np.array([is_flat(path, *item) for item in zip(rows, boxes.tolist(), crowd, strict=True)])
    owners = [images[i] for i in image_ids.tolist()]
    masks: list[Polygons | RLE] = []
    if has_masks:
        masks = [segmentation_of(path, row, i.id, i.height, i.width) for row, i in zip(rows, owners, strict=True)]
    whole = [_whole_polygons(mask) if isinstance(mask, list) else mask for mask in masks]
    kept = np.flatnonzero(~flat & np.array([bool(mask) for mask in whole] if has_masks else True))
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    sizes = np.array([[image.width, image.height] for image in owners], dtype=np.float64)
    parts = [whole[i] for i in kept] if has_masks else None
    objects = Objects(
        ids[kept], image_ids[kept], category_ids[kept], sizes[kept], crowd[kept], corners[kept], areas[kept], parts
    )
    warnings = _check_polygons(path, ids, image_ids, masks, flat) if has_masks else []
    lost = int(flat.sum())
    warnings += [f"{path}: dropped {lost} objects of no area that are COCO's own"] if lost else []
    warnings += check_objects(path, objects, scored=scored)
    if (ids < 1).any():
        warnings.append(
            f"{path}: {(ids < 1).sum()} annotation ids are below 1, such as {ids.min()}; they are numbered anew, where "
            "pycocotools would count such objects as missed"
        )
    areas[kept] = np.where(np.isnan(areas[kept]), objects.mask_areas, areas[kept])
    for i in kept.tolist():
        category = classes[rows[i]["category_id"]]
        mask = whole[i] if has_masks else None
        item = ObjectRecord(rows[i]["id"], category, tuple(boxes[i].tolist()), float(areas[i]), bool(crowd[i]), mask)
        owners[i].objects.append(item)
    return warnings, has_masks


def _whole_polygons(polygons: Polygons) -> Polygons:
    return [polygon for polygon in polygons if len(polygon) % 2 == 0 and len(polygon) >= 6]


def _check_polygons(
    path: Path, ids: np.ndarray, image_ids: np.ndarray, masks: list[Polygons | RLE], flat: np.ndarray
) -> list[str]:
    """Warnings of polygons that were dropped; raises UserError for objects that would vanish or change with them."""
    drawn = [mask if isinstance(mask, list) else [] for mask in masks]
    odd = np.array([any(len(polygon) % 2 for polygon in polygons) for polygons in drawn]) & ~flat
    short = np.array([any(len(polygon) < 6 for polygon in polygons) for polygons in drawn]) & ~flat
    gone = np.array([bool(polygons) and not _whole_polygons(polygons) for polygons in drawn]) & ~flat
    report = Report(path, ids, image_ids)
    report.refuse(odd, "have a polygon of an odd count of numbers", "a point is x and y: write [x1, y1, x2, y2, ...]")
    report.refuse(
        gone & ~odd,
        "have no polygon of 3 points",
        "write [x1, y1, x2, y2, x3, y3, ...], also for a box: 4 numbers are a box to pycocotools, 2 points no mask",
    )
    report.warn(short & ~gone, "have polygons of fewer than 3 points", "these are left out")
    return report.warnings
