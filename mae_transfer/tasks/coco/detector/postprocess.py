"""From box predictions to detections: scores, NMS, and the way back to the original image.

Source: detectron2 `modeling/roi_heads/fast_rcnn.py` and `modeling/postprocessing.py`. Against torchvision: no box is
dropped for being small before the NMS, non-finite predictions are dropped, boxes are clipped once more after rescaling
and empty ones dropped.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from mae_transfer.tasks.coco.detector.paste import encode_bitmaps, paste_masks, pieces

Detections = dict[str, Any]
"""`boxes` fp32 (n, 4) xyxy in pixels, `scores` (n,), `classes` int64 (n,), `masks` of a detector with a mask head: best
first."""


def select_detections(
    boxes: Tensor,
    probabilities: Tensor,
    image_size: tuple[int, int],
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
) -> Detections:
    """The detections of one image, without masks.

    Args:
        boxes: fp32 (n, K, 4) xyxy in pixels, a box per class, or (n, 1, 4), one for all.
        probabilities: fp32 (n, K + 1), background last.
        image_size: (height, width) in pixels to clip to.
    """
    finite = boxes.flatten(1).isfinite().all(dim=1) & probabilities.isfinite().all(dim=1)
    boxes, scores = clip_boxes_to_image(boxes, image_size), probabilities[:, :-1]
    row, classes = ((scores > score_threshold) & finite[:, None]).nonzero().unbind(1)
    boxes, scores = boxes.expand(-1, scores.shape[1], -1)[row, classes], scores[row, classes]
    keep = batched_nms(boxes, scores, classes, nms_threshold)[:max_detections]
    return {"boxes": boxes[keep], "scores": scores[keep], "classes": classes[keep]}


def rescale(detections: Detections, image_size: tuple[int, int], original_size: tuple[int, int]) -> Detections:
    """Boxes and masks (n, M, M) of the network's image to boxes and bool masks (n, H, W) of the original image.

    Masks that would take more than `paste.LARGEST_BYTES` are a list of run-length encodings instead.

    Args:
        image_size: (height, width) of the network's image without padding.
        original_size: (height, width) of the original image.
    """
    scale_y, scale_x = (new / old for new, old in zip(original_size, image_size, strict=True))
    boxes = detections["boxes"] * torch.tensor([scale_x, scale_y] * 2).to(detections["boxes"].device, non_blocking=True)
    boxes = clip_boxes_to_image(boxes, original_size)
    keep = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero().squeeze(1)
    kept = {name: value[keep] for name, value in detections.items()}
    boxes = kept["boxes"] = boxes[keep]
    if "masks" not in kept:
        return kept
    masks = kept["masks"]
    parts = list(pieces(len(masks), original_size))
    if len(parts) > 1:
        pasted = (paste_masks(masks[part], boxes[part], original_size) for part in parts)
        return kept | {"masks": [mask for piece in pasted for mask in encode_bitmaps(piece)]}
    return kept | {"masks": paste_masks(masks, boxes, original_size)}
