"""Which detections match an object, kept for each image, so that AP over other images needs no second evaluation.

`run_folder/matches.py` has AP from them. Source: pycocotools `COCOeval.evaluateImg`, of objects of all sizes.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from mae_transfer.run_folder.matches import THRESHOLDS
from mae_transfer.run_folder.per_image import Arrays

LIMIT = 100
"""Detections of an image and class that COCO counts."""
BITS = 1 << np.arange(len(THRESHOLDS), dtype=np.uint16)
Overlaps = Mapping[tuple[int, int], np.ndarray]
"""Image and class, both counted from 1 -> (D, G): detections by falling score, objects in their order in the file."""


class GroundTruth(TypedDict):
    """Of an object, both numbers counted from 1."""

    image_id: int
    category_id: int
    iscrowd: int


def keep_matches(
    ids: Sequence[int],
    objects: Sequence[GroundTruth],
    found: Sequence[tuple[np.ndarray, np.ndarray]],
    overlaps: Mapping[str, Overlaps],
) -> Arrays:
    """The arrays of `run_folder/per_image.py`.

    Args:
        ids: of the images.
        objects: in the order of the file.
        found: scores and classes (0 ..) of the detections of each image, (n,) each.
        overlaps: of `box` and, where there are masks, `mask`.
    """
    crowds: list[dict[int, list[bool]]] = [{} for _ in ids]
    for row in objects:
        crowds[row["image_id"] - 1].setdefault(row["category_id"] - 1, []).append(bool(row["iscrowd"]))
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("detection_image", "detection_label", "score")}
    columns |= {f"{kind}_{what}": [] for kind in overlaps for what in ("matched", "ignored")}
    for number, (scores, labels) in enumerate(found):
        order = _counted(scores, labels)
        scores, labels = scores[order], labels[order]
        columns["detection_image"].append(np.full(len(order), number, np.int32))
        columns["detection_label"].append(labels.astype(np.int32))
        columns["score"].append(scores.astype(np.float32))
        for kind, of_kind in overlaps.items():
            matched, ignored = np.zeros((2, len(order)), np.uint16)
            for label, crowd in crowds[number].items():
                mine = np.flatnonzero(labels == label)
                if len(mine):
                    overlap = np.asarray(of_kind[number + 1, label + 1])
                    matched[mine], ignored[mine] = match(overlap, np.array(crowd))
            columns[f"{kind}_matched"].append(matched)
            columns[f"{kind}_ignored"].append(ignored)
    truths = [(row["image_id"] - 1, row["category_id"] - 1) for row in objects if not row["iscrowd"]]
    image, label = np.array(truths, np.int32).reshape(-1, 2).T
    return {
        "ids": np.array([str(image_id) for image_id in ids], dtype=np.bytes_),
        "object_image": image,
        "object_label": label,
        **{name: np.concatenate(parts) for name, parts in columns.items()},
    }


def _counted(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Places of an image's detections by falling score, at most `LIMIT` of a class."""
    order = np.argsort(-scores, kind="stable")
    if len(order) <= LIMIT:
        return order
    kept = [order[labels[order] == label][:LIMIT] for label in np.unique(labels)]
    return order[np.isin(order, np.concatenate(kept))]


def match(overlaps: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bits of the thresholds at which each detection matches an object, and at which it only lies on a crowd.

    Each detection, by falling score, takes the object of most overlap that is still free, of equal ones the last.

    Args:
        overlaps: (D, G).
        crowd: bool (G,).

    Returns:
        Two uint16 (D,).
    """
    least = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    free = np.tile(~crowd, (len(THRESHOLDS), 1))
    matched, ignored = np.zeros((2, len(overlaps)), np.uint16)
    for d, row in enumerate(overlaps):
        fits = row >= least
        own = np.where(fits & free, row, -1.0)
        best = own.shape[1] - 1 - own[:, ::-1].argmax(1)
        takes = np.flatnonzero(own.max(1) >= 0)
        free[takes, best[takes]] = False
        on_crowd = (fits & crowd).any(1)
        on_crowd[takes] = False
        matched[d], ignored[d] = BITS[takes].sum(), BITS[on_crowd].sum()
    return matched, ignored
