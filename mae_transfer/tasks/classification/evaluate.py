"""Top-1, top-5 and mean per-class accuracy by exact counting, of any number of heads in one pass.

Counts are whole numbers on the device, summed over the ranks; each image is counted once by any number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from mae_transfer.config.sections import Workers
from mae_transfer.engine.distributed import all_reduce, gather_objects
from mae_transfer.engine.evaluation import EvalDataset, evaluating, evaluation_batches
from mae_transfer.errors import UserError
from mae_transfer.run_folder.per_image import Arrays, correct_images


class EvalSplit(EvalDataset, Protocol):
    """A data set to evaluate on; its batches hold "labels" int64 (B,) and "names"."""

    def report_skipped(self, batch: Any, /) -> None:
        """Take note of a batch's images that could not be decoded."""
        ...


@dataclass(frozen=True)
class Counts:
    """What a pass over a data set counts: int64 tensors, of `heads` heads and K classes."""

    images: Tensor
    """(K,): images of each class."""
    correct: Tensor
    """(heads, K): images of each class whose highest score is their own class's."""
    in_top5: Tensor
    """(heads, K): images of each class whose own class is among the five highest."""
    each: Arrays
    """Of one head, whether each single image was correct (`run_folder/per_image.py`); empty unless asked for."""

    def top1(self) -> list[float]:
        """Percent, a head each."""
        return _percent(self.correct.sum(1), self.images.sum())

    def top5(self) -> list[float]:
        return _percent(self.in_top5.sum(1), self.images.sum())

    def per_class(self) -> Tensor:
        """float64 (heads, K): percent correct of each class, NaN for a class without images."""
        return 100 * self.correct.double() / self.images.double()

    def mean_per_class(self) -> list[float]:
        """The mean over the classes that have images."""
        values: list[float] = self.per_class()[:, self.images > 0].mean(1).tolist()
        return values


def _percent(counts: Tensor, images: Tensor) -> list[float]:
    values: list[float] = (100 * counts.double() / images.double()).tolist()
    return values


def count(
    model: nn.Module,
    dataset: EvalSplit,
    num_classes: int,
    fabric: Fabric,
    *,
    batch_size: int,
    workers: Workers,
    progress: bool,
    title: str = "evaluate",
    classes: Tensor | None = None,
    each: int | None = None,
) -> Counts:
    """Run `model(batch)` -> scores (heads, B, K) in eval mode over the whole data set and count.

    Scores that are not finite never count as correct.

    Args:
        classes: int64, choose among these classes only (labels still count in 0 .. K-1); None is all of them.
        each: the head whose result of each single image is kept; None keeps none.

    Raises:
        UserError: no image could be decoded.
    """
    totals: Tensor | None = None
    names: list[str] = []
    correct: list[Tensor] = []
    with evaluating(model):
        batches = evaluation_batches(
            dataset, batch_size=batch_size, workers=workers, fabric=fabric, progress=progress, title=title
        )
        for batch in batches:
            dataset.report_skipped(batch)
            if not len(batch["labels"]):
                continue
            batch = fabric.to_device(batch)
            with fabric.autocast():
                scores: Tensor = model(batch)
            flags = flag_batch(scores.float(), batch["labels"], classes)
            part = count_flags(flags, batch["labels"], num_classes)
            totals = part if totals is None else totals + part
            if each is not None:
                names += batch["names"]
                correct.append(flags[1 + each])
    own = torch.cat(correct).cpu().numpy() if correct else np.zeros(0, bool)
    parts = gather_objects(fabric, (names, own)) if each is not None else []
    return Counts(*_summed(fabric, totals, num_classes), correct_images(parts))


def flag_batch(scores: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
    """Scores (heads, B, K) and labels (B,) -> bool (1 + 2 * heads, B): an image, correct, in the top five."""
    if classes is not None:
        masked = torch.full_like(scores, -torch.inf)
        masked[..., classes] = scores[..., classes]
        scores = masked
    top = scores.topk(min(5, scores.shape[-1]), dim=-1)
    hits = (top.indices == labels[None, :, None]) & top.values.isfinite()
    return torch.cat([torch.ones_like(hits[:1, :, 0]), hits[..., 0], hits.any(-1)])


def count_flags(flags: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Flags (n, B) and labels (B,) -> int64 (n, K): the images of each class that have each flag."""
    counts = torch.zeros(len(flags), num_classes, dtype=torch.int64, device=flags.device)
    return counts.index_add_(1, labels, flags.long())


def _summed(fabric: Fabric, totals: Tensor | None, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Over the ranks; one that saw no image does not know the number of heads, so that is agreed upon first."""
    rows = torch.tensor([0 if totals is None else len(totals)], device=fabric.device)
    most = int(all_reduce(fabric, rows, "max").item())
    if not most:
        raise UserError("no image of the evaluation could be decoded; fetch the images again")
    if totals is None:
        totals = torch.zeros(most, num_classes, dtype=torch.int64, device=fabric.device)
    totals = all_reduce(fabric, totals, "sum").cpu()
    heads = (most - 1) // 2
    return totals[0], totals[1 : 1 + heads], totals[1 + heads :]


def metrics_of(counts: Counts, head: int, class_names: Sequence[str] | None = None) -> dict[str, float]:
    """`top1`, `top5`, `mean_per_class` in percent of one head, and `top1/<class>` of each class if names are given."""
    metrics = {
        "top1": counts.top1()[head],
        "top5": counts.top5()[head],
        "mean_per_class": counts.mean_per_class()[head],
    }
    if class_names is not None:
        values = counts.per_class()[head].tolist()
        metrics |= {f"class_top1/{name}": value for name, value in zip(class_names, values, strict=True)}
    return metrics
