"""COCO files that are whole and agree in form, but say something else (`coco_changes.py`). The pictures say the truth.

Each object is painted in a colour of its own, which tells its class. A perfect model finds all objects in the pixels of
the files that the annotations name. It has to score what it scores with the unchanged file: 100. If it does not, the
file is refused, or a warning says so, or the change is one that nothing contradicts.
"""

import copy
import math
from pathlib import Path
from random import Random

import numpy as np
from campaign import Trial, Wrong
from coco_changes import CHANGES, ROUNDED, UNSEEN, Tree, bitmap, runs
from mutate import dump
from PIL import Image
from pycocotools import mask as masks

from mae_transfer.data.decode import read_image
from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.evaluate import ImageDetections, score
from mae_transfer.tasks.coco.files import check_files

SIDES = ((150, 260), (260, 150), (200, 200), (200, 200))
"""Height and width."""
BOXES = ((4, 6, 20, 24), (30, 6, 60, 44), (10, 60, 120, 85), (100, 10, 30, 30))
"""x, y, width, height: small, medium, large, small; the last is a crowd in the first image."""
NAMES = {3: "ant", 7: "bee", 9: "cat"}
HARMLESS = ("would count such objects as missed", "it is computed from their masks")
"""Ends of warnings of things that change no value."""
RED = {60: "ant", 120: "bee", 180: "cat"}
"""An object's green is its number, 1 to 4, and its blue 255; a crowd has blue 128."""


def shape_of(image: int, number: int) -> list[list[float]]:
    """Polygons: the medium object is an L, the large one of the second image has two parts."""
    x, y, w, h = BOXES[number]
    if number == 1:
        return [[x, y, x + w // 2, y, x + w // 2, y + h // 2, x + w, y + h // 2, x + w, y + h, x, y + h]]
    parts = [(y, y + h)] if (image, number) != (1, 2) else [(y, y + h // 2), (y + h // 2 + 6, y + h)]
    return [[x, top, x + w, top, x + w, bottom, x, bottom] for top, bottom in parts]


def truth(folder: Path) -> Tree:
    """The tree; writes the pictures too."""
    annotations, images = [], []
    for image, (height, width) in enumerate(SIDES):
        picture = np.zeros((height, width, 3), np.uint8)
        for number, box in enumerate(BOXES):
            place, crowd = (image + number) % 3, (image, number) == (0, 3)
            polygons = shape_of(image, number)
            mask = bitmap(polygons, height, width)
            picture[mask] = (list(RED)[place], number + 1, 128 if crowd else 255)
            annotations.append({
                "id": len(annotations) + 1, "image_id": image + 1, "category_id": list(NAMES)[place], "bbox": list(box),
                "area": float(mask.sum()), "iscrowd": int(crowd),
                "segmentation": {"size": [height, width], "counts": runs(mask)} if number == 3 else polygons,
            })  # fmt: skip
        Image.fromarray(picture).save(folder / f"{image + 1}.png")
        images.append({"id": image + 1, "file_name": f"{image + 1}.png", "height": height, "width": width})
    categories = [{"id": i, "name": name} for i, name in NAMES.items()]
    return {"images": images, "categories": categories, "annotations": annotations}


def perfect(annotations: CocoAnnotations, folder: Path) -> dict[str, float]:
    """APs of a model that finds every painted object of every image."""
    found = []
    for i in range(len(annotations)):
        record = annotations[i]
        pixels = np.asarray(read_image(folder / record.file_name, record.height, record.width))
        boxes, classes, encoded = [], [], []
        for red, number, blue in np.unique(pixels.reshape(-1, 3), axis=0).tolist():
            if blue == 255 and RED[red] in annotations.names:
                mask = masks.encode(np.asfortranarray((pixels == (red, number, blue)).all(-1).astype(np.uint8)))
                boxes.append(masks.toBbox(mask))
                classes.append(annotations.names.index(RED[red]))
                encoded.append(mask)
        scores, table = np.ones(len(boxes), np.float32), np.array(boxes, np.float32).reshape(-1, 4)
        found.append(ImageDetections(record.id, table, scores, np.array(classes, int), encoded))
    return {key: value for key, value in score(annotations, found).items() if "_AR" not in key}


class Family:
    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "instances.json"
        self.tree = truth(folder)
        self.files = {path.name: path.read_bytes() for path in folder.glob("*.png")}
        self.path.write_bytes(dump(self.tree))
        self.expected = self.read()[0]
        if any(not value > 99.99 for value in self.expected.values()):
            raise RuntimeError(f"the unchanged file scores {self.expected}")

    def read(self) -> tuple[dict[str, float], list[str]]:
        annotations = CocoAnnotations(self.path)
        warnings = annotations.warnings + check_files(annotations, self.folder, "error")
        return perfect(annotations, self.folder), warnings

    def trial(self, rng: Random) -> Trial:
        for path in self.folder.glob("*.png"):
            path.unlink()
        for name, content in self.files.items():
            (self.folder / name).write_bytes(content)
        tree, changes = copy.deepcopy(self.tree), rng.sample(CHANGES, rng.choice((1, 1, 1, 2)))
        try:
            for change in changes:
                change(tree, rng, self.folder)
        except (KeyError, TypeError, ValueError, IndexError, StopIteration, AttributeError):
            changes = changes[:-1]  # a second change that the first leaves nothing to work on
            tree = copy.deepcopy(self.tree)
            changes[0](tree, rng, self.folder)
        self.path.write_bytes(dump(tree))

        def judge(read: tuple[dict[str, float], list[str]]) -> str | None:
            metrics, warnings = read
            low = {key: round(v, 1) for key, v in metrics.items() if math.isnan(v) or v < 99.99}
            unseen = [UNSEEN[change] for change in changes if change in UNSEEN]
            if not low:
                return None
            if any(not line.endswith(HARMLESS) for line in warnings):
                return "a COCO file of which a warning says what is odd"
            if not unseen or (set(unseen) == {ROUNDED} and any(not v > 90 for v in low.values())):
                raise Wrong(f"a perfect model scores {low}, and no warning says why")
            return unseen[0]

        return Trial(" and ".join(change.__name__ for change in changes), self.read, judge)
