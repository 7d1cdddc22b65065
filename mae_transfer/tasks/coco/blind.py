"""The control of a detector: what is scored without looking at an image."""

import numpy as np

from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.evaluate import ImageDetections, score


def blind_ap(annotations: CocoAnnotations, image_ids: list[int]) -> float | None:
    """Box AP in percent over these images of one box in each: the mean box of the commonest category, in shares of the
    image's width and height; None where nothing is annotated.

    Category and box are of the very images that are scored, so it flatters the control, if anything.
    """
    places = np.flatnonzero(np.isin(annotations.image_ids, image_ids))
    records = [annotations[place] for place in places.tolist()]
    found = [(r, item) for r in records for item in r.objects if not item.crowd]
    if not found:
        return None
    commonest = int(np.bincount([item.category for _, item in found]).argmax())
    shares = [
        np.divide(item.bbox, (r.width, r.height, r.width, r.height)) for r, item in found if item.category == commonest
    ]
    mean = np.mean(shares, axis=0)
    detections = []
    for r in records:
        box = (mean * (r.width, r.height, r.width, r.height)).astype(np.float32)
        detections.append(ImageDetections(r.id, box[None], np.ones(1, np.float32), np.array([commonest]), None))
    return score(annotations, detections, kinds=("box",))["box_AP"]
