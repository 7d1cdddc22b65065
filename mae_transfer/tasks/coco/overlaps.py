"""Detections and objects of images as columns, and how far those of an image and class overlap.

Source: pycocotools `COCOeval._prepare` and `computeIoU`, `maskApi.c` `bbIou` and `rleIou`. Only overlaps of `LEAST` and
more are kept: no other can match.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from pycocotools import mask as rle

from mae_transfer.tasks.coco.masks import RLE, Masks, pixels, spans

LIMIT = 100
"""Detections of an image and class that COCO counts."""
LEAST = 0.5
_AT_ONCE = 2_000_000
"""Pairs, of 130 bytes each."""


class Pairs(NamedTuple):
    """Of a detection and an object of its image and class each, by detection and then by object."""

    detection: np.ndarray
    """int64 (p,), rows of `Found`."""
    object: np.ndarray
    """int64 (p,), rows of `Truth`."""
    overlap: np.ndarray
    """float64 (p,): intersection over union; with a crowd, over the detection's own area."""


class Found:
    """The counted detections of n images: each image's by falling score, at most `LIMIT` of a class.

    Args:
        image: int64 (m,), in 0..n-1, ascending.
        label: int64 (m,), in 0..K-1.
        score: float32 (m,).
        boxes: float64 (m, 4): x, y, width, height.
        masks: m run-length encodings, or none.
    """

    def __init__(
        self, image: np.ndarray, label: np.ndarray, score: np.ndarray, boxes: np.ndarray, masks: Sequence[RLE]
    ) -> None:
        if len(masks) not in (0, len(score)):
            raise ValueError(f"{len(score)} detections have {len(masks)} masks")
        order = np.lexsort((-score, image))
        rank = places(image[order], label[order])
        order, self.rank = order[rank < LIMIT], rank[rank < LIMIT]
        self.image, self.label, self.score, self.boxes = image[order], label[order], score[order], boxes[order]
        self.masks = [masks[i] for i in order.tolist()] if len(masks) else []

    def areas(self, kind: str) -> np.ndarray:
        """float64 (m,): what the size class of a detection goes by, of its box or its mask."""
        return self.boxes[:, 2] * self.boxes[:, 3] if kind == "box" else self.mask_areas

    @cached_property
    def mask_areas(self) -> np.ndarray:
        return pixels(self.masks)


class Truth(NamedTuple):
    """The objects of n images, by image and class and then in the order of the file."""

    image: np.ndarray
    """int64 (g,)."""
    label: np.ndarray
    boxes: np.ndarray
    """float64 (g, 4): x, y, width, height."""
    area: np.ndarray
    """float64 (g,), as the file says."""
    crowd: np.ndarray
    """Bool (g,)."""
    masks: Masks | None


def pairs(found: Found, truth: Truth, kind: str) -> Pairs:
    """Those of boxes or masks that overlap enough to match; `kind` is `box` or `mask`."""
    classes = 1 + int(max(truth.label.max(initial=0), found.label.max(initial=0)))
    keys, wanted = truth.image * classes + truth.label, found.image * classes + found.label
    first = np.searchsorted(keys, wanted)
    count = np.searchsorted(keys, wanted, side="right") - first
    ends = np.cumsum(count)
    cuts = np.searchsorted(ends, np.arange(_AT_ONCE, ends[-1], _AT_ONCE)).tolist() if len(ends) else []
    parts = []
    for start, end in pairwise([0, *cuts, len(wanted)]):
        rows = np.arange(start, end)
        every = np.repeat(rows, count[start:end]), spans(first[start:end], count[start:end])
        overlap = _of_boxes(found, truth, *every) if kind == "box" else _of_masks(found, truth, *every)
        kept = np.flatnonzero(overlap >= LEAST)
        parts.append(Pairs(every[0][kept], every[1][kept], overlap[kept]))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _of_boxes(found: Found, truth: Truth, detection: np.ndarray, item: np.ndarray) -> np.ndarray:
    (x, y, w, h), (left, top, width, height) = found.boxes[detection].T, truth.boxes[item].T
    across = np.minimum(x + w, left + width) - np.maximum(x, left)
    down = np.minimum(y + h, top + height) - np.maximum(y, top)
    shared = np.where((across > 0) & (down > 0), across * down, 0.0)
    own = w * h
    whole = np.where(truth.crowd[item], own, own + width * height - shared)  # in this order, to the last bit
    return np.divide(shared, whole, out=np.zeros_like(shared), where=shared > 0)


def _of_masks(found: Found, truth: Truth, detection: np.ndarray, item: np.ndarray) -> np.ndarray:
    """0 where the areas of the masks allow no overlap of `LEAST`."""
    assert truth.masks is not None
    objects, item = np.unique(item, return_inverse=True)
    masks = _encoded(truth.masks.of(objects), truth.image[objects]) if len(objects) else []
    crowd, areas = truth.crowd[objects], (found.mask_areas[detection], pixels(masks)[item])
    possible = np.minimum(*areas) >= LEAST * np.where(crowd[item], areas[0], np.maximum(*areas))
    rows = np.flatnonzero(possible)
    group = truth.image[objects[item]] * (1 + truth.label.max(initial=0)) + truth.label[objects[item]]
    rows = rows[np.lexsort((detection[rows], group[rows]))]
    overlap, ends = np.zeros(len(detection)), np.flatnonzero(np.diff(group[rows])) + 1
    ours, theirs = detection[rows].tolist(), item[rows]
    for start, end in pairwise([0, *ends.tolist(), len(rows)]) if len(rows) else ():
        mine = list(dict.fromkeys(ours[start:end]))
        low, high = theirs[start:end].min(), theirs[start:end].max() + 1
        table = rle.iou([found.masks[i] for i in mine], masks[low:high], crowd[low:high].tolist())
        place = {detection: row for row, detection in enumerate(mine)}
        overlap[rows[start:end]] = table[[place[i] for i in ours[start:end]], theirs[start:end] - low]
    return overlap


def _encoded(masks: Masks, images: np.ndarray) -> list[RLE]:
    """Run-length encodings of masks, which come by image."""
    found: list[RLE] = []
    for start, end in pairwise([0, *(np.flatnonzero(np.diff(images)) + 1).tolist(), len(images)]):
        some = masks[start:end]
        height, width = masks.sizes[start].tolist()
        polygons = [polygon for mask in some if not isinstance(mask, dict) for polygon in mask]
        parts = iter(rle.frPyObjects(polygons, height, width) if polygons else ())
        for mask in some:
            if isinstance(mask, dict):
                found.append(mask)
            else:
                found.append(next(parts) if len(mask) == 1 else rle.merge([next(parts) for _ in mask]))
    return found


def places(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """int64 (m,): how many of the same image and class come before each, in any order of images and classes."""
    order = np.lexsort((label, image))
    starts = np.r_[True, (np.diff(image[order]) != 0) | (np.diff(label[order]) != 0)][: len(order)]
    numbers = np.arange(len(order))
    places = np.empty(len(order), np.int64)
    places[order] = numbers - np.maximum.accumulate(np.where(starts, numbers, 0))
    return places
