"""ADE20K's training and test transforms, with the arithmetic of mmsegmentation (`_base_/datasets/ade20k.py`).

Training: RandomResize -> RandomCrop with cat_max_ratio -> RandomFlip -> PhotoMetricDistortion. Given the same random
numbers, images and labels come out the same as there, but that colours are RGB instead of BGR throughout. Padding is
left to the model, which pads with zeros after normalising. Images are uint8 (h, w, 3), labels int16 (h, w) with IGNORE.

OpenCV resizes: unlike Pillow's, its bilinear filter does not smooth when it shrinks, and the published numbers are with
that; those of DINOv3's heads are with Pillow's (dinov3/eval/segmentation/transforms.py), whose sizes are the same.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from mae_transfer.tasks.ade20k.config import DataConfig
from mae_transfer.tasks.ade20k.opencv import cv2

IGNORE = -1
"""The label of pixels that count neither in the loss nor in the metric (255 in mmsegmentation, which caps classes)."""
CROP_RETRIES = 10

BRIGHTNESS = 32.0
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18


def rescaled_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Height and width when the image is made as large as both sides allow (mmcv's `rescale_size`)."""
    factor = min(long_side / max(height, width), short_side / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize_for_evaluation(
    image: np.ndarray, config: DataConfig, ratio: float = 1.0, by: Literal["opencv", "pillow"] = "opencv"
) -> np.ndarray:
    """The image at `ratio` times the evaluation size, but no smaller than the window, as published multi-scale numbers
    are (`min_size` of mmsegmentation 0.x and BEiT; the port to 1.x left it out): smaller ratios repeat that size."""
    ratio = max(ratio, min(config.image_size / config.short_side, 1.0))
    sides = int(config.short_side * ratio), int(config.long_side * ratio)
    size = rescaled_size(image.shape[0], image.shape[1], *sides)
    if by == "opencv":
        return resize_image(image, size)
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def augment(
    image: np.ndarray, label: np.ndarray, config: DataConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Resize, crop to at most `image_size`, flip and distort: image and label of one size, maybe short of the crop."""
    ratio = rng.uniform(config.ratio_min, config.ratio_max)
    sides = int(config.short_side * ratio), int(config.long_side * ratio)
    size = rescaled_size(image.shape[0], image.shape[1], *sides)
    image = resize_image(image, size)
    label = cv2.resize(label, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
    window = draw_crop(label, config.image_size, config.cat_max_ratio, rng)
    image, label = image[window], label[window]
    if rng.random() < config.flip:
        image, label = image[:, ::-1], label[:, ::-1]
    if config.photometric:
        image = draw_distortion(rng).apply(image)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


def draw_crop(label: np.ndarray, side: int, cat_max_ratio: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """A random window of at most side x side, drawn again while one class fills more of it than `cat_max_ratio`.

    Ignored pixels are left out of the ratio. The window of the last retry is taken unseen, as in mmsegmentation.
    """

    def draw() -> tuple[slice, slice]:
        top, left = (int(rng.integers(max(length - side, 0) + 1)) for length in label.shape)
        return slice(top, top + side), slice(left, left + side)

    window = draw()
    if cat_max_ratio < 1:
        for _ in range(CROP_RETRIES):
            inside = label[window]
            counts = np.bincount(inside[inside != IGNORE])
            if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio:
                break
            window = draw()
    return window


@dataclass(frozen=True)
class Distortion:
    """One drawn PhotoMetricDistortion; None leaves a step out."""

    brightness: float | None
    contrast: float | None
    contrast_first: bool
    saturation: float | None
    hue: int | None

    def apply(self, image: np.ndarray) -> np.ndarray:
        """uint8 RGB (h, w, 3) -> the same; every step rounds down to uint8, as in mmsegmentation."""
        if self.brightness is not None:
            image = _scale(image, 1.0, self.brightness)
        if self.contrast is not None and self.contrast_first:
            image = _scale(image, self.contrast, 0.0)
        if self.saturation is not None:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            hsv[:, :, 1] = _scale(hsv[:, :, 1], self.saturation, 0.0)
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if self.hue is not None:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            hsv[:, :, 0] = (hsv[:, :, 0].astype(np.int64) + self.hue) % 180  # OpenCV's hue is in units of 2 degrees
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if self.contrast is not None and not self.contrast_first:
            image = _scale(image, self.contrast, 0.0)
        return image


def draw_distortion(rng: np.random.Generator) -> Distortion:
    """Each step with probability 1/2, contrast before or after the colours with 1/2."""

    def maybe(low: float, high: float) -> float | None:
        return rng.uniform(low, high) if rng.random() < 0.5 else None

    return Distortion(
        brightness=maybe(-BRIGHTNESS, BRIGHTNESS),
        contrast=maybe(*CONTRAST),
        contrast_first=bool(rng.random() < 0.5),
        saturation=maybe(*SATURATION),
        hue=int(rng.integers(-HUE, HUE)) if rng.random() < 0.5 else None,
    )


def _scale(values: np.ndarray, factor: float, offset: float) -> np.ndarray:
    return np.clip(values.astype(np.float32) * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)
