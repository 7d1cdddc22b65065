"""COCO's average precision from kept matches of detections (`per_image.py`), over any part of the images.

The matching of an image does not depend on the other images. So AP over a part of them needs no second matching:
detections stay sorted by score, and those count whose image does.

Source: pycocotools `COCOeval.accumulate`, of all sizes and 100 detections an image and class. Needs no torch.
"""

import numpy as np

from mae_transfer.run_folder.per_image import Arrays

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Of the overlap, a bit of `matched` each."""
RECALLS = np.linspace(0, 1, 101)
"""Where precision is read."""


class AveragePrecision:
    """AP in percent as a function of how often each image counts.

    Args:
        arrays: of the n images of a run.
        kind: `box` or `mask`.
    """

    def __init__(self, arrays: Arrays, kind: str) -> None:
        labels, images = arrays["detection_label"], arrays["detection_image"]
        self.object_images, self.object_labels = arrays["object_image"], arrays["object_label"]
        self.num_classes = 1 + int(max(self.object_labels.max(initial=0), labels.max(initial=0)))
        order = np.lexsort((-arrays["score"], labels))
        self.images, labels = images[order], labels[order]
        starts = np.searchsorted(labels, np.arange(self.num_classes))
        matched, ignored = arrays[f"{kind}_matched"][order], arrays[f"{kind}_ignored"][order]
        bits = range(len(THRESHOLDS))
        self.at = [_Threshold(matched >> bit & 1, ignored >> bit & 1, labels, starts) for bit in bits]

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """float64 (B,) from (B, n), whether (bool) or how often (integers) each image counts; NaN without an object.

        An image that counts twice is two images with the same objects and detections.
        """
        return np.array([self._of(row.astype(np.int64)) for row in counts])

    def _of(self, times: np.ndarray) -> float:
        found = self.by_class(times)
        found = found[:, ~np.isnan(found[0])]
        return float(found.mean()) if found.size else np.nan

    def by_class(self, times: np.ndarray) -> np.ndarray:
        """float64 (10, K) at each overlap and for each class, from int64 (n,), how often each image counts."""
        objects = np.bincount(self.object_labels, times[self.object_images], self.num_classes)
        weights = times[self.images]
        before = _summed(weights)
        areas = np.stack([threshold.areas(weights, before, objects) for threshold in self.at])
        return np.where(objects > 0, 100 / len(RECALLS) * areas, np.nan)


class _Threshold:
    """What AP at one overlap needs of the detections, which are sorted by class and then by falling score.

    Args:
        matched, ignored: (m,), whether each detection matched an object, or only lies on a crowd.
        labels: (m,).
        starts: (K,), the first detection of each class.
    """

    def __init__(self, matched: np.ndarray, ignored: np.ndarray, labels: np.ndarray, starts: np.ndarray) -> None:
        self.hits, self.passed_over = np.flatnonzero(matched), np.flatnonzero(ignored)
        self.labels = labels[self.hits]
        self.starts = starts[self.labels]
        self.crowds = np.searchsorted(self.passed_over, self.hits), np.searchsorted(self.passed_over, self.starts)
        self.firsts = np.searchsorted(self.labels, self.labels)
        self.is_first = np.arange(len(self.hits)) == self.firsts
        self.lift = 2.0 * (len(starts) - self.labels)  # the maximum of what follows ends with the class

    def areas(self, weights: np.ndarray, before: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """float64 (K,): the sum over recalls of the precision, of each class.

        Args:
            weights: int64 (m,), how often each detection counts.
            before: (m + 1,), how many come before.
            objects: (K,).
        """
        found = before[self.hits + 1] - before[self.starts]
        if len(self.passed_over):
            crowds = _summed(weights[self.passed_over])
            found -= crowds[self.crowds[0]] - crowds[self.crowds[1]]
        right = _summed(weights[self.hits])
        right = right[1:] - right[self.firsts]
        precision = right / np.maximum(found, 1)
        highest = np.maximum.accumulate((precision + self.lift)[::-1])[::-1] - self.lift
        recall = right / np.maximum(objects, 1)[self.labels]
        passed = np.searchsorted(RECALLS, recall, side="right")
        steps = passed - np.where(self.is_first, 0, np.roll(passed, 1))
        return np.bincount(self.labels, highest * steps, len(objects))


def _summed(values: np.ndarray) -> np.ndarray:
    """int64 (m + 1,): the sum of what comes before in (m,)."""
    return np.concatenate([[0], np.cumsum(values)])
