"""Means of a model's values over the val images of all ranks."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mae_transfer.engine.distributed import all_reduce, gather_objects
from mae_transfer.engine.evaluation import evaluating
from mae_transfer.engine.evaluation import evaluation_batches as batches_of
from mae_transfer.errors import UserError
from mae_transfer.pretrain.config import PretrainConfig
from mae_transfer.pretrain.data import Batch, PretrainImages

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def evaluation_batches(
    dataset: PretrainImages, config: PretrainConfig, fabric: "Fabric", progress: bool, title: str = "val"
) -> Iterator[Batch]:
    """This rank's batches with at least one image, on the device."""
    batches = batches_of(
        dataset,
        batch_size=config.eval.batch_size,
        workers=config.data.workers,
        fabric=fabric,
        progress=progress,
        title=title,
    )
    for batch in batches:
        dataset.report_skipped(batch)
        if "images" in batch:
            yield fabric.to_device(batch)


def val_averages(
    model: nn.Module, dataset: PretrainImages, config: PretrainConfig, fabric: "Fabric", progress: bool
) -> dict[str, float]:
    """`val_<name>` of each value that the model gives in eval mode, averaged over the images of all ranks."""
    names: list[str] = []
    total: Tensor | None = None
    count = 0
    with evaluating(model):
        for batch in evaluation_batches(dataset, config, fabric, progress):
            with fabric.autocast():
                values = model(batch)
            names = list(values)
            part = torch.stack([value.double().sum() for value in values.values()])
            total = part if total is None else total + part
            count += len(batch["images"])
    return _averaged(fabric, names, total, count)


def _averaged(fabric: "Fabric", names: list[str], total: Tensor | None, count: int) -> dict[str, float]:
    """Means over all ranks from this rank's sums (values,) over `count` images; a rank without images has no names."""
    names = next((known for known in gather_objects(fabric, names) if known), [])
    if not names:
        raise UserError("no val image could be decoded; fetch the images again, or set data.val_root")
    sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=fabric.device)
    if total is not None:
        sums[:-1] = total
    sums[-1] = count
    *values, images = all_reduce(fabric, sums, "sum").tolist()
    return {f"val_{name}": value / images for name, value in zip(names, values, strict=True)}
