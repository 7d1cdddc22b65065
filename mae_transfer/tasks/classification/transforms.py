"""Training and test transforms on uint8 tensors (3, H, W); normalisation, erasing and mixing are done on the device.

Sources: facebookresearch/mae util/datasets.py and util/crop.py, timm's transforms_factory.
"""

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from mae_transfer.data.augment import draw_crop, draw_single_crop, make_randaugment, resize, seeded_globals
from mae_transfer.tasks.classification.config import ClassificationConfig

LONGEST = 16
"""Sides of an image: how many times the shorter one the longer may be and still be resized whole."""


class TrainTransform:
    """A uint8 image (3, H, W) and a generator -> a uint8 image (3, image_size, image_size)."""

    def __init__(self, config: ClassificationConfig, mean: tuple[float, ...]) -> None:
        self.data = config.data
        self.centre = EvalTransform(config)
        policy, side = self.data.randaugment, self.data.image_size
        self.augment = None if policy is None else make_randaugment(policy, side, mean)

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        side = self.data.image_size
        if self.data.crop == "center":
            image = self.centre(image)
        else:
            draw = draw_crop if self.data.crop == "random" else draw_single_crop
            top, left, height, width = draw(image.shape[1], image.shape[2], self.data.scale_min, rng)
            image = resize(image[:, top : top + height, left : left + width], side, side)
        if rng.random() < self.data.flip:
            image = image.flip(-1)
        if self.augment is not None:
            with seeded_globals(int(rng.integers(2**32))):
                image = F.pil_to_tensor(self.augment(F.to_pil_image(image)))
        return image


class EvalTransform:
    """Shorter side (or both) to image_size / crop_pct, then the centre: uint8 (3, H, W) -> uint8 (3, image_size,
    image_size). Of an image that is `LONGEST` times as long as wide or more, only the middle is resized."""

    def __init__(self, config: ClassificationConfig, crop_pct: float | None = None) -> None:
        self.side = config.data.image_size
        # facebookresearch/mae util/datasets.py: 224 / 256 up to 224 pixels, 1.0 above
        crop_pct = crop_pct or config.eval.crop_pct or (224 / 256 if self.side <= 224 else 1.0)
        self.resized = int(self.side / crop_pct)
        self.mode, self.squash = config.resizing

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        short = min(height, width)
        if not self.squash and max(height, width) > LONGEST * short:
            # a strip: its middle at the same scale, or resizing it would take gigabytes
            image = F.center_crop(image, [min(edge, LONGEST * short) for edge in (height, width)])
            height, width = image.shape[1:]
        if self.squash:
            image = resize(image, self.resized, self.resized, self.mode)
        elif short != self.resized:
            # torchvision's rule for the longer side: cut, not rounded
            height, width = (
                self.resized if edge == short else int(self.resized * edge / short) for edge in (height, width)
            )
            image = resize(image, height, width, self.mode)
        return F.center_crop(image, [self.side, self.side])
