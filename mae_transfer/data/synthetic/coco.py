"""A tiny COCO 2017 data set made on the fly, for smoke runs and tests: real JPEG files, a real annotation file.

Five shapes are the categories, with ids as full of holes as COCO's. Each split has what COCO has and code forgets: an
RLE crowd (image 1), a greyscale file (image 2), an image without objects (image 3), objects of two polygons, and rings,
whose hole takes an RLE that is no crowd. Shapes do not overlap, so the masks are exact.
"""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle

from mae_transfer.data.synthetic.folder import cache_folder, make_folder

CATEGORIES = {2: "circle", 3: "rectangle", 7: "triangle", 11: "star", 90: "ring"}
# Part of what makes an existing folder reusable; raise it when the images change.
VERSION = 1

Point = tuple[float, float]


def make_coco(
    folder: str | Path,
    *,
    train_images: int = 8,
    val_images: int = 4,
    size: tuple[int, int] = (96, 160),
    seed: int = 0,
) -> Path:
    """Writes train2017/, val2017/ and annotations/ below `folder`, the same for the same arguments; returns it.

    Image sides are drawn from `size` (smallest, largest) pixels. The folder appears whole or not at all, and is reused
    when it was made with the same arguments; UserError if something else is there.
    """
    parameters = {
        "version": VERSION,
        "train_images": train_images,
        "val_images": val_images,
        "size": list(size),
        "seed": seed,
    }

    def write(empty: Path) -> None:
        (empty / "annotations").mkdir()
        for number, (split, count) in enumerate((("train2017", train_images), ("val2017", val_images))):
            _write_split(empty, split, count, size, np.random.default_rng((seed, number)))

    return make_folder(folder, parameters, write)


def cached_coco() -> Path:
    """The data set of the default arguments in the user's cache folder, made when it is not there."""
    return make_coco(cache_folder(f"synthetic_coco_v{VERSION}"))


