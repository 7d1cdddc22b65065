"""COCO box and mask AP of a detector, each image evaluated exactly once by any number of processes.

On a data set of boxes without masks only box AP.

Detections become COCO results as in detectron2's `instances_to_coco_json`, and faster-coco-eval turns them into the
twelve numbers. Its `loadRes` is left out: it takes the masks one at a time, which cost as much as the evaluation.
The size class (small, medium, large) of a detection goes by its box area in box AP and by its mask area in mask AP.
"""

import contextlib
import gc
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from faster_coco_eval.core import mask as rle
from faster_coco_eval.core.coco import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from lightning_fabric import Fabric
from torch import nn

from mae_transfer.engine.distributed import host_group
from mae_transfer.engine.evaluation import evaluating, evaluation_batches
from mae_transfer.files import atomic_write
from mae_transfer.run_folder.per_image import Arrays
from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.card import STATISTICS
from mae_transfer.tasks.coco.config import CocoConfig
from mae_transfer.tasks.coco.data import CocoEval
from mae_transfer.tasks.coco.detector.paste import encode_bitmaps
from mae_transfer.tasks.coco.detector.postprocess import Detections
from mae_transfer.tasks.coco.matches import keep_matches

_LOG = logging.getLogger(__name__)
# The names of COCOeval's statistics, in its order.
IOU_TYPES = {"box": "bbox", "mask": "segm"}
MOST = 2_000_000
"""Detections of which matches are kept: half a minute and 11 MB; val2017 has 500,000 at most."""


class ImageDetections(NamedTuple):
    """What was detected in one image; COCO's terms, without the dicts."""

    image_id: int
    boxes: np.ndarray
    """float32 (n, 4): x, y, width, height in pixels of the original image."""
    scores: np.ndarray
    classes: np.ndarray
    """int64 (n,) in 0..K-1."""
    masks: list[dict[str, Any]] | None
    """n run-length encodings; None without masks."""


def evaluate(
    model: nn.Module,
    dataset: CocoEval,
    config: CocoConfig,
    fabric: Fabric,
    progress: bool,
    predictions_path: Path | None = None,
) -> tuple[dict[str, float], Arrays | None]:
    """Metrics in percent, `box_AP` to `mask_ARl`, NaN for those without ground truth, and how the detections of each
    image match (`run_folder/per_image.py`), None of more than `MOST` detections; the same on every rank.

    A data set of boxes alone has `box_AP` to `box_ARl`.
    With `eval.per_class` also `box_AP/<category>` and `mask_AP/<category>`. The model runs under fabric.autocast(), so
    in the precision of the run, and is left in the mode it came in. Rank r takes images r, r + world, ...; with
    `predictions_path` rank 0 writes all detections there in COCO's results format. Collective: call it on every rank.
    """
    mine = detect(model, dataset, config, fabric, progress)
    if fabric.world_size == 1:
        return _finish(mine, dataset, config, predictions_path)
    # Through host memory: object collectives over NCCL need the GPU and its synchronisation.
    group = host_group()
    parts: list[list[ImageDetections]] | None = [[]] * fabric.world_size if fabric.global_rank == 0 else None
    dist.gather_object(mine, parts, dst=0, group=group)
    results: list[tuple[dict[str, float], Arrays | None]] = [({}, None)]
    if parts is not None:
        results = [_finish([image for part in parts for image in part], dataset, config, predictions_path)]
    dist.broadcast_object_list(results, src=0, group=group)
    return results[0]


def _finish(
    detections: list[ImageDetections],
    dataset: CocoEval,
    config: CocoConfig,
    predictions_path: Path | None,
) -> tuple[dict[str, float], Arrays | None]:
    found, wanted = sorted(image.image_id for image in detections), sorted(dataset.image_ids)
    if found != wanted:
        raise RuntimeError(f"{len(wanted)} images were to be evaluated once each, and {len(found)} results came in")
    if predictions_path is not None:
        write_predictions(predictions_path, detections, dataset.annotations)
    count = sum(len(image.scores) for image in detections)
    if count > MOST:
        _LOG.warning(f"{count} detections are too many to keep how they match: no interval over images will be given")
    return score_each(dataset.annotations, detections, per_class=config.eval.per_class, matches=count <= MOST)


def detect(
    model: nn.Module, dataset: CocoEval, config: CocoConfig, fabric: Fabric, progress: bool
) -> list[ImageDetections]:
    """The detections of this rank's images; an image that was skipped has none."""
    detections: list[ImageDetections] = []
    batches = evaluation_batches(
        dataset,
        batch_size=config.eval.batch_size,
        workers=config.data.workers,
        fabric=fabric,
        progress=progress,
    )
    with evaluating(model):
        for batch in batches:
            dataset.report_skipped(batch)
            detections += [_nothing(image_id) for image_id in batch["skipped_ids"]]
            if batch["images"]:
                with fabric.autocast():
                    outputs = model(fabric.to_device(batch))
                detections += [encode(i, output) for i, output in zip(batch["image_ids"], outputs, strict=True)]
    return detections


def encode(image_id: int, output: Detections) -> ImageDetections:
    """A detector's output for one image, its boxes as x, y, width, height and its masks run-length encoded."""
    columns = (output["boxes"], output["scores"][:, None], output["classes"][:, None])
    rows = torch.cat([column.float() for column in columns], 1).cpu().numpy()  # one wait for the device
    boxes = rows[:, :4].copy()
    boxes[:, 2:] -= boxes[:, :2]
    masks = output.get("masks")
    if masks is not None and not isinstance(masks, list):
        masks = encode_bitmaps(masks)
    return ImageDetections(image_id, boxes, rows[:, 4].copy(), rows[:, 5].astype(np.int64), masks)


