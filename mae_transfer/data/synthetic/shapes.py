"""One small world in four layouts, for the demo: coloured shapes on blotchy backgrounds, under heavy noise.

    detection/        COCO's layout, 2 to 4 shapes an image
    segmentation/     ADE20K's layout, the same kind of scene; mask value 0 is the background, 1 to 5 are the shapes
    classification/   train/<shape>/ and val/<shape>/, one shape an image
    unlabelled/       scenes to pre-train on

A shape has a form and, roughly, a colour of its own. Noise of the strength of the contrast hides both in a few pixels
and leaves them to see in many.
"""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle

from mae_transfer.data.synthetic.folder import make_folder

COLOURS = {
    "circle": (200, 60, 60),
    "rectangle": (60, 170, 60),
    "triangle": (70, 90, 210),
    "star": (210, 180, 50),
    "ring": (170, 60, 190),
}
"""Shape -> RGB about which a shape's own colour is drawn."""
NAMES = tuple(COLOURS)
NOISE = 40.0
"""Standard deviation of a pixel, of 255."""
SPREAD = 20.0
"""Standard deviation of a shape's colour."""
VERSION = 1

Box = tuple[float, float, float, float]


def make_shapes(
    folder: str | Path,
    *,
    train_images: int = 200,
    val_images: int = 80,
    per_class: tuple[int, int] = (60, 60),
    unlabelled: int = 1280,
    side: int = 64,
    seed: int = 0,
) -> Path:
    """Writes the four sets below `folder`; returns it.

    Args:
        train_images, val_images: of detection and of segmentation.
        per_class: training and val images of each class of classification.
        side: height and width of every image in pixels.

    The folder appears whole or not at all, is the same for the same arguments, and is reused when it was made with
    them; UserError if something else is there.
    """
    counts = {"train": train_images, "val": val_images}
    parameters: dict[str, object] = {
        "version": VERSION,
        "images": [train_images, val_images],
        "per_class": list(per_class),
        "unlabelled": unlabelled,
        "side": side,
        "seed": seed,
    }

    def write(empty: Path) -> None:
        rng = np.random.default_rng(seed)
        _write_detection(empty / "detection", counts, side, rng)
        _write_segmentation(empty / "segmentation", counts, side, rng)
        for split, count in zip(("train", "val"), per_class, strict=True):
            for name in NAMES:
                _write_images(empty / "classification" / split / name, count, side, rng, (name,))
        _write_images(empty / "unlabelled", unlabelled, side, rng)

    return make_folder(folder, parameters, write)


def draw_scene(
    side: int, rng: np.random.Generator, names: tuple[str, ...] | None = None
) -> tuple[Image.Image, list[tuple[str, np.ndarray]]]:
    """An image, and the shapes in it as name and mask, bool (side, side). Shapes do not overlap; names: which they
    are, larger than those of a scene, which are 2 to 4 of any kind."""
    blotches = Image.fromarray(rng.integers(40, 200, (4, 4, 3), dtype=np.uint8))
    pixels = np.asarray(blotches.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64).copy()
    sizes = (0.4, 0.9) if names else (0.25, 0.5)
    wanted = names or tuple(rng.choice(NAMES, int(rng.integers(2, 5))).tolist())
    taken: list[Box] = []
    shapes = []
    for name in wanted:
        box = _free_box(side, rng, taken, float(rng.uniform(*sizes)))
        if box is not None:
            taken.append(box)
            mask = _draw(name, box, side, rng)
            pixels[mask] = COLOURS[name] + rng.normal(0, SPREAD, 3)
            shapes.append((name, mask))
    pixels += rng.normal(0, NOISE, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), shapes


def _free_box(side: int, rng: np.random.Generator, taken: list[Box], share: float) -> Box | None:
    """A square of about this share of the side that touches no other; None when it is too full."""
    for _ in range(30):
        size = share * side
        x, y = (float(v) for v in rng.uniform(0, side - size, 2))
        if all(x > box[2] or y > box[3] or x + size < box[0] or y + size < box[1] for box in taken):
            return x, y, x + size, y + size
        share *= 0.97
    return None


def _draw(name: str, box: Box, side: int, rng: np.random.Generator) -> np.ndarray:
    """The mask of a shape that fills a box; triangles and stars are turned at random."""
    layer = Image.new("L", (side, side))
    canvas = ImageDraw.Draw(layer)
    left, top, right, bottom = box
    x, y, radius = (left + right) / 2, (top + bottom) / 2, (right - left) / 2
    if name == "rectangle":
        flat = radius * float(rng.uniform(0.5, 1.0))
        canvas.rectangle([left, y - flat, right, y + flat], fill=1)
    elif name in ("circle", "ring"):
        canvas.ellipse(box, fill=1)
        if name == "ring":
            hole = radius * 0.5
            canvas.ellipse([x - hole, y - hole, x + hole, y + hole], fill=0)
    else:
        corners, turn = (3 if name == "triangle" else 10), float(rng.uniform(0, 2 * math.pi))
        distances = [radius * (0.45 if name == "star" and k % 2 else 1.0) for k in range(corners)]
        angles = [turn + 2 * math.pi * k / corners for k in range(corners)]
        canvas.polygon(
            [(x + d * math.cos(a), y + d * math.sin(a)) for d, a in zip(distances, angles, strict=True)], fill=1
        )
    return np.asarray(layer, dtype=bool)


def _write_images(
    folder: Path, count: int, side: int, rng: np.random.Generator, names: tuple[str, ...] | None = None
) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        draw_scene(side, rng, names)[0].save(folder / f"{number:05d}.jpg", quality=95)


def _write_detection(folder: Path, counts: dict[str, int], side: int, rng: np.random.Generator) -> None:
    (folder / "annotations").mkdir(parents=True)
    for split, count in counts.items():
        (folder / f"{split}2017").mkdir()
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for number in range(1, count + 1):
            image, shapes = draw_scene(side, rng)
            name = f"{number:012d}.jpg"
            image.save(folder / f"{split}2017" / name, quality=95)
            images.append({"id": number, "file_name": name, "height": side, "width": side})
            for shape, mask in shapes:
                encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 1 + NAMES.index(shape),
                        "bbox": [float(v) for v in rle.toBbox(encoded)],
                        "area": float(rle.area(encoded)),
                        "iscrowd": 0,
                        "segmentation": {"size": [side, side], "counts": encoded["counts"].decode("ascii")},
                    }
                )
        content = {
            "info": {"description": "synthetic shapes"},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(NAMES, 1)],
        }
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content), encoding="utf-8")


def _write_segmentation(folder: Path, counts: dict[str, int], side: int, rng: np.random.Generator) -> None:
    for split, count in zip(("training", "validation"), counts.values(), strict=True):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(1, count + 1):
            image, shapes = draw_scene(side, rng)
            mask = np.zeros((side, side), np.uint8)
            for name, where in shapes:
                mask[where] = 1 + NAMES.index(name)
            image.save(folder / "images" / split / f"{number:08d}.jpg", quality=95)
            Image.fromarray(mask).save(folder / "annotations" / split / f"{number:08d}.png")
