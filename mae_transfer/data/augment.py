"""Augmentation that several tasks use: random crops, bicubic resizing, RandAugment, normalisation.

Images are uint8 tensors (3, H, W). Resampling is bicubic with antialiasing, as Pillow's, by torch's uint8 kernels.
RandAugment is timm's own, which works on Pillow images. Sources: facebookresearch/mae util/datasets.py and
util/crop.py, timm's transforms_factory.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.auto_augment import RandAugment
from timm.data.transforms import str_to_pil_interp
from torch import Tensor
from torch.nn.functional import interpolate

from mae_transfer.errors import UserError

RATIO = (3 / 4, 4 / 3)
"""Aspect ratios of random crops: torchvision's and timm's default."""
ATTEMPTS = 10
"""Tries of `draw_crop` before it takes the centre."""


def resize(image: Tensor, height: int, width: int, mode: str = "bicubic") -> Tensor:
    """uint8 (3, H, W) -> uint8 (3, height, width)."""
    # A decoded image has its channels last in memory, but a crop of it counts as neither layout and is resampled plane
    # by plane; a copy with channels last takes two thirds of the time.
    image = image[None].contiguous(memory_format=torch.channels_last)
    return interpolate(image, (height, width), mode=mode, antialias=True)[0]


def draw_crop(height: int, width: int, scale_min: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) as torchvision's RandomResizedCrop draws it: ten tries, else the largest centre."""
    area, log_ratio = height * width, (math.log(RATIO[0]), math.log(RATIO[1]))
    for _ in range(ATTEMPTS):
        target = area * rng.uniform(scale_min, 1.0)
        ratio = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    in_ratio = width / height
    if in_ratio < RATIO[0]:
        w, h = width, round(width / RATIO[0])
    elif in_ratio > RATIO[1]:
        w, h = round(height * RATIO[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def draw_single_crop(height: int, width: int, scale_min: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a single try, cut to the image: MAE's util/crop.py, after TensorFlow's."""
    target = height * width * rng.uniform(scale_min, 1.0)
    ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
    w, h = (
        min(max(round(side), 1), whole)
        for side, whole in (
            (math.sqrt(target * ratio), width),
            (math.sqrt(target / ratio), height),
        )
    )
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def make_randaugment(policy: str, side: int, mean: tuple[float, ...]) -> RandAugment:
    """timm's policy with the parameters that timm's own transforms_imagenet_train gives it at interpolation bicubic."""
    options = {
        "translate_const": int(side * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": str_to_pil_interp("bicubic"),
    }
    try:
        augment = auto_augment.rand_augment_transform(policy, options)
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"data.randaugment={policy}: timm cannot read this policy ({error}); an example is rand-m9-mstd0.5-inc1"
        ) from None
    for operation in augment.ops:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = posterize
    return augment


def posterize(image: Image.Image, bits_to_keep: int, **options: object) -> Image.Image:
    """timm's posterize; 0 bits give a black image.

    A magnitude of 9 with deviation 0.5 is sometimes 10, which means 0 bits. Pillow before version 13 made the image
    black, in the published runs too; later versions refuse.
    """
    if bits_to_keep == 0:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep, **options)


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed Python's and numpy's global generators, from which timm's objects draw; restore them at the end."""
    python, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
