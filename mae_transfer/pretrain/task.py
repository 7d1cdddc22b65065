"""Pre-training by any method: what the engine and the record need of it (the contract of `tasks/base.py`)."""

import hashlib
import importlib
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mae_transfer.backbones.registry import Spec
from mae_transfer.data.images import choose_subset
from mae_transfer.engine.distributed import all_reduce, gather_objects
from mae_transfer.engine.evaluation import evaluating, evaluation_batches
from mae_transfer.errors import UserError
from mae_transfer.pretrain.config import PretrainConfig
from mae_transfer.pretrain.data import Batch, ImageSet, PretrainImages, find_images
from mae_transfer.pretrain.encoder import grid_of, new_encoder, spec_of
from mae_transfer.pretrain.online_knn import knn_accuracy
from mae_transfer.pretrain.pictures import draw_pictures

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.backbones.vit import ViTEncoder
    from mae_transfer.run_folder.folder import RunFolder
    from mae_transfer.run_folder.pictures import Picture


class PretrainTask:
    """Data and model of one method.

    Raises:
        UserError: anything wrong with the data set or the sizes, before a run makes its first file.
    """

    trains = True
    per_image = None

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.method = find_method(config.method)
        self.spec: Spec = spec_of(config)
        grid_of(config)
        if hasattr(self.method, "encoder_spec"):
            self.spec = self.method.encoder_spec(self.spec, config)
        views = self.method.make_views(config)
        images = find_images(config.data)
        self.num_classes, self.warnings = images.num_classes, images.warnings
        self.train_dataset = self._images(images.train, views)
        self.val_dataset = None if images.val is None else self._images(images.val, views)
        knn = config.eval.knn is not None
        if knn and (self.train_dataset.labels is None or self.val_dataset is None or self.val_dataset.labels is None):
            raise UserError(
                "eval.knn needs labels of training and val images: train/<class>/ and val/<class>/, or shards with "
                ".cls; set eval.knn=null"
            )
        self._summary = self._summarise(images)

    def _images(self, source: Any, views: Any) -> PretrainImages:
        chosen = choose_subset(source.names, self.config.subset)
        return PretrainImages(source, chosen, views, self.config.data, seed=self.config.seed)

    def _summarise(self, images: ImageSet) -> dict[str, Any]:
        about = f"{images.fingerprint} {self.config.subset}"
        generated = self.config.data.root == "synthetic"
        return {
            "name": "generated images" if generated else f"{len(self.train_dataset)} images",
            "fingerprint": hashlib.sha256(about.encode()).hexdigest()[:16],
            "train_images": len(self.train_dataset),
            "val_images": 0 if self.val_dataset is None else len(self.val_dataset),
            "classes": self.num_classes,
            "subset": self.config.subset,
        }

    @property
    def data_summary(self) -> dict[str, Any]:
        datasets = [self.train_dataset, *([self.val_dataset] if self.val_dataset else [])]
        return self._summary | {"skipped_files": sorted({name for dataset in datasets for name in dataset.skipped})}

    def check_batches(self, sizes: Collection[int]) -> None:
        if hasattr(self.method, "check_batches"):
            self.method.check_batches(sizes, self.config)

    def encoder_options(self, patch_size: int) -> dict[str, Any]:
        return {"img_size": self.config.data.size}

    def build_encoder(self) -> "ViTEncoder":
        """New weights from the global generator; the method gives them its own initialisation."""
        options = self.method.encoder_options(self.config) if hasattr(self.method, "encoder_options") else {}
        encoder = new_encoder(self.spec, self.config, **options)
        encoder.load_report.trained_by = self.method.title(self.config)
        return encoder

    def build_model(self, encoder: "ViTEncoder") -> nn.Module:
        model: nn.Module = self.method.build_model(encoder, self.config, self.num_classes)
        return model

    def prepare(self, model: nn.Module, fabric: "Fabric", folder: "RunFolder | None", progress: bool) -> None:
        if hasattr(self.method, "prepare"):
            self.method.prepare(model, self, fabric, folder, progress)

    def sample_names(self, batch: Batch) -> Sequence[str]:
        self.train_dataset.report_skipped(batch)
        return batch["names"]

    def evaluate(self, model: nn.Module, fabric: "Fabric", progress: bool) -> dict[str, float]:
        """`val_<name>` of what the model gives, averaged over the val images, whose masks are the same each time; and
        `knn_top1`. Nothing without val images."""
        if self.val_dataset is None:
            return {}
        metrics = self._averages(model, fabric, progress)
        if self.config.eval.knn is not None:
            metrics["knn_top1"] = knn_accuracy(model, self, fabric, progress)
        return metrics

    def draw_pictures(self, model: nn.Module, fabric: "Fabric") -> "list[Picture]":
        return draw_pictures(model, self, self.config.eval.pictures, fabric)

    def _averages(self, model: nn.Module, fabric: "Fabric", progress: bool) -> dict[str, float]:
        assert self.val_dataset is not None
        names: list[str] = []
        total: Tensor | None = None
        count = 0
        with evaluating(model):
            for batch in self.evaluation_batches(self.val_dataset, fabric, progress):
                with fabric.autocast():
                    values = model(batch)
                names = list(values)
                part = torch.stack([value.double().sum() for value in values.values()])
                total = part if total is None else total + part
                count += len(batch["images"])
        return averaged(fabric, names, total, count)

    def evaluation_batches(self, dataset: PretrainImages, fabric: "Fabric", progress: bool, title: str = "val") -> Any:
        """This rank's batches with at least one image, on the device."""
        batches = evaluation_batches(
            dataset,
            batch_size=self.config.eval.batch_size,
            workers=self.config.data.workers,
            fabric=fabric,
            progress=progress,
            title=title,
        )
        for batch in batches:
            dataset.report_skipped(batch)
            if "images" in batch:
                yield fabric.to_device(batch)


def averaged(fabric: "Fabric", names: list[str], total: Tensor | None, count: int) -> dict[str, float]:
    """Means over the images of all ranks of sums (values,) over `count` images; a rank that saw none knows no names."""
    names = next((known for known in gather_objects(fabric, names) if known), [])
    if not names:
        raise UserError("no val image could be decoded; fetch the images again, or set data.val_root")
    sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=fabric.device)
    if total is not None:
        sums[:-1] = total
    sums[-1] = count
    *values, images = all_reduce(fabric, sums, "sum").tolist()
    return {f"val_{name}": value / images for name, value in zip(names, values, strict=True)}


def find_method(name: str) -> ModuleType:
    return importlib.import_module(f"mae_transfer.pretrain.methods.{name}")
