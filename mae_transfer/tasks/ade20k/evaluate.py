"""mIoU, mAcc, aAcc and IoU per class at the original size, each image counted exactly once by any number of processes.

Semantics of mmsegmentation's `IoUMetric`: areas are summed over the set before they are divided; a class that neither
the ground truth nor a prediction has is left out of the means, one that is only predicted has IoU 0. Counts are int64
in one confusion matrix on the device, where that sums float32 histograms in float32; numbers are not rounded.
"""

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mae_transfer.engine.distributed import gather_objects
from mae_transfer.engine.evaluation import evaluating, evaluation_batches
from mae_transfer.run_folder.per_image import Arrays, segmented_images
from mae_transfer.tasks.ade20k.config import SegmentationConfig
from mae_transfer.tasks.ade20k.data import EvalSplit
from mae_transfer.tasks.ade20k.transforms import IGNORE


def evaluate(
    model: nn.Module, dataset: EvalSplit, names: list[str], config: SegmentationConfig, fabric: Fabric, progress: bool
) -> dict[str, float]:
    """Metrics in percent, NaN for classes that do not occur; the same dict on every rank.

    With `eval.per_class` also `IoU/<class>` and `Acc/<class>`; the latter is NaN for a class without ground truth, the
    former only for one that is not predicted either. The model runs under fabric.autocast(), so in the precision of the
    run, and is left in the mode it came in. Rank r takes images r, r + world, ... Collective: call it on every rank.
    """
    return evaluate_each(model, dataset, names, config, fabric, progress)[0]


def evaluate_each(
    model: nn.Module, dataset: EvalSplit, names: list[str], config: SegmentationConfig, fabric: Fabric, progress: bool
) -> tuple[dict[str, float], Arrays, float | None]:
    """The metrics of `evaluate`, the pixel counts of each image (`run_folder/per_image.py`), and `blind_miou`."""
    matrix, files, intersections, unions = confusion(model, dataset, len(names), config, fabric, progress)
    each = segmented_images(gather_objects(fabric, (files, intersections, unions)))
    if fabric.world_size > 1:
        matrix = fabric.all_reduce(matrix, reduce_op="sum")  # type: ignore[assignment]
    matrix = matrix.cpu()
    return score(matrix, names, per_class=config.eval.per_class), each, blind_miou(matrix, names)


def confusion(
    model: nn.Module, dataset: EvalSplit, num_classes: int, config: SegmentationConfig, fabric: Fabric, progress: bool
) -> tuple[Tensor, list[str], np.ndarray, np.ndarray]:
    """int64 (K, K) pixels of this rank's images by true (row) and predicted (column) class; the images' names, and the
    intersection and union of label and prediction in each, int64 (n, K)."""
    file_names: list[str] = []
    intersections: list[Tensor] = []
    unions: list[Tensor] = []
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=fabric.device)
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
            if batch["file_names"]:
                batch = fabric.to_device(batch)
                with fabric.autocast():
                    predictions = model(batch)
                for label, prediction in zip(batch["labels"], predictions, strict=True):
                    of_image = count(label, prediction, num_classes)
                    matrix += of_image
                    intersections.append(of_image.diagonal())
                    unions.append(of_image.sum(0) + of_image.sum(1) - of_image.diagonal())
                file_names += batch["file_names"]
    return matrix, file_names, _stack(intersections, num_classes), _stack(unions, num_classes)


def _stack(rows: list[Tensor], num_classes: int) -> np.ndarray:
    """int64 (n, K)."""
    stacked = torch.stack(rows).cpu() if rows else torch.zeros(0, num_classes, dtype=torch.int64)
    array: np.ndarray = stacked.numpy()
    return array


def count(label: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """int64 (K, K) confusion of integer maps of one shape with classes 0 .. K-1, of the pixels not IGNORE."""
    counted = label != IGNORE
    pairs = label[counted].long() * num_classes + prediction[counted].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def blind_miou(matrix: Tensor, names: list[str]) -> float | None:
    """mIoU in percent of saying the commonest class of these very labels everywhere; None without labels.

    matrix: as of `score`.
    """
    truth = matrix.sum(1)
    constant = torch.zeros_like(matrix)
    constant[:, truth.argmax()] = truth
    return score(constant, names, per_class=False)["mIoU"] if truth.any() else None


def score(matrix: Tensor, names: list[str], *, per_class: bool) -> dict[str, float]:
    """The metrics of `evaluate` of an int64 (K, K) confusion matrix on the CPU."""
    hits, truth, predicted = matrix.diagonal().double(), matrix.sum(1).double(), matrix.sum(0).double()
    iou, accuracy = hits / (truth + predicted - hits), hits / truth  # 0 / 0 is NaN: a class that does not occur
    metrics = {
        "mIoU": 100 * iou.nanmean().item(),
        "mAcc": 100 * accuracy.nanmean().item(),
        "aAcc": 100 * (hits.sum() / truth.sum()).item(),
    }
    if per_class:
        for title, values in (("IoU", iou), ("Acc", accuracy)):
            metrics |= {f"{title}/{name}": 100 * value for name, value in zip(names, values.tolist(), strict=True)}
    return metrics
