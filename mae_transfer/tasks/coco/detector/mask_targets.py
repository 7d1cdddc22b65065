"""Hard training targets of the mask head: what of an object lies in a box, as a small bitmap.

Source: detectron2 `structures/masks.py`: polygons are shifted and scaled to the box and rasterised by COCO's mask API,
bitmaps are cropped by an aligned, adaptive RoIAlign and cut at 0.5.
torchvision's targets are soft and need every object as a full-size bitmap.
"""

from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import roi_align

Mask = Sequence[np.ndarray] | np.ndarray
"""One object: polygons (2k,) of k >= 3 points in pixels of the image, or a uint8 bitmap (h, w)."""


def mask_targets(masks: Sequence[Mask], matched: Tensor, boxes: Tensor, size: int) -> Tensor:
    """fp32 (n, size, size) of zeros and ones on the device of the boxes.

    Args:
        masks: the objects of an image.
        matched: int64 (n,), which object each box is for.
        boxes: fp32 (n, 4) xyxy in pixels.
    """
    targets = torch.zeros(len(boxes), size, size)
    together = torch.cat([boxes, matched[:, None].to(boxes)], 1).cpu()  # one wait for the device
    cpu_boxes, objects = together[:, :4], together[:, 4].long().tolist()
    polygon_rows = [i for i, k in enumerate(objects) if not isinstance(masks[k], np.ndarray)]
    if polygon_rows:
        rles = [_polygon_rle(masks[objects[i]], cpu_boxes[i].numpy(), size) for i in polygon_rows]
        targets[polygon_rows] = torch.from_numpy(coco_mask.decode(rles)).permute(2, 0, 1).float()
    bitmap_rows = [i for i, k in enumerate(objects) if isinstance(masks[k], np.ndarray)]
    if bitmap_rows:
        used = sorted({objects[i] for i in bitmap_rows})
        bitmaps = torch.from_numpy(np.stack([masks[k] for k in used])).float()[:, None]
        source = torch.tensor([used.index(objects[i]) for i in bitmap_rows])[:, None]
        rois = torch.cat([source.float(), cpu_boxes[bitmap_rows]], dim=1)
        targets[bitmap_rows] = (roi_align(bitmaps, rois, size, 1.0, 0, aligned=True)[:, 0] >= 0.5).float()
    return targets.to(boxes.device, non_blocking=True)


def _polygon_rle(polygons: Sequence[np.ndarray], box: np.ndarray, size: int) -> dict:
    if len(polygons) == 0:
        return coco_mask.encode(np.zeros((size, size), dtype=np.uint8, order="F"))
    x0, y0, x1, y1 = box
    # A box thinner than 0.1 px would blow the polygon up without bound.
    scale = np.array([size / max(x1 - x0, 0.1), size / max(y1 - y0, 0.1)], dtype=np.float64)
    origin = np.array([x0, y0], dtype=np.float64)
    moved = [((p.reshape(-1, 2) - origin) * scale).ravel() for p in polygons]
    return coco_mask.merge(coco_mask.frPyObjects(moved, size, size))
