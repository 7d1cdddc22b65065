#!/usr/bin/env python
"""COCO evaluation here against pycocotools on the same detections: time, and the largest difference of the 24 numbers.

    python benchmarks/coco_evaluation.py --data /data/coco       # val2017 of a real set; --copies 8 for a small one
    python benchmarks/coco_evaluation.py                         # generated images
    python benchmarks/coco_evaluation.py --beside hotcoco        # as well another evaluator of pycocotools' interface

The detections are the ground truth jittered, up to three times each, some under another class, with tied scores, and
random boxes; at most 100 an image. Timed from detections in memory to the twelve numbers: pycocotools through its
`loadRes`, as its users do, this project through `tasks.coco.evaluate.score`.
"""

import argparse
import contextlib
import copy
import importlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def make_detections(annotations: Any, seed: int = 0) -> list[Any]:
    """Plausible detections for every image of a `CocoAnnotations`."""
    from pycocotools import mask as rle

    from mae_transfer.tasks.coco.evaluate import ImageDetections

    rng = np.random.default_rng(seed)
    num_classes = len(annotations.names)
    found = []
    for i in range(len(annotations)):
        record = annotations[i]
        height, width = record.height, record.width
        items = []
        for item in record.objects:
            encoded = item.segmentation
            if isinstance(encoded, list):
                encoded = rle.merge(rle.frPyObjects([p.tolist() for p in encoded], height, width))
            bitmap = rle.decode(encoded)
            x, y, w, h = item.bbox
            for _ in range(rng.integers(1, 4)):
                dx, dy, dw, dh = rng.normal(0, 0.08, 4)
                box = (x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh))
                moved = np.roll(bitmap, (round(dy * h), round(dx * w)), (0, 1))
                label = item.category if rng.random() < 0.9 else int(rng.integers(num_classes))
                items.append((round(float(rng.random()), 2), label, box, moved))
        for _ in range(int(rng.integers(10, 60))):
            w, h = rng.uniform(4, width / 2), rng.uniform(4, height / 2)
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            bitmap = np.zeros((height, width), np.uint8)
            bitmap[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1] = 1
            items.append((round(float(rng.random() ** 3), 2), int(rng.integers(num_classes)), (x, y, w, h), bitmap))
        items = sorted(items, key=lambda entry: -entry[0])[:100]
        masks = [rle.encode(np.asfortranarray(entry[3])) for entry in items]
        boxes = np.array([entry[2] for entry in items], np.float32)
        scores, classes = np.array([e[0] for e in items], np.float32), np.array([e[1] for e in items], np.int64)
        found.append(ImageDetections(record.id, boxes, scores, classes, masks))
    return found


def copies_of(content: dict[str, Any], count: int) -> dict[str, Any]:
    """The data set `count` times over, under new ids."""
    step = max(image["id"] for image in content["images"]) + 1
    images = [image | {"id": image["id"] + k * step} for k in range(count) for image in content["images"]]
    objects = [a | {"image_id": a["image_id"] + k * step} for k in range(count) for a in content["annotations"]]
    objects = [a | {"id": number} for number, a in enumerate(objects, start=1)]
    return content | {"images": images, "annotations": objects}


def with_pycocotools(
    content: dict[str, Any], results: list[dict[str, Any]], iou_type: str, package: str = "pycocotools"
) -> tuple[np.ndarray, float]:
    """The twelve numbers and the seconds they took, by pycocotools or a package that takes its place."""
    if package == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        module = importlib.import_module(package)
        COCO, COCOeval = module.COCO, module.COCOeval

    results = copy.deepcopy(results)
    if iou_type == "segm":
        for result in results:
            result.pop("bbox")  # so that sizes go by mask area, as detectron2 evaluates
    content = copy.deepcopy(content)
    with contextlib.redirect_stdout(io.StringIO()):
        started = time.perf_counter()
        truth = COCO() if package == "pycocotools" else COCO(content)
        if package == "pycocotools":
            truth.dataset = content
            truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        return np.array(evaluator.stats[:12]), time.perf_counter() - started


