"""From a decoded image to what the model takes of it: MAE Table 1 (e), on uint8 tensors, by the sample's generator.

The crop is flipped and jittered before it is resized, so that a second view of it at another size (a tokenizer's) shows
the same.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from mae_transfer.data.augment import draw_crop, resize
from mae_transfer.pretrain.config import PretrainConfig

RESIZED = 256 / 224
"""Shorter side before a crop of fixed size, and before the centre crop, as a share of the crop: as in MAE's code
(util/datasets.py), up to 224 pixels; above, the crop is as large as fits."""

_JITTERS: tuple[Callable[[Tensor, float], Tensor], ...] = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)


class Views:
    """An image uint8 (C, H, W) -> {"image": uint8 (C, h, w)} and what a method adds by `extras`."""

    jitters_whole_image = False
    """The colour jitter comes before the crop, as in BEiT; else it is of the crop alone."""

    def __init__(self, config: PretrainConfig) -> None:
        self.data = config.data
        self.size = config.data.size

    def train(self, image: Tensor, rng: np.random.Generator) -> dict[str, Any]:
        if self.jitters_whole_image:
            image = jitter(image, self.data.color_jitter, rng)
        region = self._crop(image, rng)
        if rng.random() < self.data.flip:
            region = region.flip(-1)
        if not self.jitters_whole_image:
            region = jitter(region, self.data.color_jitter, rng)
        return self._sample(region, rng)

    def test(self, image: Tensor, rng: np.random.Generator) -> dict[str, Any]:
        """The centre crop; `rng` is the same for an image in every evaluation."""
        return self._sample(self._centre(image), rng)

    def extras(self, region: Tensor, rng: np.random.Generator) -> dict[str, Any]:
        """More of a sample: tensors or arrays by name, from the crop (C, h', w') before it is resized."""
        return {}

    def _sample(self, region: Tensor, rng: np.random.Generator) -> dict[str, Any]:
        image = region if region.shape[1:] == self.size else resize(region, *self.size)
        return {"image": image, **self.extras(region, rng)}

    def _crop(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        if self.data.crop == "center":
            return self._centre(image)
        if self.data.crop == "random":
            top, left, height, width = draw_crop(image.shape[1], image.shape[2], self.data.scale_min, rng)
        else:
            height, width = self._window(image)
            top, left = int(rng.integers(image.shape[1] - height + 1)), int(rng.integers(image.shape[2] - width + 1))
        return image[:, top : top + height, left : left + width]

    def _centre(self, image: Tensor) -> Tensor:
        height, width = self._window(image)
        return F.center_crop(image, [height, width])

    def _window(self, image: Tensor) -> tuple[int, int]:
        """What a crop of fixed size takes of an image, in the image's own pixels: resizing the whole image first and
        cropping then would show the same."""
        height, width = self.size
        margin = RESIZED if max(self.size) <= 224 else 1.0
        scale = min(image.shape[1] / height, image.shape[2] / width) / margin
        return max(round(height * scale), 1), max(round(width * scale), 1)


def jitter(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation, each by a factor in 1 -+ strength, in random order; nothing is drawn for 0.

    As torchvision's ColorJitter. BEiT's strength is 0.4 (its Table 12); the MAE paper does not give its own.
    """
    if not strength:
        return image
    for kind in rng.permutation(len(_JITTERS)):
        image = _JITTERS[kind](image, float(rng.uniform(1 - strength, 1 + strength)))
    return image


def to_tensor(value: object) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value)
