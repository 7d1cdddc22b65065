"""Image classification by any protocol: what the engine and the record need of it (the contract of `tasks/base.py`)."""

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from mae_transfer.backbones.grid import grid_of
from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.data.images import choose_subset
from mae_transfer.data.synthetic.classification import cached_classification
from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.data import (
    ClassificationEval,
    ClassificationTrain,
    choose_training_images,
)
from mae_transfer.tasks.classification.evaluate import count, metrics_of
from mae_transfer.tasks.classification.layouts.find import find_images
from mae_transfer.tasks.classification.layouts.listing import ImageSet
from mae_transfer.tasks.classification.pictures import draw_pictures
from mae_transfer.tasks.classification.protocols import find_protocol
from mae_transfer.tasks.classification.protocols.finetune import check_pairs
from mae_transfer.tasks.classification.robustness import evaluate_sets, find_sets
from mae_transfer.tasks.classification.transforms import EvalTransform, TrainTransform

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.backbones.vit import ViTEncoder
    from mae_transfer.run_folder.folder import RunFolder
    from mae_transfer.run_folder.per_image import Arrays
    from mae_transfer.run_folder.pictures import Picture

SYNTHETIC = "synthetic"
BENCHMARKS = {
    "imagenet": ("ImageNet-1K val", 1000, 1281167, 50000),
    "inat2017": ("iNaturalist 2017 val", 5089, 579184, 95986),
    "inat2018": ("iNaturalist 2018 val", 8142, 437513, 24426),
    "inat2019": ("iNaturalist 2019 val", 1010, 265213, 3030),
    "inat2021": ("iNaturalist 2021 val", 10000, 2686843, 100000),
    "places205": ("Places205 val", 205, 2448873, 20500),
    "places365": ("Places365 val", 365, 1803460, 36500),
}
"""Task -> title, classes, training and validation images of the whole set, as its makers count them."""


