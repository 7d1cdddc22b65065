"""The twelve numbers of COCO from matches. Source: pycocotools `COCOeval.accumulate` and `summarize`."""

import numpy as np

from mae_transfer.run_folder.matches import THRESHOLDS, AveragePrecision
from mae_transfer.tasks.coco.card import STATISTICS
from mae_transfer.tasks.coco.matches import SIZES, Matches
from mae_transfer.tasks.coco.overlaps import LIMIT, Found, Truth

AT = {"AP50": 0, "AP75": 5}
"""The place of their threshold."""
LIMITS = {"AR1": 1, "AR10": 10}


def statistics(found: Found, truth: Truth, matches: Matches, images: int) -> dict[str, float]:
    """`STATISTICS` in percent, NaN where nothing of the kind is to be found."""
    precision = {name: precisions(found, truth, matches, images, size) for size, name in enumerate(SIZES)}
    values = {"AP": mean(precision["all"])} | {name: mean(precision["all"][place]) for name, place in AT.items()}
    values |= {f"AP{name}": mean(precision[name]) for name in "sml"}
    values |= {name: mean(recalls(found, truth, matches, 0, limit)) for name, limit in LIMITS.items()}
    for size, name in enumerate(SIZES):
        values["AR100" if name == "all" else f"AR{name}"] = mean(recalls(found, truth, matches, size, LIMIT))
    return {name: values[name] for name in STATISTICS}


def precisions(found: Found, truth: Truth, matches: Matches, images: int, size: int = 0) -> np.ndarray:
    """float64 (10, K): average precision in percent, NaN of classes without objects of the size."""
    counted = matches.counted[:, size]
    arrays = {
        "object_image": truth.image[counted],
        "object_label": truth.label[counted],
        "detection_image": found.image,
        "detection_label": found.label,
        "score": found.score,
        "box_matched": matches.matched[:, size],
        "box_ignored": matches.ignored[:, size],
    }
    return AveragePrecision(arrays, "box").by_class(np.ones(images, np.int64))


def recalls(found: Found, truth: Truth, matches: Matches, size: int, limit: int) -> np.ndarray:
    """float64 (10, K): recall in percent of the first `limit` detections of each image and class, else as above."""
    objects = np.bincount(truth.label[matches.counted[:, size]])
    hits = np.flatnonzero((found.rank < limit) & (matches.matched[:, size] > 0))
    labels, bits = found.label[hits], matches.matched[hits, size]
    right = [np.bincount(labels[bits >> bit & 1 > 0], minlength=len(objects)) for bit in range(len(THRESHOLDS))]
    return np.where(objects > 0, 100 * np.stack([r[: len(objects)] for r in right]) / np.maximum(objects, 1), np.nan)


def mean(values: np.ndarray) -> float:
    """Of those that are known; NaN where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