def _nothing(image_id: int) -> ImageDetections:
    return ImageDetections(image_id, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), [])


def coco_results(detections: list[ImageDetections], annotations: CocoAnnotations) -> list[dict[str, Any]]:
    """COCO's results format, with the data set's own category ids; `segmentation` where there are masks."""
    results = []
    for image in detections:
        columns = (image.boxes.tolist(), image.scores.tolist(), image.classes.tolist())
        masks = [None] * len(image.boxes) if image.masks is None else image.masks
        for box, value, label, mask in zip(*columns, masks, strict=True):
            category = annotations.category_ids[label]
            result = {"image_id": image.image_id, "category_id": category, "bbox": box, "score": value}
            results.append(result if mask is None else result | {"segmentation": mask})
    return results


def write_predictions(path: Path, detections: list[ImageDetections], annotations: CocoAnnotations) -> None:
    """Writes COCO's results JSON, whole or not at all."""
    results = coco_results(detections, annotations)
    for result in results:
        if mask := result.get("segmentation"):
            result["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
    with atomic_write(path) as file:
        file.write(json.dumps(results).encode())


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """A million small dicts without cycles are made here; looking for cycles in them took a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def score(
    annotations: CocoAnnotations,
    detections: list[ImageDetections],
    *,
    per_class: bool = False,
    kinds: Sequence[str] | None = None,
) -> dict[str, float]:
    """The metrics of `evaluate` over the images of `detections`, of boxes or masks or, by default, of all there are."""
    return score_each(annotations, detections, per_class=per_class, kinds=kinds)[0]


@_collector_paused()
def score_each(
    annotations: CocoAnnotations,
    detections: list[ImageDetections],
    *,
    per_class: bool = False,
    kinds: Sequence[str] | None = None,
    matches: bool = False,
) -> tuple[dict[str, float], Arrays | None]:
    """The metrics of `score`, and with `matches` what `evaluate` gives."""
    content = ground_truth(annotations, {image.image_id for image in detections})
    ids = [image["id"] for image in content["images"]]
    results = coco_results(detections, annotations)
    for number, result in enumerate(results, start=1):
        # "rle" is the evaluator's own key for a mask ready to use; from "segmentation" it would make every mask anew
        result |= {"id": number, "iscrowd": 0}
        if "segmentation" in result:
            result["rle"] = result.pop("segmentation")
    _number_anew(content, results)
    truth, found = COCO(content), COCO(content | {"annotations": results})
    metrics: dict[str, float] = {}
    overlaps = {}
    for prefix in kinds or (tuple(IOU_TYPES) if annotations.has_masks else ("box",)):
        iou_type = IOU_TYPES[prefix]
        for result, area in zip(results, _areas(results, iou_type), strict=True):
            result["area"] = area
        evaluator = COCOeval_faster(truth, found, iou_type, print_function=_silent)
        evaluator.run()
        overlaps[prefix] = evaluator.ious
        metrics |= {f"{prefix}_{name}": _percent(s) for name, s in zip(STATISTICS, evaluator.stats, strict=True)}
        if per_class:
            precision = evaluator.eval["precision"][:, :, :, 0, -1]  # IoU, recall, category; all areas, 100 detections
            for k, name in enumerate(annotations.names):
                valid = precision[:, :, k][precision[:, :, k] > -1]
                metrics[f"{prefix}_AP/{name}"] = _percent(valid.mean() if valid.size else -1)
    if not matches:
        return metrics, None
    found = {image.image_id: (image.scores, image.classes) for image in detections}
    return metrics, keep_matches(ids, content["annotations"], [found[image_id] for image_id in ids], overlaps)


def _number_anew(content: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Ids of images and categories from 1 on, in their order: the evaluator takes none below 0 or beyond a double's."""
    for rows, key in (("images", "image_id"), ("categories", "category_id")):
        numbers = {row["id"]: number for number, row in enumerate(content[rows], start=1)}
        for row in content[rows]:
            row["id"] = numbers[row["id"]]
        for row in (*content["annotations"], *results):
            row[key] = numbers[row[key]]


def _areas(results: list[dict[str, Any]], iou_type: str) -> list[float]:
    """What the size class of each detection goes by."""
    if iou_type == "bbox":
        return [result["bbox"][2] * result["bbox"][3] for result in results]
    return [float(area) for area in rle.area([result["rle"] for result in results])] if results else []


def ground_truth(annotations: CocoAnnotations, image_ids: set[int]) -> dict[str, Any]:
    """The annotation file's content for these images, crowds included, as COCO's tools take it.

    Annotation ids count from 1: the evaluators take 0 for "not matched" and others below as numbers of what matched.
    """
    images: list[dict[str, object]] = []
    objects: list[dict[str, object]] = []
    for i in np.flatnonzero(np.isin(annotations.image_ids, list(image_ids))).tolist():
        record = annotations[i]
        images.append({"id": record.id, "height": record.height, "width": record.width})
        for item in record.objects:
            row = {
                "id": len(objects) + 1,
                "image_id": record.id,
                "category_id": annotations.category_ids[item.category],
                "bbox": list(item.bbox),
                "area": item.area,
                "iscrowd": int(item.crowd),
            }
            if (mask := item.segmentation) is not None:
                row["segmentation"] = [p.tolist() for p in mask] if isinstance(mask, list) else mask
            objects.append(row)
    categories = [{"id": i, "name": n} for i, n in zip(annotations.category_ids, annotations.names, strict=True)]
    return {"images": images, "annotations": objects, "categories": categories}


def _percent(statistic: float) -> float:
    """COCO's -1 is "no ground truth of this kind"."""
    return float(statistic) * 100 if statistic > -1 else float("nan")


def _silent(*_: object) -> None:
    """Takes the lines that the evaluator would print or log."""
