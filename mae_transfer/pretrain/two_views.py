"""Two views of an image for contrastive learning: facebookresearch/moco-v3 `main_moco.py`, `moco/loader.py`.

A crop, resized bilinearly, then colour jitter, greyscale, blur and solarising as BYOL has them, then a flip. The views
differ in blur and solarising. The colour operations are Pillow's, as in the released code, so that equal draws give
equal pixels; the draws are of the sample's own generator.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from mae_transfer.data.augment import resize
from mae_transfer.pretrain.config import MocoConfig
from mae_transfer.pretrain.views import Views

SECOND = "second"
"""Name of the second view in samples and batches."""
JITTER, GREY = 0.8, 0.2
"""Probabilities of colour jitter and of greyscale."""
SIGMA = (0.1, 2.0)
"""Of the blur, in pixels of the view."""
_JITTERS: tuple[tuple[Callable[[Image.Image, float], Image.Image], float, float], ...] = (
    (F.adjust_brightness, 0.6, 1.4),
    (F.adjust_contrast, 0.6, 1.4),
    (F.adjust_saturation, 0.8, 1.2),
    (F.adjust_hue, -0.1, 0.1),
)
"""ColorJitter(0.4, 0.4, 0.2, 0.1): each with the range of its factor."""


@dataclass(frozen=True)
class Distortion:
    """Probabilities in which the two views differ."""

    blur: float
    solarize: float


FIRST_VIEW, SECOND_VIEW = Distortion(blur=1.0, solarize=0.0), Distortion(blur=0.1, solarize=0.2)


class TwoViews(Views):
    """In training "image" and "second" are the views. In evaluation "image" is the centre crop, "second" a view."""

    def __init__(self, config: MocoConfig) -> None:
        super().__init__(config)
        self.distorts = config.data.augmentation == "full"

    def train(self, image: Tensor, rng: np.random.Generator) -> dict[str, object]:
        return {"image": self._view(image, rng, FIRST_VIEW), SECOND: self._view(image, rng, SECOND_VIEW)}

    def test(self, image: Tensor, rng: np.random.Generator) -> dict[str, object]:
        return super().test(image, rng) | {SECOND: self._view(image, rng, SECOND_VIEW)}

    def _view(self, image: Tensor, rng: np.random.Generator, kind: Distortion) -> Tensor:
        view = resize(self._crop(image, rng), *self.size, mode="bilinear")
        if self.distorts:
            view = F.pil_to_tensor(distort(F.to_pil_image(view), kind, rng))
        return view.flip(-1) if rng.random() < self.data.flip else view


def distort(picture: Image.Image, kind: Distortion, rng: np.random.Generator) -> Image.Image:
    """Colours and sharpness of a view (RGB) changed at random."""
    if rng.random() < JITTER:
        for place in rng.permutation(len(_JITTERS)):
            adjust, low, high = _JITTERS[place]
            picture = adjust(picture, float(rng.uniform(low, high)))
    if rng.random() < GREY:
        picture = picture.convert("L").convert("RGB")
    if rng.random() < kind.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(*SIGMA))))
    return ImageOps.solarize(picture) if rng.random() < kind.solarize else picture
