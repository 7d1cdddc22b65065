"""Tiny data sets in the layouts of image classification made on the fly, for smoke runs and tests: real JPEG files.

A class is a colour and a texture, so that a network can learn it. Each set has what real ones have and code forgets: a
greyscale file (the first of each split) and images of many sizes and aspect ratios.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mae_transfer.data.synthetic.folder import cache_folder, make_folder

CLASSES = ("anemone", "birch", "crane", "dune", "estuary")
INAT_NAMES = {2017: "train_val_images", 2018: "train_val2018", 2019: "train_val2019"}
VERSION = 1


def make_classification(
    folder: str | Path,
    task: str,
    *,
    train_images: int = 8,
    val_images: int = 4,
    classes: int = 5,
    size: tuple[int, int] = (40, 80),
    seed: int = 0,
) -> Path:
    """Writes a set in the layout of the task (imagenet, folder, inat<year>, places205, places365); returns it.

    `train_images` and `val_images` are per class; image sides are drawn from `size` (smallest, largest) pixels. The
    folder appears whole or not at all, is the same for the same arguments, and is reused when it was made with them;
    UserError if something else is there.
    """
    parameters = {
        "version": VERSION,
        "task": task,
        "images": [train_images, val_images],
        "classes": classes,
        "size": list(size),
        "seed": seed,
    }
    counts = {"train": train_images, "val": val_images}
    rows = {split: [(label, i) for label in range(classes) for i in range(count)] for split, count in counts.items()}
    return make_folder(folder, parameters, lambda empty: _write(empty, task, rows, size, np.random.default_rng(seed)))


def cached_classification(task: str) -> Path:
    """The set of the default arguments in the user's cache folder, made when it is not there."""
    return make_classification(cache_folder(f"synthetic_{task}_v{VERSION}"), task)


def class_name(task: str, label: int) -> str:
    return f"n{label:08d}" if task == "imagenet" else CLASSES[label] if label < len(CLASSES) else f"class{label:03d}"


def draw(label: int, height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """Stripes of the class's colour, direction and width over noise."""
    hue = np.array([(label * 97) % 256, (label * 57 + 80) % 256, (label * 181 + 30) % 256])
    angle, period = 0.6 * label, 4 + 3 * (label % 4)
    y, x = np.mgrid[:height, :width]
    stripes = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + rng.uniform(0, 2 * np.pi))
    pixels = hue + 50 * stripes[..., None] + rng.normal(0, 15, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _write(
    folder: Path,
    task: str,
    rows: dict[str, list[tuple[int, int]]],
    size: tuple[int, int],
    rng: np.random.Generator,
) -> None:
    """`rows`: split -> (label, number) of each image."""
    if task.startswith("inat"):
        paths = _write_inat(folder, int(task.removeprefix("inat")), rows)
    elif task == "places365":
        paths = _write_places365(folder, rows)
    elif task == "places205":
        paths = _write_places205(folder, rows)
    else:
        paths = {
            split: [f"{split}/{class_name(task, label)}/{split}_{number:04d}.JPEG" for label, number in pairs]
            for split, pairs in rows.items()
        }
    for split, names in paths.items():
        for index, (name, (label, _)) in enumerate(zip(names, rows[split], strict=True)):
            height, width = (int(side) for side in rng.integers(size[0], size[1] + 1, 2))
            image = draw(label, height, width, rng)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (image.convert("L") if index == 0 else image).save(folder / name, "JPEG", quality=95)


def _write_inat(folder: Path, year: int, rows: dict[str, list[tuple[int, int]]]) -> dict[str, list[str]]:
    """train and val JSON files as iNaturalist's; the paths of the images."""
    labels = sorted({label for label, _ in rows["train"]})
    categories = [
        {"id": label, "name": f"Species {CLASSES[label % len(CLASSES)]} {label}", "supercategory": "Plantae"}
        for label in labels
    ]
    paths: dict[str, list[str]] = {}
    for split, pairs in rows.items():
        if year == 2021:
            paths[split] = [f"{split}/{label:05d}_Plantae_{label}/{number:04d}.jpg" for label, number in pairs]
        else:
            paths[split] = [f"{INAT_NAMES[year]}/Plantae/{label}/{split}{number:04d}.jpg" for label, number in pairs]
        content = {
            "info": {"description": "synthetic", "year": year},
            "images": [{"id": 10 + i, "file_name": name, "license": 3} for i, name in enumerate(paths[split])],
            "annotations": [{"id": i, "image_id": 10 + i, "category_id": label} for i, (label, _) in enumerate(pairs)],
            "categories": categories,
            "licenses": [],
        }
        name = f"{split}.json" if year == 2021 else f"{split}{year}.json"
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return paths


def _write_places365(folder: Path, rows: dict[str, list[tuple[int, int]]]) -> dict[str, list[str]]:
    """The small images' layout, with the lists of the development kit."""
    labels = sorted({label for label, _ in rows["train"]})
    lines = [f"/{_place(label)} {label}" for label in labels]
    (folder / "categories_places365.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    train = [f"/{_place(label)}/{number:08d}.jpg" for label, number in rows["train"]]
    val = [f"Places365_val_{index:08d}.jpg" for index in range(1, len(rows["val"]) + 1)]
    for file, names, split in (("places365_train_standard.txt", train, "train"), ("places365_val.txt", val, "val")):
        lines = [f"{name} {label}" for name, (label, _) in zip(names, rows[split], strict=True)]
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"train": [f"data_256{name}" for name in train], "val": [f"val_256/{name}" for name in val]}


def _write_places205(folder: Path, rows: dict[str, list[tuple[int, int]]]) -> dict[str, list[str]]:
    (folder / "trainvalsplit_places205").mkdir()
    paths = {}
    for split, pairs in rows.items():
        names = [f"{_place(label)}/gsun_{split}{number:04d}.jpg" for label, number in pairs]
        lines = [f"{name} {label}" for name, (label, _) in zip(names, pairs, strict=True)]
        file = folder / "trainvalsplit_places205" / f"{split}_places205.csv"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        paths[split] = [f"data/vision/torralba/deeplearning/images256/{name}" for name in names]
    return paths


def _place(label: int) -> str:
    """A class's path: the initial, the name, and for some a part of the place."""
    name = class_name("places", label)
    return f"{name[0]}/{name}" + ("/indoor" if label % 3 == 2 else "")