def time_encoding(repeats: int, count: int = 100, height: int = 480, width: int = 640) -> None:
    """CPU time of what follows a GPU's work on the masks of an image: discs, of one thread."""
    import torch
    from pycocotools import mask as rle

    from mae_transfer.tasks.coco.detector.paste import encode_bitmaps, encode_runs

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    centres, radii = rng.uniform(0, 1, (count, 2)) * (height, width), rng.uniform(10, 150, count)
    bitmaps = np.array([(y - a) ** 2 + (x - b) ** 2 < r**2 for (a, b), r in zip(centres, radii, strict=True)])
    columns = bitmaps.transpose(0, 2, 1).reshape(count, -1)
    begins = np.diff(columns, axis=1, prepend=False).reshape(-1)
    places = np.flatnonzero(begins)
    wanted = [rle.encode(np.asfortranarray(bitmap, np.uint8)) for bitmap in bitmaps]
    assert encode_bitmaps(torch.from_numpy(bitmaps)) == encode_runs(places, count, (height, width)) == wanted
    ways = {
        "runs from the device": lambda: encode_runs(places, count, (height, width)),
        "bitmaps from the device, by pycocotools": lambda: [
            rle.encode(np.asfortranarray(bitmap, np.uint8)) for bitmap in bitmaps
        ],
        "all on a CPU": lambda: encode_bitmaps(torch.from_numpy(bitmaps)),
    }
    print(
        f"masks of {count} detections, {width}x{height}: {bitmaps.nbytes / 1e6:.1f} MB, runs {places.nbytes / 1e6:.2f}"
    )
    for name, way in ways.items():
        times = []
        for _ in range(max(repeats, 3)):
            started = time.process_time()
            way()
            times.append(time.process_time() - started)
        print(f"  {name}: {1000 * statistics.median(times):.1f} CPU ms")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="COCO 2017 folder; default: 400 generated images")
    parser.add_argument("--copies", type=int, default=1, help="take the val set this many times")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--beside", action="append", default=[], help="another package to time, such as hotcoco")
    args = parser.parse_args(argv)

    import json

    from mae_transfer.data.synthetic.coco import make_coco
    from mae_transfer.tasks.coco.annotations import CocoAnnotations
    from mae_transfer.tasks.coco.card import STATISTICS
    from mae_transfer.tasks.coco.evaluate import coco_results, score

    with tempfile.TemporaryDirectory() as temporary:
        root = args.data or make_coco(Path(temporary) / "coco", train_images=1, val_images=400)
        content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
        path = Path(temporary) / "val.json"
        truth = copies_of(content, args.copies)
        path.write_text(json.dumps(truth))
        annotations = CocoAnnotations(path)
    detections = make_detections(annotations)
    results = coco_results(detections, annotations)
    print(f"{len(annotations)} images, {len(truth['annotations'])} objects, {len(results)} detections")
    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        ours, theirs, difference = [], [], 0.0
        others: dict[str, list[float]] = {package: [] for package in args.beside}
        for _ in range(args.repeats):
            started = time.perf_counter()
            metrics = score(annotations, detections, kinds=[kind])
            ours.append(time.perf_counter() - started)
            expected, seconds = with_pycocotools(truth, results, iou_type)
            theirs.append(seconds)
            for package, ratios in others.items():
                numbers, other = with_pycocotools(truth, results, iou_type, package)
                assert np.abs(numbers - expected).max() < 1e-9, package
                ratios.append(seconds / other)
            found = np.array([metrics[f"{kind}_{name}"] for name in STATISTICS]) / 100
            known = expected > -1
            assert np.isnan(found[~known]).all(), "a number that pycocotools has not"
            difference = max(difference, float(np.abs(found[known] - expected[known]).max()))
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        print(
            f"  {kind:4}  here {statistics.median(ours):6.2f} s, pycocotools {statistics.median(theirs):6.2f} s: "
            f"{statistics.median(ratios):.1f}x ({min(ratios):.1f} to {max(ratios):.1f}), "
            f"AP {metrics[f'{kind}_AP']:.2f}, largest difference {difference:.1e}"
        )
        for package, found in others.items():
            print(f"        {package}: {statistics.median(found):.1f}x ({min(found):.1f} to {max(found):.1f})")
    time_encoding(args.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