class ClassificationTask:
    """Data, model and metric of one protocol on one data set; finds and checks all images of both splits.

    `like` is another run's task, whose images are taken over if they are the same.

    Raises:
        UserError: anything wrong with the data set, before a run makes its first file.
    """

    images: ImageSet
    per_image: "Arrays | None" = None

    def __init__(self, config: ClassificationConfig, like: "ClassificationTask | None" = None) -> None:
        self.config = config
        data = config.data
        self.is_synthetic = data.root == SYNTHETIC
        if self.is_synthetic:
            data = data.model_copy(update={"root": str(cached_classification(config.task))})
        self.protocol = find_protocol(config.protocol)
        known = like is not None and _same_files(like.config, config)
        self.images = images = like.images if like is not None and known else find_images(config.task, data)
        self.class_names = images.class_names
        chosen, held, warnings = choose_training_images(images.train, data, config.subset)
        self.warnings = images.warnings + warnings
        mean = resolve(config.backbone.name).mean
        centre, bad = EvalTransform(config), data.on_bad_image
        self.train_dataset = ClassificationTrain(
            images.train, chosen, TrainTransform(config, mean), seed=config.seed, on_bad_image=bad
        )
        self.eval_dataset = ClassificationEval(
            images.val, choose_subset(images.val.names, config.subset), centre, on_bad_image=bad
        )
        self.val_images = self.eval_dataset  # where a probe puts features in the place of that
        self.holdout_dataset = ClassificationEval(images.train, held, centre, on_bad_image=bad) if len(held) else None
        self.robustness_sets = find_sets(config, self.class_names)
        self._image_datasets = [self.train_dataset, self.eval_dataset, *(item.dataset for item in self.robustness_sets)]
        self._image_datasets += [self.holdout_dataset] if self.holdout_dataset else []
        self._summary = self._summarise(images)

    def _summarise(self, images: ImageSet) -> dict[str, Any]:
        """For the run record. What the protocols of a data set share: so the fingerprint holds the subset and the
        shots, but not which draw of them, nor what a protocol sets aside to choose by."""
        data, train, val = self.config.data, self.train_dataset, self.eval_dataset
        about = f"{images.fingerprint} {self.config.subset} {data.shots}"
        labels = train.labels if self.holdout_dataset is None else np.append(train.labels, self.holdout_dataset.labels)
        counts = np.bincount(labels, minlength=len(self.class_names))
        return {
            "name": self._name(images, len(labels)),
            "fingerprint": hashlib.sha256(about.encode()).hexdigest()[:16],
            "train_images": len(train),
            "val_images": len(val),
            "classes": len(self.class_names),
            "subset": self.config.subset,
            "draw": data.draw,
            "blind": 100 * float((val.labels == counts.argmax()).mean()),  # top-1 of always saying the commonest class
        }

    def _name(self, images: ImageSet, train_images: int) -> str:
        if self.is_synthetic:
            return "generated images"
        shots = "" if self.config.data.shots is None else f", {self.config.data.shots} shots a class"
        title, *sizes = BENCHMARKS.get(self.config.task, ("", 0))
        if sizes == [len(self.class_names), len(images.train), len(images.val)] and self.config.subset is None:
            return title + shots
        counts = f"{train_images} train, {len(self.eval_dataset)} val images"
        return f"{len(self.class_names)} classes ({counts}){shots}"

    @property
    def data_summary(self) -> dict[str, Any]:
        """What the run record holds of the data; complete once training and evaluation are done."""
        skipped = {name for dataset in self._image_datasets for name in dataset.skipped}
        return self._summary | {"skipped_files": sorted(skipped)}

    @property
    def trains(self) -> bool:
        return getattr(self.protocol, "TRAINS", True)

    def check_batches(self, sizes: Collection[int]) -> None:
        check_pairs(sizes, self.config.model, self.config.train.micro_batch)
        if self.config.protocol == "linear" and self.config.probe.batch_norm and 1 in sizes:
            raise UserError(
                "BatchNorm needs more than one image and a device gets a batch of 1; choose another train.global_batch "
                "or train.micro_batch, or probe.batch_norm=false"
            )

    def encoder_options(self, patch_size: int) -> dict[str, Any]:
        side = self.config.data.image_size
        grid_of(side, patch_size, self.config.backbone.name, what="data.image_size=")
        options: dict[str, Any] = self.protocol.encoder_options(self.config)
        return options

    def build_model(self, encoder: "ViTEncoder") -> nn.Module:
        model: nn.Module = self.protocol.build_model(encoder, len(self.class_names), self.config)
        return model

    def prepare(self, model: nn.Module, fabric: "Fabric", folder: "RunFolder | None", progress: bool) -> None:
        """What the protocol does before training, such as the features of a frozen encoder."""
        if hasattr(self.protocol, "prepare"):
            self.protocol.prepare(self, model, fabric, folder, progress)

    def sample_names(self, batch: dict[str, Any]) -> list[str]:
        self.train_dataset.report_skipped(batch)
        names: list[str] = batch["names"]
        return names

    def draw_pictures(self, model: nn.Module, fabric: "Fabric") -> "list[Picture]":
        heads: tuple[str, ...] = tuple(model.head_names)  # type: ignore[arg-type]
        head = heads.index(self._summary["selected_head"]) if len(heads) > 1 else 0
        return draw_pictures(model, self, head, self.config.eval.pictures, fabric)

    def evaluate(self, model: nn.Module, fabric: "Fabric", progress: bool) -> dict[str, float]:
        """Accuracies in percent. With several heads, that which is best on the images set aside from training counts,
        and `top1/<head>`, `holdout_top1/<head>` tell of each; a model that has chosen itself (logreg) says how."""
        config = self.config
        heads: tuple[str, ...] = tuple(model.head_names)  # type: ignore[arg-type]
        options: dict[str, Any] = {"batch_size": config.eval.batch_size, "workers": config.data.workers}
        options |= {"num_classes": len(self.class_names), "fabric": fabric, "progress": progress}
        chosen, metrics = 0, dict[str, float]()
        if len(heads) > 1:
            assert self.holdout_dataset is not None, "several heads need data.holdout"
            held = count(model, self.holdout_dataset, title="choose", **options).top1()
            chosen = int(np.argmax(held))
            metrics |= {f"holdout_top1/{name}": value for name, value in zip(heads, held, strict=True)}
        counts = count(model, self.eval_dataset, each=chosen, **options)
        self.per_image = counts.each
        if len(heads) > 1:
            metrics |= {f"top1/{name}": value for name, value in zip(heads, counts.top1(), strict=True)}
            self._summary["selected_head"] = heads[chosen]
        elif getattr(model, "holdout_top1", None):
            self._summary["selected_head"] = model.selected
            metrics |= {f"holdout_top1/{name}": value for name, value in model.holdout_top1.items()}  # type: ignore
        metrics = metrics_of(counts, chosen, self.class_names if config.eval.per_class else None) | metrics
        return metrics | evaluate_sets(model, chosen, self.robustness_sets, **options)


def _same_files(a: ClassificationConfig, b: ClassificationConfig) -> bool:
    keys = ("root", "train_list", "val_list", "places_size")
    return a.task == b.task and all(getattr(a.data, key) == getattr(b.data, key) for key in keys)
