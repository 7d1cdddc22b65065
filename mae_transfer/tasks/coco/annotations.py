"""The content of a COCO-format annotation file, checked and kept small.

The file is read once (`annotation_file.py`): its columns are kept in the user's cache, and later runs and the other
processes of a node map them into memory. Records are built when they are asked for. A list of dicts would be copied
into every loader process as soon as Python counts references to it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from mae_transfer.data import json_stream
from mae_transfer.data.index_cache import cached_index
from mae_transfer.data.names import Names
from mae_transfer.errors import UserError
from mae_transfer.tasks.coco import annotation_file, checks, fields, masks, readings
from mae_transfer.tasks.coco.masks import RLE, Masks, Polygons, spans
from mae_transfer.tasks.coco.overlaps import Truth

SOURCES = [module.__file__ for module in (annotation_file, checks, fields, json_stream, masks, readings)]
"""What decides on the content of an index: code that checks more reads every file again."""


class ObjectRecord(NamedTuple):
    """One annotation. `category` is contiguous, `bbox` is x, y, width, height in pixels."""

    id: int
    category: int
    bbox: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: Polygons | RLE | None
    """float64 arrays (2k,) of x, y pairs, which may be read-only, or a run-length encoding with `size` and compressed
    `counts`; None in a file of boxes alone."""


class ImageRecord(NamedTuple):
    id: int
    file_name: str
    height: int
    width: int
    objects: list[ObjectRecord]


class CocoAnnotations:
    """The checked content of one annotation file; item i is the `ImageRecord` of the i-th image in order of id.

    `names[k]` and `category_ids[k]` belong to class k; `image_ids`, `file_names`, `num_objects` (crowds not counted)
    and `sizes` (height, width) are per image; `listed` are the ids in the order of the file; `num_annotations` is that
    of the file; `has_masks` is False for a file of boxes alone; `warnings` has a line for each kind of thing that was
    dropped; `sha256` is of the file's bytes. Raises UserError on anything wrong.

    scored: detections are compared with its boxes. They are not in a file that is trained on alone, whose boxes may be
    off their masks: training takes those of the masks.
    """

    def __init__(self, path: Path, *, scored: bool = True) -> None:
        self.path = path
        try:
            index = cached_index(
                path, f"coco, scored {scored}", SOURCES, lambda: annotation_file.read_annotations(path, scored)
            )
        except OSError as error:
            fields.fail(path, f"cannot be read ({error.strerror})", "give a COCO-format annotation file")
        about = annotation_file.About(**cast("Any", index.about))
        self.category_ids, self.names = about.category_ids, about.names
        self.num_annotations, self.has_masks = about.num_annotations, about.has_masks
        self.warnings = [f"{path}: {line}" for line in about.warnings]
        self.sha256 = about.sha256
        self._columns = columns = index.arrays
        self.listed, self.image_ids = columns["listed"], columns["image_ids"]
        self.file_names = Names.packed(columns["name_bytes"], columns["name_ends"])
        self.num_objects = columns["num_objects"]
        self.sizes = columns["image_sizes"]
        self._masks = Masks(*(columns[f"mask_{name}"] for name in annotation_file.MASK_ARRAYS))

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> ImageRecord:
        columns = self._columns
        height, width = columns["image_sizes"][index].tolist()
        start, end = columns["first_objects"][index : index + 2].tolist()
        rows = columns["objects"][start:end]
        values = (columns[name][rows].tolist() for name in ("ids", "classes", "boxes", "areas", "crowd"))
        masks: list[Polygons | RLE | None] = [None] * len(rows)
        if self.has_masks:
            masks = [self._masks[row] for row in rows.tolist()]
        objects = [
            ObjectRecord(number, category, tuple(box), area, crowd, mask)
            for number, category, box, area, crowd, mask in zip(*values, masks, strict=True)
        ]
        return ImageRecord(int(self.image_ids[index]), self.file_names[index], height, width, objects)

    def truth(self, ids: Sequence[int]) -> Truth:
        """The objects of these images, which are numbered in their order; each id once."""
        columns = self._columns
        places = np.searchsorted(self.image_ids, ids)
        first = columns["first_objects"][places]
        count = columns["first_objects"][places + 1] - first
        image, rows = np.repeat(np.arange(len(ids)), count), columns["objects"][spans(first, count)]
        order = np.lexsort((columns["classes"][rows], image))
        image, rows = image[order], rows[order]
        label, boxes, area, crowd = (columns[name][rows] for name in ("classes", "boxes", "areas", "crowd"))
        return Truth(image, label, boxes, area, crowd, self._masks.of(rows) if self.has_masks else None)


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
