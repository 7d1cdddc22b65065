"""The control that looks at no image: one mean box, scored by pycocotools."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.blind import blind_ap


def test_one_mean_box_scores_what_pycocotools_says(tmp_path: Path) -> None:
    folder = make_coco(tmp_path / "coco", train_images=1, val_images=8, size=(80, 120), seed=1)
    path = folder / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    sizes = {image["id"]: np.array([image["width"], image["height"]] * 2, float) for image in content["images"]}
    # a set of one large object an image, whose boxes differ a little: a mean box has to score
    rng = np.random.default_rng(0)
    masked = {a["image_id"]: a for a in content["annotations"]}
    content["annotations"] = []
    for number, (image, size) in enumerate(sizes.items(), 1):
        x, y, w, h = box = (np.array([0.2, 0.2, 0.5, 0.5]) + rng.uniform(-0.06, 0.06, 4)) * size
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        row = {"id": number, "image_id": image, "bbox": box.tolist(), "area": w * h, "segmentation": [corners]}
        content["annotations"].append({**next(iter(masked.values())), **row, "iscrowd": 0})
    path.write_text(json.dumps(content))
    truth = content["annotations"]
    mean = np.mean([a["bbox"] / sizes[a["image_id"]] for a in truth], axis=0)
    found = [
        {"image_id": i, "category_id": truth[0]["category_id"], "bbox": (mean * size).tolist(), "score": 1.0}
        for i, size in sizes.items()
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
        evaluator = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    annotations = CocoAnnotations(path)
    blind = blind_ap(annotations, annotations.image_ids.tolist())
    assert 5 < blind < 95
    assert blind == pytest.approx(100 * evaluator.stats[0], abs=1e-6)


def test_no_object_is_no_number(tmp_path: Path) -> None:
    folder = make_coco(tmp_path / "coco", train_images=1, val_images=2, size=(60, 80), seed=1)
    annotations = CocoAnnotations(folder / "annotations/instances_val2017.json")
    assert blind_ap(annotations, []) is None
