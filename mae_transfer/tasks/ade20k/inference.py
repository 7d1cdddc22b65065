"""Whole images from a network of one input size: sliding windows, scales and mirror images, then classes per pixel.

Source: mmsegmentation's `EncoderDecoder.slide_inference`, `postprocess_result` and `SegTTAModel`; the classes are the
same. What differs is the work: windows of one or more images share a forward pass, logits are added in place instead of
padded to full size each, an image smaller than the window is padded as in training instead of fed as it is, and
K x H x W logits at the original size never exist: classes are upsampled a few at a time, keeping the best so far, which
compares the very same numbers. So what is held is K x h x w at the evaluation size (bounded by `long_side`) and a few
values per pixel of the original. The one thing that is not the same: several passes (scales, mirror) average their
probabilities at the original size only up to MIXED_ELEMENTS, and at a smaller size of the same shape beyond.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_transfer.tasks.ade20k.config import EvalConfig

CHUNK_ELEMENTS = 2**25
"""Upsampled logits held at once: 128 MiB in float32."""
MIXED_ELEMENTS = 2**27
"""Largest K x H x W of averaged probabilities: 512 MiB in float32."""

Size = tuple[int, int]


@dataclass
class _Pass:
    """One view of an image on its way through the network."""

    number: int
    """Of the image in its batch."""
    image: Tensor
    """(3, H, W), padded to fit the windows."""
    size: Size
    """Before padding."""
    flipped: bool
    window: Size
    places: list[Size]
    """Top and left of each window, row by row."""
    done: int = 0
    total: Tensor | None = field(default=None)

    def crop(self, place: Size) -> Tensor:
        top, left = place
        return self.image[:, top : top + self.window[0], left : left + self.window[1]]

    def add(self, place: Size, logits: Tensor) -> None:
        if len(self.places) == 1:
            self.total = logits
        else:
            if self.total is None:
                self.total = logits.new_zeros(len(logits), *self.image.shape[1:])
            top, left = place
            self.total[:, top : top + self.window[0], left : left + self.window[1]] += logits
        self.done += 1

    def result(self) -> Tensor:
        """(K, h, w) mean logits over the windows, unpadded and unflipped; gives up what the pass holds."""
        assert self.total is not None
        logits, self.total = self.total, None
        if len(self.places) > 1:
            logits /= self._overlaps(logits.device)
        logits = logits[:, : self.size[0], : self.size[1]]
        return logits.flip(-1) if self.flipped else logits

    def _overlaps(self, device: torch.device) -> Tensor:
        """How many windows cover each pixel, (H, W)."""
        rows, columns = (
            sum(
                ((torch.arange(length, device=device) - start) // side == 0).float()
                for start in sorted({place[axis] for place in self.places})
            )
            for axis, (length, side) in enumerate(zip(self.image.shape[1:], self.window, strict=True))
        )
        return torch.outer(torch.as_tensor(rows), torch.as_tensor(columns))


class Predictor:
    """Views of images -> classes at the images' original sizes.

    Args:
        num_classes: K.
        side: of the windows in pixels.
        patch: whole images are padded to multiples of it.
    """

    def __init__(self, num_classes: int, side: int, patch: int, config: EvalConfig) -> None:
        self.num_classes = num_classes
        self.side = side
        self.patch = patch
        self.config = config

    def __call__(
        self, network: Callable[[Tensor], Tensor], views: Sequence[Sequence[Tensor]], sizes: Sequence[Size]
    ) -> list[Tensor]:
        """Per image int16 (H, W) on the device of the views.

        Args:
            network: (B, 3, H, W) -> float32 logits (B, K, H, W).
            views: per image normalised (3, h, w), one for each ratio.
            sizes: per image the original (height, width).
        """
        flips = (False, True) if self.config.flip else (False,)
        passes = [self._pass(i, view, flip) for i, image in enumerate(views) for view in image for flip in flips]
        single = len(self.config.ratios) * len(flips) == 1
        labels: dict[int, Tensor] = {}
        mixed: dict[int, Tensor] = {}
        left = {i: len(image) * len(flips) for i, image in enumerate(views)}
        windows = [(item, place) for item in passes for place in item.places]
        step = self.config.batch_size if self.config.mode == "slide" else 1
        for start in range(0, len(windows), step):
            batch = windows[start : start + step]
            outputs = network(torch.stack([item.crop(place) for item, place in batch]))
            for (item, place), logits in zip(batch, outputs, strict=True):
                item.add(place, logits)
                if item.done < len(item.places):
                    continue
                i, size = item.number, sizes[item.number]
                if single:
                    labels[i] = classes_at(item.result(), size)
                    continue
                probabilities = probabilities_at(item.result(), mixing_size(self.num_classes, size))
                mixed[i] = mixed[i].add_(probabilities) if i in mixed else probabilities
                left[i] -= 1
                if left[i] == 0:
                    labels[i] = classes_at(mixed.pop(i), size)
        return [labels[i] for i in range(len(views))]

    def _pass(self, number: int, view: Tensor, flip: bool) -> _Pass:
        height, width = view.shape[1:]
        if self.config.mode == "slide":
            padded = max(height, self.side), max(width, self.side)
            window = self.side, self.side
        else:
            padded = window = (
                max(-(-height // self.patch), 2) * self.patch,
                max(-(-width // self.patch), 2) * self.patch,
            )
        image = F.pad(view.flip(-1) if flip else view, (0, padded[1] - width, 0, padded[0] - height))
        rows, columns = (_starts(p, w, self.config.stride) for p, w in zip(padded, window, strict=True))
        return _Pass(number, image, (height, width), flip, window, [(y, x) for y in rows for x in columns])


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start: every `stride`, the last one shifted back to end at the border."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [min(i * stride, length - window) for i in range(count)]


def classes_at(scores: Tensor, size: Size) -> Tensor:
    """argmax over K of (K, h, w) scores upsampled to (K, H, W), as int16 (H, W), without holding the latter."""
    chunk = max(CHUNK_ELEMENTS // (size[0] * size[1]), 1)
    best: Tensor | None = None
    labels: Tensor | None = None
    for first in range(0, len(scores), chunk):
        value, label = _resize(scores[first : first + chunk], size).max(0)
        label = label.to(torch.int16) + first
        if best is None or labels is None:
            best, labels = value, label
        else:
            better = value > best  # of equal ones the first stays, as in argmax
            best, labels = torch.where(better, value, best), torch.where(better, label, labels)
    assert labels is not None
    return labels


def probabilities_at(logits: Tensor, size: Size) -> Tensor:
    """softmax over K of (K, h, w) logits resampled to (K, H, W)."""
    return _resize(logits, size).softmax(0)


def mixing_size(num_classes: int, size: Size) -> Size:
    """The size at which passes are averaged: the original, or what of its shape has MIXED_ELEMENTS."""
    scale = min(math.sqrt(MIXED_ELEMENTS / (num_classes * size[0] * size[1])), 1.0)
    return max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)


def _resize(scores: Tensor, size: Size) -> Tensor:
    if scores.shape[1:] == size:  # the common case of ADE20K; resampling would give the same numbers
        return scores
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
