"""Which detections match an object, at each overlap and for objects of each size.

Source: pycocotools `COCOeval.evaluateImg`.
"""

from typing import NamedTuple

import numpy as np

from mae_transfer.run_folder.matches import THRESHOLDS
from mae_transfer.run_folder.per_image import Arrays
from mae_transfer.tasks.coco.overlaps import Found, Pairs, Truth, places

SIZES = {"all": (0, 1e5**2), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e5**2)}
"""Areas in pixels, both ends included."""
BITS = 1 << np.arange(len(THRESHOLDS), dtype=np.uint16)


class Matches(NamedTuple):
    """Of m detections and g objects, for each of the `SIZES`."""

    matched: np.ndarray
    """uint16 (m, 4): bits of the thresholds at which a detection matches an object of the size."""
    ignored: np.ndarray
    """uint16 (m, 4): of those at which it does not count, lying on a crowd or being of another size."""
    counted: np.ndarray
    """Bool (g, 4): the objects that are to be found."""


def match(pairs: Pairs, found: Found, truth: Truth, areas: np.ndarray) -> Matches:
    """Each detection, by falling score, takes the object of most overlap that is still free, of equal ones the last.

    Objects that are to be found come before others; a crowd is always free.

    Args:
        areas: float64 (m,), what the size of a detection goes by.
    """
    counted = _within(truth.area) & ~truth.crowd[:, None]
    matched = np.zeros((len(areas), len(SIZES)), np.uint16)
    ignored = np.where(_within(areas), np.uint16(0), BITS.sum(dtype=np.uint16))
    free = np.ones((len(truth.area), len(SIZES), len(THRESHOLDS)), bool)
    least = np.minimum(THRESHOLDS, 1 - 1e-10)
    turn = _turns(pairs, truth)
    order = np.argsort(turn, kind="stable")
    for mine in np.split(order, np.cumsum(np.bincount(turn))[:-1]) if len(order) else []:
        item, overlap = pairs.object[mine], pairs.overlap[mine]
        merit = np.empty(len(mine), np.int32)
        by_merit = np.lexsort((item, overlap))
        merit[by_merit] = np.arange(1, len(mine) + 1)
        first = counted[item] * np.int32(len(mine))
        fits = (overlap[:, None] >= least)[:, None] & free[item]
        starts = np.flatnonzero(np.diff(pairs.detection[mine], prepend=-1))
        best = np.maximum.reduceat(np.where(fits, (merit[:, None] + first)[:, :, None], 0), starts)
        is_counted = best > len(mine)
        row, size, threshold = np.nonzero(best)
        taken = item[by_merit[(best[row, size, threshold] - 1) % len(mine)]]
        free[taken, size, threshold] = truth.crowd[taken]
        detection = pairs.detection[mine[starts]]
        matched[detection] = _packed(is_counted)
        ignored[detection] &= ~_packed(best > 0)
        ignored[detection] |= _packed((best > 0) & ~is_counted)
    return Matches(matched, ignored, counted)


def per_image(ids: list[int], found: Found, truth: Truth, matches: dict[str, Matches]) -> Arrays:
    """The arrays of `run_folder/per_image.py`, of objects of all sizes; `matches` of `box` and, with masks, `mask`."""
    counted = next(iter(matches.values())).counted[:, 0]
    return {
        "ids": np.array([str(image_id) for image_id in ids], dtype=np.bytes_),
        "object_image": truth.image[counted].astype(np.int32),
        "object_label": truth.label[counted].astype(np.int32),
        "detection_image": found.image.astype(np.int32),
        "detection_label": found.label.astype(np.int32),
        "score": found.score.astype(np.float32),
    } | {f"{kind}_{what}": getattr(of, what)[:, 0] for kind, of in matches.items() for what in ("matched", "ignored")}


def _turns(pairs: Pairs, truth: Truth) -> np.ndarray:
    """int64 (p,): how many detections of its image and class, with a pair, come before that of each pair."""
    detection, row = np.unique(pairs.detection, return_inverse=True)
    an_object = pairs.object[np.searchsorted(pairs.detection, detection)]
    image, label = truth.image[an_object], truth.label[an_object]
    return places(image, label)[row]


def _within(areas: np.ndarray) -> np.ndarray:
    """Bool (n, 4): of which of the `SIZES` these areas are."""
    low, high = np.array(list(SIZES.values())).T
    within: np.ndarray = (areas[:, None] >= low) & (areas[:, None] <= high)
    return within


def _packed(flags: np.ndarray) -> np.ndarray:
    """uint16 (n, 4) from bool (n, 4, 10)."""
    packed: np.ndarray = (flags * BITS).sum(-1, dtype=np.uint16)
    return packed
