"""Paste mask predictions into the image by sampling them at the centres of its pixels.

Source: detectron2 `layers/mask_ops.py`. torchvision truncates the box to whole pixels and resizes the mask into it.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mae_transfer.tasks.coco.masks import compressed

_CHUNK_BYTES = 2**28
"""Largest sampling result on an accelerator; on a CPU one mask at a time within its own box is fastest."""
_BAND_PIXELS = 2**22
"""Of a mask that are sampled at once on a CPU; only boxes of more than 4 megapixels take several bands."""
LARGEST_BYTES = 2**28
"""Of the pasted masks of an image. Where there would be more they are encoded piece by piece."""
_PIECE_BYTES = 2**26


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Bool (n, height, width): the mask, stretched over its box, is at least `threshold`.

    Args:
        masks: probabilities (n, M, M).
        boxes: (n, 4) xyxy in pixels of the image.
        size: (height, width) of the image in pixels.
    """
    height, width = size
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    per_chunk = 1 if masks.device.type == "cpu" else max(1, _CHUNK_BYTES // (4 * height * width))
    for start in range(0, len(masks), per_chunk):
        chunk = slice(start, start + per_chunk)
        box = boxes[chunk]
        # Only the pixels near a box can be set; the margin holds the fading edge of the interpolation.
        left, top_edge, right, bottom_edge = torch.cat([box[:, :2].amin(0), box[:, 2:].amax(0)]).tolist()
        x0, y0 = (max(0, math.floor(v) - 1) for v in (left, top_edge))
        x1, y1 = (math.ceil(v) + 1 for v in (right, bottom_edge))
        x1, y1 = min(x1, width), min(y1, height)
        x = (torch.arange(x0, x1, device=box.device) + 0.5 - box[:, :1]) / (box[:, 2:3] - box[:, :1]) * 2 - 1
        rows = max(1, _BAND_PIXELS // max(x1 - x0, 1)) if per_chunk == 1 else height
        for top in range(y0, y1, rows):
            bottom = min(top + rows, y1)
            y = (torch.arange(top, bottom, device=box.device) + 0.5 - box[:, 1:2]) / (box[:, 3:] - box[:, 1:2]) * 2 - 1
            grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1).to(masks.dtype)
            sampled = F.grid_sample(masks[chunk, None], grid, align_corners=False)[:, 0]
            pasted[chunk, top:bottom, x0:x1] = sampled >= threshold
    return pasted


def encode_bitmaps(bitmaps: Tensor) -> list[dict[str, object]]:
    """Run-length encodings of bool masks (n, height, width), those of `rle.encode`.

    Only the places where runs begin leave the device, and not the masks: thousands of numbers in the place of millions.
    """
    count, height, width = bitmaps.shape
    if not count:
        return []
    pixels = height * width
    columns = bitmaps.transpose(1, 2).contiguous().view(-1)  # runs go down the columns
    begins = torch.empty_like(columns)
    torch.ne(columns[1:], columns[:-1], out=begins[1:])
    begins[::pixels] = columns[::pixels]
    places = begins.nonzero()[:, 0].cpu().numpy() if begins.is_cuda else np.flatnonzero(begins.numpy())
    return encode_runs(places, count, (height, width))


def encode_runs(places: np.ndarray, count: int, size: tuple[int, int]) -> list[dict[str, object]]:
    """Run-length encodings of so many masks of one size from the places where runs begin, counted over all of them."""
    height, width = size
    pixels = height * width
    firsts = np.searchsorted(places, np.arange(count + 1) * pixels)
    runs = [
        np.diff(places[first:last] - i * pixels, prepend=0, append=pixels)
        for i, (first, last) in enumerate(pairwise(firsts))
    ]
    return [{"size": [height, width], "counts": counts} for counts in compressed(runs)]


def pieces(count: int, size: tuple[int, int]) -> Iterator[slice]:
    """All of an image's masks at once if they are small enough together, else few at a time."""
    pixels = size[0] * size[1]
    step = max(count, 1) if count * pixels <= LARGEST_BYTES else max(1, _PIECE_BYTES // pixels)
    for start in range(0, count, step):
        yield slice(start, start + step)
