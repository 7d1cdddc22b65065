"""A tiny data set in ADE20K's layout made on the fly, for smoke runs and tests: real JPEG and PNG files.

Shapes on a background that is a class itself; a class has its colour, so that a network can learn it. Each split has
what ADE20K has and code forgets: ignored pixels (mask value 0), a greyscale file (image 2), and the highest class.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mae_transfer.errors import UserError

COLOURS = {1: (120, 120, 200), 3: (200, 60, 60), 5: (60, 160, 60), 21: (220, 200, 60), 150: (160, 60, 200)}
"""Mask value -> RGB; 0 is grey noise."""
VERSION = 1
PARAMETERS_FILE = "synthetic.json"


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
    folder = Path(folder)
    parameters = {"version": VERSION, "images": [train_images, val_images], "size": list(size), "seed": seed}
    if _is_ready(folder, parameters):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        partial.chmod(0o755)
        for split, prefix, count in (("training", "train", train_images), ("validation", "val", val_images)):
            rng = np.random.default_rng((seed, len(split)))
            for kind in ("images", "annotations"):
                (partial / kind / split).mkdir(parents=True)
            for number in range(1, count + 1):
                height, width = (int(side) for side in rng.integers(size[0], size[1] + 1, 2))
                image, mask = _draw(height, width, rng)
                name = f"ADE_{prefix}_{number:08d}"
                (image.convert("L") if number == 2 else image).save(
                    partial / "images" / split / f"{name}.jpg", quality=95
                )
                mask.save(partial / "annotations" / split / f"{name}.png")
        (partial / PARAMETERS_FILE).write_text(json.dumps(parameters), encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:
            if not _is_ready(folder, parameters):  # else another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def cached_ade20k() -> Path:
    """The data set of the default arguments in the user's cache folder, made when it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return make_ade20k(cache / "mae_transfer" / f"synthetic_ade20k_v{VERSION}")


def _is_ready(folder: Path, parameters: dict[str, object]) -> bool:
    if not folder.exists() or (folder.is_dir() and not os.listdir(folder)):
        return False
    try:
        found = json.loads((folder / PARAMETERS_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        found = None
    if found != parameters:
        raise UserError(
            f"{folder}: there is something else than the synthetic data set of these parameters; remove it or give "
            "another folder"
        )
    return True


def _draw(height: int, width: int, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """A scene of 3 to 5 shapes and its mask; the outermost pixels are ignored."""
    mask = Image.new("L", (width, height), int(rng.choice(list(COLOURS))))
    canvas = ImageDraw.Draw(mask)
    for value in rng.choice(list(COLOURS), int(rng.integers(3, 6))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.15, 0.35, 2) * min(width, height)
        shape = canvas.ellipse if rng.random() < 0.5 else canvas.rectangle
        shape([x - w, y - h, x + w, y + h], fill=int(value))
    canvas.rectangle([0, 0, width - 1, height - 1], outline=0, width=2)
    values = np.asarray(mask)
    table = np.full((256, 3), 90)
    for value, colour in COLOURS.items():
        table[value] = colour
    pixels = table[values] + rng.integers(-15, 16, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), mask
