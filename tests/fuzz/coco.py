"""COCO files, odd and damaged. Of a file that is accepted the ground truth is fed back: it has to score 100."""

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from campaign import Trial, Wrong
from coco_changes import ROUNDED
from mutate import dump, mutate_bytes, mutate_tree
from PIL import Image
from pycocotools import mask as masks

from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.evaluate import ImageDetections, score
from mae_transfer.tasks.coco.files import check_files

SIDES = ((120, 160), (160, 120), (200, 200))


def truth() -> dict[str, Any]:
    """Three images of rectangles, an L, an encoded mask, a crowd: small, medium and large."""
    annotations: list[dict[str, Any]] = []
    for image, (height, width) in enumerate(SIDES, 1):
        for x, y, w, h in ((4, 6, 20, 24), (40, 20, 60, 50), (5, 40, 110, 70)):
            number = len(annotations) + 1
            polygons = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotations.append({
                "id": number, "image_id": image, "category_id": 3 + number % 2 * 4,
                "bbox": [x, y, w, h], "area": float(w * h),
                "iscrowd": 0, "segmentation": polygons,
            })  # fmt: skip
        drawn = np.zeros((height, width), np.uint8, order="F")
        drawn[80:110, 10:50] = 1
        flat = drawn.ravel(order="F")
        runs = np.diff(np.flatnonzero(np.r_[True, flat[1:] != flat[:-1], True])).tolist()
        annotations.append({
            "id": len(annotations) + 1, "image_id": image, "category_id": 3, "bbox": [10, 80, 40, 30], "area": 1200.0,
            "iscrowd": int(image == 1), "segmentation": {"size": [height, width], "counts": runs},
        })  # fmt: skip
    return {
        "info": {"year": 2026},
        "licenses": [],
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": h, "width": w, "license": 1}
            for i, (h, w) in enumerate(SIDES, 1)
        ],
        "categories": [{"id": 3, "name": "a", "supercategory": "x"}, {"id": 7, "name": "b", "supercategory": "x"}],
        "annotations": annotations,
    }


class Family:
    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.tree = folder, folder / "instances.json", truth()
        for i, (height, width) in enumerate(SIDES, 1):
            Image.new("RGB", (width, height)).save(folder / f"{i}.jpg")
        self.path.write_bytes(dump(self.tree))
        self.expected = content_of(self.read())

    def read(self) -> CocoAnnotations:
        annotations = CocoAnnotations(self.path)
        check_files(annotations, self.folder, "error")
        return annotations

    def trial(self, rng: Random) -> Trial:
        if rng.random() < 0.3:
            what, content = mutate_bytes(dump(self.tree), rng)
        else:
            tree, whats = self.tree, []
            for _ in range(rng.choice((1, 1, 1, 2, 4))):
                part = copy.deepcopy(tree)
                key = rng.choice(("annotations", "annotations", "annotations", "images", "categories", ""))
                if key and part.get(key) and isinstance(part[key], list) and rng.random() < 0.9:
                    at = rng.randrange(len(part[key]))
                    what, _, part[key][at] = mutate_tree({"": part[key][at]}, rng)
                    part[key][at] = part[key][at].get("", None)
                else:
                    what, _, part = mutate_tree(tree, rng)
                whats.append(f"{key} {what}")
                tree = part
                if not isinstance(tree, dict):
                    break
            what, content = "; ".join(whats), dump(tree)
        self.path.write_bytes(content)
        return Trial(what, self.read, lambda annotations: judge(annotations, json.loads(content), self.expected))


def content_of(annotations: CocoAnnotations) -> str:
    return repr([annotations.category_ids, annotations.names, [annotations[i] for i in range(len(annotations))]])


def judge(annotations: CocoAnnotations, said: dict[str, Any], expected: str) -> str | None:
    """Masks of the file, drawn by pycocotools, with the boxes around them, are the detections of a perfect model."""
    if content_of(annotations) == expected:
        return None
    numbers = {category: k for k, category in enumerate(annotations.category_ids)}
    sizes = {image["id"]: (image["height"], image["width"]) for image in said["images"]}
    if sorted(sizes) != annotations.image_ids.tolist() or sorted(numbers) != sorted(
        c["id"] for c in said["categories"]
    ):
        raise Wrong("other images or categories than the file has")
    found = []
    rounded = False
    for image, (height, width) in sizes.items():
        boxes, classes, encoded = [], [], []
        for one in said["annotations"]:
            if one["image_id"] != image or one.get("iscrowd"):
                continue
            shape = one.get("segmentation")
            if not shape:
                return "objects without masks, scored by their boxes alone, which is said"
            if isinstance(shape, list):
                mask = masks.merge(masks.frPyObjects(shape, height, width))
            else:
                mask = masks.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
            box = masks.toBbox(mask)
            rounded |= bool(np.abs(np.array(one["bbox"], float) - box).max() > 0.5)
            boxes.append(box), classes.append(numbers[one["category_id"]]), encoded.append(mask)
        found.append(
            ImageDetections(
                image,
                np.array(boxes, np.float32).reshape(-1, 4),
                np.ones(len(boxes), np.float32),
                np.array(classes, int),
                encoded,
            )
        )
    metrics = score(annotations, found)
    low = {key: round(value, 2) for key, value in metrics.items() if "_AR" not in key and value < 99.99}
    if low and not rounded:
        raise Wrong(f"ground truth scores {low}")
    if low:
        if any("have a box off their mask's" in line for line in annotations.warnings):
            return "a COCO file of which a warning says what is odd"
        if any(value < 90 for value in low.values()):
            raise Wrong(f"ground truth scores {low}")
        return ROUNDED
    return "COCO numbers that agree with each other, of another object, class, name or image"
