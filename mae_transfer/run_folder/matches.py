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
    """AP in percent as a function of which images count.

    Args:
        arrays: of the n images of a run.
        kind: `box` or `mask`.
    """

    def __init__(self, arrays: Arrays, kind: str) -> None:
        labels, images = arrays["detection_label"], arrays["detection_image"]
        matched, ignored = arrays[f"{kind}_matched"], arrays[f"{kind}_ignored"]
        self.num_classes = 1 + int(max(arrays["object_label"].max(initial=0), labels.max(initial=0)))
        self.objects = np.zeros((len(arrays["ids"]), self.num_classes))
        np.add.at(self.objects, (arrays["object_image"], arrays["object_label"]), 1)
        order = np.lexsort((-arrays["score"], labels))
        self.images, self.labels = images[order], labels[order]
        self.starts = np.searchsorted(self.labels, np.arange(self.num_classes))
        self.hits = [np.flatnonzero(matched[order] >> bit & 1) for bit in range(len(THRESHOLDS))]
        self.passed_over = [np.flatnonzero(ignored[order] >> bit & 1) for bit in range(len(THRESHOLDS))]

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """float64 (B,) from bool (B, n), whether each image counts; NaN of a part without an object."""
        objects = counts.astype(float) @ self.objects
        weights = counts[:, self.images]
        before = _summed(weights)
        total = np.zeros(len(counts))
        for hits, passed_over in zip(self.hits, self.passed_over, strict=True):
            total += self._area(weights, before, objects, hits, passed_over)
        counted = (objects > 0).sum(1)
        result: np.ndarray = 100 * total / np.where(counted, counted, np.nan) / len(RECALLS) / len(THRESHOLDS)
        return result

    def _area(
        self, weights: np.ndarray, before: np.ndarray, objects: np.ndarray, hits: np.ndarray, passed_over: np.ndarray
    ) -> np.ndarray:
        """(B,): sums over classes and recalls of the precision at one threshold.

        Args:
            weights: bool (B, m), whether each detection counts.
            before: (B, m + 1), how many of them come before.
            objects: (B, K).
            hits, passed_over: places of the detections that matched an object, and that lie on a crowd.
        """
        labels = self.labels[hits]
        starts = self.starts[labels]
        crowds = _summed(weights[:, passed_over])
        found = before[:, hits + 1] - before[:, starts]
        found -= crowds[:, np.searchsorted(passed_over, hits)] - crowds[:, np.searchsorted(passed_over, starts)]
        right = _summed(weights[:, hits])
        firsts = np.searchsorted(labels, labels)
        right = right[:, 1:] - right[:, firsts]
        precision = right / np.maximum(found, 1)
        lift = 2.0 * (self.num_classes - labels)  # the maximum of what follows ends with the class
        highest = np.maximum.accumulate((precision + lift)[:, ::-1], axis=1)[:, ::-1] - lift
        recall = right / np.maximum(objects[:, labels], 1)
        passed = np.searchsorted(RECALLS, recall.ravel(), side="right").reshape(recall.shape)
        first = np.arange(len(hits)) == firsts
        steps = passed - np.where(first, 0, np.roll(passed, 1, axis=1))
        area: np.ndarray = (highest * steps).sum(1)
        return area


def _summed(values: np.ndarray) -> np.ndarray:
    """int64 (B, m + 1): how many of bool (B, m) come before."""
    return np.pad(np.cumsum(values, axis=1, dtype=np.int64), ((0, 0), (1, 0)))
