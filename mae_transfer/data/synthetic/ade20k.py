"""A tiny data set in ADE20K's layout made on the fly, for smoke runs and tests: real JPEG and PNG files.

Shapes on a background that is a class itself; a class has its colour, so that a network can learn it. Each split has
what ADE20K has and code forgets: ignored pixels (mask value 0), the highest class (image 1), a grey file (image 2).
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mae_transfer.data.synthetic.folder import cache_folder, make_folder

COLOURS = {1: (120, 120, 200), 3: (200, 60, 60), 5: (60, 160, 60), 21: (220, 200, 60), 150: (160, 60, 200)}
"""Mask value -> RGB; 0 is grey noise."""
VERSION = 1


def make_ade20k(
    folder: str | Path,
    *,
    train_images: int = 8,
    val_images: int = 4,
    size: tuple[int, int] = (96, 160),
    seed: int = 0,
) -> Path:
    """Writes images/ and annotations/, each with training/ and validation/, below `folder`; returns it.

    Image sides are drawn from `size` (smallest, largest) pixels. The folder appears whole or not at all, is the same
    for the same arguments, and is reused when it was made with them; UserError if something else is there.
    """
    parameters = {
        "version": VERSION,
        "train_images": train_images,
        "val_images": val_images,
        "size": list(size),
        "seed": seed,
    }

    def write(empty: Path) -> None:
        for split, prefix, count in (("training", "train", train_images), ("validation", "val", val_images)):
            _write_split(empty, split, prefix, count, size, np.random.default_rng((seed, len(split))))

    return make_folder(folder, parameters, write)


def cached_ade20k() -> Path:
    """The data set of the default arguments in the user's cache folder, made when it is not there."""
    return make_ade20k(cache_folder(f"synthetic_ade20k_v{VERSION}"))


def _write_split(
    folder: Path, split: str, prefix: str, count: int, size: tuple[int, int], rng: np.random.Generator
) -> None:
    for kind in ("images", "annotations"):
        (folder / kind / split).mkdir(parents=True)
    for number in range(1, count + 1):
        height, width = (int(side) for side in rng.integers(size[0], size[1] + 1, 2))
        image, mask = _draw(height, width, rng, last=max(COLOURS) if number == 1 else None)
        name = f"ADE_{prefix}_{number:08d}"
        (image.convert("L") if number == 2 else image).save(folder / "images" / split / f"{name}.jpg", quality=95)
        mask.save(folder / "annotations" / split / f"{name}.png")


def _draw(height: int, width: int, rng: np.random.Generator, last: int | None) -> tuple[Image.Image, Image.Image]:
    """A scene of 3 to 5 shapes, `last` the value of the last one if given, and its mask with an ignored border."""
    mask = Image.new("L", (width, height), int(rng.choice(list(COLOURS))))
    canvas = ImageDraw.Draw(mask)
    values = rng.choice(list(COLOURS), int(rng.integers(3, 6))).tolist()
    if last is not None:
        values[-1] = last
    for value in values:
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.15, 0.35, 2) * min(width, height)
        shape = canvas.ellipse if rng.random() < 0.5 else canvas.rectangle
        shape([x - w, y - h, x + w, y + h], fill=value)
    canvas.rectangle([0, 0, width - 1, height - 1], outline=0, width=2)
    table = np.full((256, 3), 90)
    for value, colour in COLOURS.items():
        table[value] = colour
    pixels = table[np.asarray(mask)] + rng.integers(-15, 16, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), mask