def _write_split(folder: Path, split: str, count: int, size: tuple[int, int], rng: np.random.Generator) -> None:
    (folder / split).mkdir()
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number in range(1, count + 1):
        height, width = (int(side) for side in rng.integers(size[0], size[1] + 1, 2))
        canvas = _background(height, width, rng)
        objects = [] if number == 3 else _draw_objects(canvas, rng, crowd=number == 1)
        name = f"{number:012d}.jpg"
        (canvas.convert("L") if number == 2 else canvas).save(folder / split / name, quality=95, subsampling=0)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for item in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": number} | item)
    content = {
        "info": {"description": "synthetic shapes"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": "shape"} for i, name in CATEGORIES.items()],
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _background(height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """Smooth blotches of dull colours under fine noise."""
    blotches = Image.fromarray(rng.integers(60, 150, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(blotches.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int64)
    return Image.fromarray(np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8))


def _draw_objects(canvas: Image.Image, rng: np.random.Generator, crowd: bool) -> list[dict[str, object]]:
    """Draws 2 to 5 shapes, and first a crowd if asked, where nothing is yet; returns their annotations."""
    taken: list[np.ndarray] = []
    objects = []
    wanted = [int(i) for i in rng.choice(list(CATEGORIES), int(rng.integers(2, 6)))]
    if crowd:
        place = _free_place(canvas, rng, taken, 0.4)
        if place is not None:
            objects.append(_draw_crowd(canvas, rng, place))
        wanted[0] = 90
    for category in wanted:
        place = _free_place(canvas, rng, taken, float(rng.uniform(0.2, 0.5)))
        if place is not None:
            objects.append(_draw_shape(canvas, rng, category, place))
    return objects


def _free_place(
    canvas: Image.Image, rng: np.random.Generator, taken: list[np.ndarray], share: float
) -> tuple[float, float, float] | None:
    """Centre x, y and radius of a free disc of about this share of the shorter side; None when it is too full."""
    for _ in range(30):
        radius = max(share * min(canvas.size) / 2, 5.0)
        x, y = (float(rng.uniform(radius, side - radius)) for side in canvas.size)
        box = np.array([x - radius, y - radius, x + radius, y + radius])
        if not any((np.minimum(box[2:], t[2:]) > np.maximum(box[:2], t[:2])).all() for t in taken):
            taken.append(box)
            return x, y, radius
        share *= 0.95
    return None


def _outlines(category: int, x: float, y: float, radius: float, rng: np.random.Generator) -> list[list[Point]]:
    """The polygons of a shape that fills a disc; some rectangles come in two parts, like an object behind a pole."""
    turn = float(rng.uniform(0, 2 * math.pi))

    def corner(angle: float, distance: float = 1.0) -> Point:
        return x + radius * distance * math.cos(turn + angle), y + radius * distance * math.sin(turn + angle)

    if category == 3:
        aspect = float(rng.uniform(0.5, 1.0))
        half_w, half_h = radius * 0.9, radius * 0.9 * aspect
        bounds = [(x - half_w, x + half_w)]
        if rng.random() < 0.5:
            bounds = [(x - half_w, x - half_w * 0.2), (x + half_w * 0.2, x + half_w)]
        return [[(a, y - half_h), (b, y - half_h), (b, y + half_h), (a, y + half_h)] for a, b in bounds]
    if category == 7:
        return [[corner(k * 2 * math.pi / 3) for k in range(3)]]
    if category == 11:
        return [[corner(k * math.pi / 5, 0.45 if k % 2 else 1.0) for k in range(10)]]
    return [[corner(k * 2 * math.pi / 32) for k in range(32)]]


def _draw_shape(
    canvas: Image.Image, rng: np.random.Generator, category: int, place: tuple[float, float, float]
) -> dict[str, object]:
    polygons = _outlines(category, *place, rng)
    height, width = canvas.height, canvas.width
    flat = [[round(v, 2) for point in polygon for v in point] for polygon in polygons]
    encoded = rle.merge(rle.frPyObjects(flat, height, width))
    bitmap = rle.decode(encoded)
    if category == 90:
        x, y, radius = place
        hole = _outlines(category, x, y, radius * 0.5, rng)
        bitmap = bitmap & ~rle.decode(rle.frPyObjects([[v for p in hole[0] for v in p]], height, width))[..., 0] & 1
        encoded = rle.encode(np.asfortranarray(bitmap))
    _paint(canvas, bitmap, rng)
    segmentation = {"size": [height, width], "counts": encoded["counts"].decode("ascii")} if category == 90 else flat
    return _annotation(category, encoded, segmentation, crowd=False)


def _draw_crowd(canvas: Image.Image, rng: np.random.Generator, place: tuple[float, float, float]) -> dict[str, object]:
    """A heap of small circles as one crowd, its RLE written as a list of counts like COCO's own."""
    x, y, radius = place
    layer = Image.new("L", canvas.size)
    for dx, dy in rng.uniform(-0.7, 0.7, (12, 2)) * radius:
        r = radius * 0.25
        ImageDraw.Draw(layer).ellipse([x + dx - r, y + dy - r, x + dx + r, y + dy + r], fill=1)
    bitmap = np.array(layer)
    _paint(canvas, bitmap, rng)
    columns = bitmap.reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(columns)) + 1
    counts = np.diff(np.concatenate([[0], edges, [columns.size]])).tolist()
    if columns[0]:
        counts.insert(0, 0)
    segmentation = {"size": [canvas.height, canvas.width], "counts": counts}
    return _annotation(2, rle.encode(np.asfortranarray(bitmap)), segmentation, crowd=True)


def _paint(canvas: Image.Image, bitmap: np.ndarray, rng: np.random.Generator) -> None:
    """Fills the mask with one bright or dark colour and some noise."""
    pixels = np.array(canvas, dtype=np.int64)
    colour = rng.choice([20, 200, 235], 3)
    pixels[bitmap == 1] = colour + rng.integers(-10, 11, (int(bitmap.sum()), 3))
    canvas.paste(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))


def _annotation(category: int, encoded: dict[str, object], segmentation: object, crowd: bool) -> dict[str, object]:
    return {
        "category_id": category,
        "bbox": [float(v) for v in rle.toBbox(encoded)],
        "area": float(rle.area(encoded)),
        "iscrowd": int(crowd),
        "segmentation": segmentation,
    }
