"""All numbers of many small cases against pycocotools: equal scores and overlaps, crowds, all sizes, lone classes."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mae_transfer.tasks.coco import overlaps
from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.card import STATISTICS
from mae_transfer.tasks.coco.evaluate import ImageDetections, coco_results, score

CASES = 60
SIZES = [(120, 140), (300, 260)]


def encoded(box: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The mask of a box of whole numbers."""
    x, y, width, height = np.ceil(box).astype(int)
    bitmap = np.zeros(size, np.uint8)
    bitmap[y : y + height, x : x + width] = 1
    mask: dict[str, Any] = rle.encode(np.asfortranarray(bitmap))
    return mask


def content(rng: np.random.Generator, step: int, classes: int) -> dict[str, Any]:
    """Boxes on a grid, so that some overlap by the same share; a quarter are crowds."""
    size = SIZES[int(rng.random() < 0.3)]
    ids = rng.permutation(50)[: rng.integers(1, 7)].tolist()
    images = [{"id": i, "file_name": f"{i}.jpg", "height": size[0], "width": size[1]} for i in ids]
    objects: list[dict[str, Any]] = []
    for image in images:
        for _ in range(rng.integers(0, 7)):
            width, height = (rng.integers(1, 9, 2) * step + 2).tolist()
            x, y = (
                int(rng.integers((limit - side) // step)) * step
                for limit, side in zip(size[::-1], (width, height), strict=True)
            )
            crowd = rng.random() < 0.25
            shape = [[x, y, x + width, y, x + width, y + height, x, y + height]]
            mask = encoded((x, y, width, height), size)
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.integers(1, classes + 1)),
                    "bbox": [x, y, width, height],
                    "area": float(width * height),
                    "iscrowd": int(crowd),
                    "segmentation": mask | {"counts": mask["counts"].decode()} if crowd else shape,
                }
            )
    return {
        "images": images,
        "annotations": objects,
        "categories": [{"id": k + 1, "name": f"c{k}"} for k in range(classes)],
    }


def detections(annotations: CocoAnnotations, rng: np.random.Generator, step: int) -> list[ImageDetections]:
    """Objects moved by whole steps or not at all, and boxes anywhere, now and then more than 100."""
    found = []
    for record in (annotations[i] for i in range(len(annotations))):
        rows: list[tuple[float, int, np.ndarray]] = []
        for item in record.objects:
            for _ in range(rng.integers(0, 4)):
                moved = item.bbox + rng.integers(-2, 3, 4) * step * (rng.random() < 0.6)
                label = item.category if rng.random() < 0.8 else int(rng.integers(len(annotations.names)))
                rows.append((round(rng.random(), 1), label, np.maximum(moved, [0, 0, 1, 1])))
        for _ in range(rng.integers(0, 150 if rng.random() < 0.2 else 4)):
            box = np.r_[rng.integers(0, 100, 2), rng.integers(1, 60, 2)]
            rows.append((round(rng.random(), 1), int(rng.integers(len(annotations.names))), box))
        masks = [encoded(box, (record.height, record.width)) for _, _, box in rows]
        boxes = np.array([box for _, _, box in rows], np.float32).reshape(-1, 4)
        scores, labels = np.array([row[0] for row in rows], np.float32), np.array([row[1] for row in rows], np.int64)
        found.append(ImageDetections(record.id, boxes, scores, labels, masks))
    return found


def reference(annotations: CocoAnnotations, found: list[ImageDetections]) -> dict[str, float]:
    """By pycocotools, which needs a detection; -1 where it has no number."""
    metrics = {}
    for prefix, kind in (("box", "bbox"), ("mask", "segm")):
        results = coco_results(found, annotations)
        for result in results:
            result.pop("bbox" if kind == "segm" else "segmentation")
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(annotations.path))
            evaluator = COCOeval(truth, truth.loadRes(results), kind)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        metrics |= {f"{prefix}_{name}": value for name, value in zip(STATISTICS, evaluator.stats, strict=True)}
        for k, name in enumerate(annotations.names):
            known = evaluator.eval["precision"][:, :, k, 0, -1]
            metrics[f"{prefix}_AP/{name}"] = known[known > -1].mean() if (known > -1).any() else -1
    return metrics


@pytest.mark.parametrize(
    ("item", "width"),
    [
        ([29.889999389648438, 255.1300048828125, 23.759999084472657, 26.399999618530273], 39.599998474121094),
        ([137.74000549316406, 287.989990234375, 34.58000144958496, 26.0], 36.400001525878906),
    ],
)
def test_an_overlap_at_a_threshold_is_rounded_as_in_pycocotools(
    tmp_path: Path, item: list[float], width: float
) -> None:
    x, y, _, height = item
    shape = [[x, y, x + item[2], y, x + item[2], y + height, x, y + height]]
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": item, "iscrowd": 0, "segmentation": shape}
    images = [{"id": 1, "file_name": "1.jpg", "height": 640, "width": 640}]
    row["area"] = item[2] * height
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"images": images, "annotations": [row], "categories": [{"id": 1, "name": "c"}]}))
    annotations = CocoAnnotations(path)
    box = np.array([[x, y, width, height]], np.float32)
    masks = [encoded(box[0], (640, 640))]
    found = [ImageDetections(1, box, np.ones(1, np.float32), np.zeros(1, np.int64), masks)]
    metrics = score(annotations, found)
    for name, value in reference(annotations, found).items():
        if "/" not in name and value > -1:
            assert metrics[name] == pytest.approx(100 * value, abs=1e-9), name


def test_pairs_by_parts_are_those_of_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "some.json"
    path.write_text(json.dumps(content(rng, 5, 2)))
    annotations = CocoAnnotations(path)
    found = detections(annotations, rng, 5)
    whole = score(annotations, found)
    assert whole["mask_AP"] > 0
    for number in (1, 7):
        monkeypatch.setattr(overlaps, "_AT_ONCE", number)
        assert score(annotations, found) == pytest.approx(whole, abs=0, nan_ok=True)


def test_numbers_of_many_small_cases_are_pycocotools(tmp_path: Path) -> None:
    compared, unknown, full = 0, 0, 0
    for seed in range(CASES):
        rng = np.random.default_rng(seed)
        step, classes = int(rng.choice([1, 5, 10])), int(rng.integers(1, 5))
        path = tmp_path / f"{seed}.json"
        path.write_text(json.dumps(content(rng, step, classes)))
        if not json.loads(path.read_text())["annotations"]:
            continue
        annotations = CocoAnnotations(path)
        found = detections(annotations, rng, step)
        if not any(len(image.scores) for image in found):
            continue
        metrics = score(annotations, [found[i] for i in rng.permutation(len(found))], per_class=True)
        for name, value in reference(annotations, found).items():
            wanted = 100 * value if value > -1 else np.nan
            assert metrics[name] == pytest.approx(wanted, abs=1e-9, nan_ok=True), (seed, name)
            compared, unknown = compared + 1, unknown + (value == -1)
        full += any(len(image.scores) > 100 for image in found)
    assert compared > 1000
    assert unknown > 100
    assert full > 3
