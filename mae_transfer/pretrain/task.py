"""Pre-training by any method: what the engine and the record need of it (the contract of `engine/task.py`)."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from mae_transfer.data.identity import combine
from mae_transfer.data.images import choose_subset
from mae_transfer.data.overlap import note_overlap
from mae_transfer.data.paths import set_name
from mae_transfer.engine.task import BaseTask, Evaluation
from mae_transfer.errors import UserError
from mae_transfer.pretrain.card import METHODS
from mae_transfer.pretrain.config import PretrainConfig
from mae_transfer.pretrain.data import Batch, ImageSet, PretrainImages, Source, find_images
from mae_transfer.pretrain.encoder import grid_of
from mae_transfer.pretrain.evaluate import val_averages
from mae_transfer.pretrain.methods.method import Method
from mae_transfer.pretrain.online_knn import knn_accuracy
from mae_transfer.tasks.card import load_object

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.backbones.vit import ViTEncoder
    from mae_transfer.run_folder.folder import RunFolder
    from mae_transfer.run_folder.pictures import Picture


class PretrainTask(BaseTask):
    """Data and model of one method.

    Raises:
        UserError: anything wrong with the data set or the sizes, before a run makes its first file.
    """

    config: PretrainConfig
    train_dataset: PretrainImages
    fixed_sizes = True

    @classmethod
    def make(
        cls, config: PretrainConfig, protocol: type[Any] | None = None, like: BaseTask | None = None
    ) -> "PretrainTask":
        return cls(config, protocol)

    def __init__(self, config: PretrainConfig, method: type[Method[PretrainConfig, nn.Module]] | None = None) -> None:
        super().__init__(config)
        self.method = (method or _method_class(config.method))(config)
        self.method.spec(), grid_of(config)  # refuse a backbone or an image size that cannot be
        self.shards = self.method.shards
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

    def _summarise(self, images: ImageSet) -> dict[str, object]:
        subset = self.config.subset
        splits = {"train": self.train_dataset, "val": self.val_dataset}
        parts = {split: part.source.identity(part.indices) for split, part in splits.items() if part is not None}
        data, count = self.config.data, len(self.train_dataset)
        generated = data.name is None and data.root == "synthetic"
        return {
            "name": "generated images" if generated else f"{set_name(data)} ({count} images)",
            "fingerprint": combine(parts, subset),
            "parts": parts,
            "names_fingerprint": combine(f"{images.names_fingerprint()} {subset}"),
            "train_images": count,
            "val_images": 0 if self.val_dataset is None else len(self.val_dataset),
            "classes": self.num_classes,
            "subset": subset,
        }

    @property
    def data_summary(self) -> dict[str, object]:
        datasets = [self.train_dataset, *([self.val_dataset] if self.val_dataset else [])]
        return self._summary | {"skipped_files": sorted({name for dataset in datasets for name in dataset.skipped})}

    def check_batches(self, sizes: Collection[int]) -> None:
        self.method.check_batches(sizes)

    def build_encoder(self) -> "ViTEncoder":
        """New weights from the global generator; the method gives them its own initialisation."""
        encoder = self.method.build_encoder()
        encoder.load_report.trained_by = self.method.title()
        return encoder

    def build_model(self, encoder: Any) -> nn.Module:
        return self.method.build_model(encoder, self.num_classes)

    def prepare(self, model: nn.Module, fabric: "Fabric", folder: "RunFolder | None", progress: bool) -> None:
        self.method.prepare(model, self.train_dataset, fabric, folder)

    def sample_names(self, batch: Batch) -> Sequence[str]:
        self.train_dataset.report_skipped(batch)
        return batch["names"]

    def evaluate(self, model: nn.Module, fabric: "Fabric", progress: bool) -> Evaluation:
        """`val_<name>` of each value that the model gives in eval mode, averaged over the val images, whose masks are
        the same every time; and `knn_top1`. Empty without val images."""
        if self.val_dataset is None:
            return Evaluation({})
        metrics = val_averages(model, self.val_dataset, self.config, fabric, progress)
        if self.config.eval.knn is not None:
            assert self.num_classes is not None
            metrics["knn_top1"] = knn_accuracy(
                model, self.train_dataset, self.val_dataset, self.num_classes, self.config, fabric, progress
            )
        return Evaluation(metrics)

    def draw_pictures(self, model: nn.Module, fabric: "Fabric", evaluation: Evaluation) -> "Sequence[Picture]":
        """Of val images, or of training images where there are no val images."""
        dataset, split = (self.train_dataset, "training") if self.val_dataset is None else (self.val_dataset, "val")
        return self.method.draw_pictures(model, dataset, split, fabric)


def _method_class(name: str) -> type[Method[PretrainConfig, nn.Module]]:
    found: type[Method[PretrainConfig, nn.Module]] = load_object({card.name: card.code for card in METHODS}[name])
    return found
