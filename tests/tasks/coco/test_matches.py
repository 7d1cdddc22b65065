"""AP from kept matches: of all images as the evaluator's, of parts as pycocotools'."""

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.run_folder.matches import AveragePrecision
from mae_transfer.run_folder.per_image import Arrays, read_per_image, write_per_image
from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.evaluate import ImageDetections, coco_results, score_each
from mae_transfer.tasks.coco.matches import match
from mae_transfer.tasks.coco.overlaps import Found, Pairs, Truth

IMAGES = 24


def detections(annotations: CocoAnnotations, *, tied: bool = True) -> list[ImageDetections]:
    """The ground truth jittered, some under another class, tied scores; boxes on crowds; more than 100 of a class.
    Each mask is its whole box."""
    rng, found = np.random.default_rng(0), []
    for i in range(len(annotations)):
        record = annotations[i]
        rows: list[tuple[float, int, list[float]]] = []
        for item in record.objects:
            for _ in range(int(rng.integers(1, 4))):
                x, y, w, h = item.bbox
                dx, dy, dw, dh = rng.normal(0, 0.1, 4)
                label = item.category if rng.random() < 0.85 else int(rng.integers(len(annotations.names)))
                box = [x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)]
                rows.append((round(float(rng.random()), 1), label, box))
        for _ in range(120 if i == 3 else 5):
            label = 0 if i == 3 else int(rng.integers(len(annotations.names)))
            rows.append((round(float(rng.random()) / 2, 1), label, [*rng.uniform(0, 30, 2), *rng.uniform(5, 40, 2)]))
        scores, labels, boxes = zip(*rows, strict=True)
        values = np.array(scores, np.float32) if tied else rng.permutation(len(scores)).astype(np.float32) + i / IMAGES
        columns = np.array(boxes, np.float32), values, np.array(labels)
        masks = rle.frPyObjects(np.array(boxes), record.height, record.width)
        found.append(ImageDetections(int(annotations.image_ids[i]), *columns, masks))
    return found


def reference(annotations: CocoAnnotations, found: list[ImageDetections], images: list[int]) -> float:
    """Box AP by pycocotools of these images, named by their places."""
    truth = json.loads(annotations.path.read_text())
    results = coco_results(found, annotations)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": truth["categories"]}
    copied = []
    for number, place in enumerate(images, start=1):
        image_id = found[place].image_id
        content["images"].append({"id": number, "height": 100, "width": 100})
        own = [copy.copy(row) for row in truth["annotations"] if row["image_id"] == image_id]
        for row in own:
            content["annotations"].append(row | {"id": len(content["annotations"]) + 1, "image_id": number})
        own = [row | {"image_id": number} for row in results if row["image_id"] == image_id]
        copied += [{key: value for key, value in row.items() if key != "segmentation"} for row in own]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(copied), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return 100 * float(evaluator.stats[0])


@pytest.fixture(scope="module")
def case(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[CocoAnnotations, list[ImageDetections], dict[str, float], Arrays]:
    root = tmp_path_factory.mktemp("data") / "coco"
    folder = make_coco(root, train_images=1, val_images=IMAGES, size=(60, 200), seed=4)
    annotations = CocoAnnotations(folder / "annotations/instances_val2017.json")
    found = detections(annotations)
    metrics, arrays = score_each(annotations, found[::-1])
    return annotations, found, metrics, arrays


def test_all_images_have_the_evaluators_ap(case: Any, tmp_path: Path) -> None:
    annotations, _, metrics, arrays = case
    assert any(item.crowd for i in range(IMAGES) for item in annotations[i].objects)
    assert arrays["box_ignored"].any(), "a crowd matters"
    kept = read_per_image(tmp_path, write_per_image(tmp_path, arrays))
    assert metrics["mask_AP"] != metrics["box_AP"]
    for kind in ("box", "mask"):
        found = AveragePrecision(arrays, kind)(np.ones((1, IMAGES), bool))
        assert found[0] == pytest.approx(metrics[f"{kind}_AP"], abs=1e-9)
        assert 5 < found[0] < 95
        assert AveragePrecision(kept, kind)(np.ones((1, IMAGES), bool))[0] == found[0]


def test_parts_of_the_images_have_pycocotools_ap(case: Any) -> None:
    annotations, found, _, arrays = case
    rng = np.random.default_rng(1)
    counts = np.array([rng.permutation(IMAGES) < size for size in (1, 3, 8, 12, 20)])
    wanted = [reference(annotations, found, np.flatnonzero(row).tolist()) for row in counts]
    assert AveragePrecision(arrays, "box")(counts) == pytest.approx(wanted, abs=1e-9)
    assert len({round(value, 3) for value in wanted}) == len(wanted)
    assert np.isnan(AveragePrecision(arrays, "box")(np.zeros((1, IMAGES), bool)))


def test_an_image_that_counts_twice_is_two_images(case: Any) -> None:
    """Scores are all unlike: of equal ones the order is that of the images, and theirs alone is doubled."""
    annotations = case[0]
    found = detections(annotations, tied=False)
    _, arrays = score_each(annotations, found, kinds=["box"])
    times = np.random.default_rng(2).multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), size=3)
    assert times.max() > 2
    wanted = [reference(annotations, found, np.repeat(np.arange(IMAGES), row).tolist()) for row in times]
    assert AveragePrecision(arrays, "box")(times) == pytest.approx(wanted, abs=1e-9)


def test_a_detection_takes_the_free_object_of_most_overlap() -> None:
    """By hand: the second detection finds its object taken from 0.5 to 0.6; the third lies on a crowd."""
    overlaps = np.array([[0.62, 0.55, 0.9], [0.8, 0.3, 0.0], [0.0, 0.0, 0.74]])
    detection, item = (part.reshape(-1) for part in np.indices(overlaps.shape))
    kept = overlaps.reshape(-1) >= 0.5
    ones = np.zeros(3, np.int64)
    boxes = np.full((3, 4), 10.0)
    truth = Truth(ones, ones, boxes, np.full(3, 100.0), np.array([False, False, True]), None)
    found = Found(ones, ones, np.array([0.9, 0.8, 0.7], np.float32), boxes, [])
    matches = match(Pairs(detection[kept], item[kept], overlaps.reshape(-1)[kept]), found, truth, found.areas("box"))
    for size in (0, 1):
        bits = [[f"{bits:010b}"[::-1] for bits in part[:, size]] for part in (matches.matched, matches.ignored)]
        assert bits[0] == ["1110000000", "0001111000", "0000000000"]
        assert bits[1] == ["0001111110", "0000000000", "1111100000"]
    assert not matches.matched[:, 2:].any(), "neither medium nor large"
    assert (matches.ignored[:, 2:] == 1023).all()
