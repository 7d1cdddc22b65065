"""Pre-training by any method: what the engine and the record need of it (the contract of `engine/task.py`)."""

import hashlib
import importlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from mae_transfer.data.images import choose_subset
from mae_transfer.data.overlap import note_overlap
from mae_transfer.errors import UserError
from mae_transfer.pretrain.config import PretrainConfig
from mae_transfer.pretrain.data import Batch, ImageSet, PretrainImages, Source, find_images
from mae_transfer.pretrain.encoder import grid_of, spec_of
from mae_transfer.pretrain.evaluate import val_averages
from mae_transfer.pretrain.methods.method import Method
from mae_transfer.pretrain.online_knn import knn_accuracy

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
        self.method = method_of(config)
        spec_of(config), grid_of(config)  # refuse a backbone or an image size that cannot be
        self.views = self.method.make_views()
        images = find_images(config.data)
        self.num_classes, self.warnings = images.num_classes, images.warnings
        self.train_dataset = self._images(images.train)
        self.val_dataset = None if images.val is None else self._images(images.val)
        knn = config.eval.knn is not None
        if knn and (self.train_dataset.labels is None or self.val_dataset is None or self.val_dataset.labels is None):
            raise UserError(
                "eval.knn needs labels of training and val images: train/<class>/ and val/<class>/, or shards with "
                ".cls; set eval.knn=null"
            )
        self._summary = self._summarise(images)
        if self.val_dataset is not None:
            self.warnings += note_overlap(self._summary, self.train_dataset, self.val_dataset)

    def _images(self, source: Source) -> PretrainImages:
        chosen = choose_subset(source.names, self.config.subset)
        return PretrainImages(source, chosen, self.views, self.config.data, seed=self.config.seed)

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
        self.method.check_batches(sizes)

    def encoder_options(self, patch_size: int) -> dict[str, Any]:
        return {"img_size": self.config.data.size}

    def build_encoder(self) -> "ViTEncoder":
        """New weights from the global generator; the method gives them its own initialisation."""
        encoder = self.method.build_encoder()
        encoder.load_report.trained_by = self.method.title()
        return encoder

    def build_model(self, encoder: "ViTEncoder") -> nn.Module:
        return self.method.build_model(encoder, self.num_classes)

    def prepare(self, model: nn.Module, fabric: "Fabric", folder: "RunFolder | None", progress: bool) -> None:
        self.method.prepare(model, self.train_dataset, fabric, folder)

    def sample_names(self, batch: Batch) -> Sequence[str]:
        self.train_dataset.report_skipped(batch)
        return batch["names"]

    def evaluate(self, model: nn.Module, fabric: "Fabric", progress: bool) -> dict[str, float]:
        """`val_<name>` of each value that the model gives in eval mode, averaged over the val images, whose masks are
        the same every time; and `knn_top1`. Empty without val images."""
        if self.val_dataset is None:
            return {}
        metrics = val_averages(model, self.val_dataset, self.config, fabric, progress)
        if self.config.eval.knn is not None:
            assert self.num_classes is not None
            metrics["knn_top1"] = knn_accuracy(
                model, self.train_dataset, self.val_dataset, self.num_classes, self.config, fabric, progress
            )
        return metrics

    def draw_pictures(self, model: nn.Module, fabric: "Fabric") -> "Sequence[Picture]":
        """Of val images, or of training images where there are no val images."""
        dataset, split = (self.train_dataset, "training") if self.val_dataset is None else (self.val_dataset, "val")
        return self.method.draw_pictures(model, dataset, split, fabric)


CLASSES = {"mae": "MaeMethod", "beit": "BeitMethod", "supervised": "SupervisedMethod", "dvae": "DvaeMethod"}


def method_of(config: PretrainConfig) -> Method[PretrainConfig, nn.Module]:
    module = importlib.import_module(f"mae_transfer.pretrain.methods.{config.method}")
    kind: type[Method[PretrainConfig, nn.Module]] = getattr(module, CLASSES[config.method])
    return kind(config)
