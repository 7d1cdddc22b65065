"""COCO box and mask AP of a detector, each image evaluated exactly once by any number of processes.

On a data set of boxes without masks only box AP.

Detections are those of detectron2's `instances_to_coco_json`; their overlaps with the objects (`overlaps.py`) and what
they match (`matches.py`) give the twelve numbers (`scores.py`).
The size class (small, medium, large) of a detection goes by its box area in box AP and by its mask area in mask AP.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import nn

from mae_transfer.engine.distributed import host_group
from mae_transfer.engine.evaluation import evaluating, evaluation_batches
from mae_transfer.files import atomic_write
from mae_transfer.run_folder.per_image import KINDS, Arrays
from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.config import CocoConfig
from mae_transfer.tasks.coco.data import CocoEval
from mae_transfer.tasks.coco.detector.paste import encode_bitmaps
from mae_transfer.tasks.coco.detector.postprocess import Detections
from mae_transfer.tasks.coco.matches import match, per_image
from mae_transfer.tasks.coco.overlaps import Found, pairs
from mae_transfer.tasks.coco.scores import mean, precisions, statistics

_LOG = logging.getLogger(__name__)
MOST = 2_000_000
"""Detections of which matches are kept, 11 MB; val2017 has 500,000 at most."""


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
    metrics, matches = score_each(dataset.annotations, detections, per_class=config.eval.per_class)
    return metrics, matches if count <= MOST else None


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


def score(
    annotations: CocoAnnotations,
    detections: list[ImageDetections],
    *,
    per_class: bool = False,
    kinds: Sequence[str] | None = None,
) -> dict[str, float]:
    """The metrics of `evaluate` over the images of `detections`, of boxes or masks or, by default, of all there are."""
    return score_each(annotations, detections, per_class=per_class, kinds=kinds)[0]


def score_each(
    annotations: CocoAnnotations,
    detections: list[ImageDetections],
    *,
    per_class: bool = False,
    kinds: Sequence[str] | None = None,
) -> tuple[dict[str, float], Arrays]:
    """The metrics of `score`, and how the detections of each image match."""
    detections = sorted(detections, key=lambda image: image.image_id)
    ids = [image.image_id for image in detections]
    kinds = kinds or (KINDS if annotations.has_masks else KINDS[:1])
    truth, found = annotations.truth(ids), _found(detections)
    metrics: dict[str, float] = {}
    of_kinds = {}
    for kind in kinds:
        of_kinds[kind] = matched = match(pairs(found, truth, kind), found, truth, found.areas(kind))
        metrics |= {f"{kind}_{name}": s for name, s in statistics(found, truth, matched, len(ids)).items()}
        if per_class:
            precision = precisions(found, truth, matched, len(ids))
            for k, name in enumerate(annotations.names):
                metrics[f"{kind}_AP/{name}"] = mean(precision[:, k : k + 1])
    return metrics, per_image(ids, found, truth, of_kinds)


def _found(detections: list[ImageDetections]) -> Found:
    """Those of all images, which are numbered in their order."""
    image = np.repeat(np.arange(len(detections)), [len(image.scores) for image in detections])
    masks = [mask for image in detections for mask in image.masks or ()]
    label = np.concatenate([image.classes for image in detections])
    scores = np.concatenate([image.scores for image in detections])
    boxes = np.concatenate([image.boxes for image in detections])
    return Found(image, label, scores, boxes.astype(np.float64), masks)
