"""The image classification task, by any protocol (the contract of `engine/task.py`)."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from mae_transfer.backbones.grid import grid_of
from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.data.fractions import titled
from mae_transfer.data.identity import combine
from mae_transfer.data.images import choose_subset
from mae_transfer.data.overlap import note_overlap
from mae_transfer.data.paths import set_name
from mae_transfer.data.synthetic.classification import cached_classification
from mae_transfer.engine.distributed import from_rank_zero
from mae_transfer.engine.task import BaseTask, Evaluation
from mae_transfer.errors import UserError
from mae_transfer.tasks.attention_picture import attention_pictures
from mae_transfer.tasks.card import load_object
from mae_transfer.tasks.classification.card import BENCHMARKS, PROTOCOLS
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.data import (
    ClassificationEval,
    ClassificationTrain,
    choose_training_images,
)
from mae_transfer.tasks.classification.evaluate import count, metrics_of
from mae_transfer.tasks.classification.layouts.find import find_images
from mae_transfer.tasks.classification.layouts.listing import ImageSet
from mae_transfer.tasks.classification.protocols.protocol import ProbeModel, Protocol
from mae_transfer.tasks.classification.robustness import PLAIN, evaluate_sets, find_sets, fingerprints
from mae_transfer.tasks.classification.splits import ImageSplits, Splits, TrainSplit
from mae_transfer.tasks.classification.transforms import EvalTransform, TrainTransform

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.backbones.encoder import Encoder
    from mae_transfer.run_folder.folder import RunFolder
    from mae_transfer.run_folder.pictures import Picture

SYNTHETIC = "synthetic"


class ClassificationTask(BaseTask):
    """Data, model and metric of one protocol on one data set; finds and checks all images of both splits.

    `like` is another run's task, whose images are taken over if they are the same.

    Raises:
        UserError: anything wrong with the data set, before a run makes its first file.
    """

    config: ClassificationConfig
    train_dataset: TrainSplit
    images: ImageSet
    fixed_sizes = True

    @classmethod
    def make(
        cls, config: ClassificationConfig, protocol: type[Any] | None = None, like: BaseTask | None = None
    ) -> "ClassificationTask":
        return cls(config, protocol, like if isinstance(like, ClassificationTask) else None)

    def __init__(
        self,
        config: ClassificationConfig,
        protocol: type[Protocol[ProbeModel]] | None = None,
        like: "ClassificationTask | None" = None,
    ) -> None:
        super().__init__(config)
        data = config.data
        self.is_synthetic = data.root == SYNTHETIC
        if self.is_synthetic:
            data = data.model_copy(update={"root": str(cached_classification(config.task))})
        self.protocol = (protocol or _protocol_class(config.protocol))(config)
        self.trains, self.shards = self.protocol.trains, self.protocol.shards
        if data.holdout and "data.holdout" not in self.protocol.reads:
            raise UserError(f"data.holdout: the protocol {config.protocol} chooses nothing; leave it out")
        with_train = self.protocol.needs_training_images
        known = like is not None and _same_files(like.config, config)
        known = known and like is not None and like.protocol.needs_training_images == with_train
        found = like.images if like is not None and known else find_images(config.task, data, train=with_train)
        self.images = images = found
        self.class_names = self.protocol.class_names = images.class_names
        chosen, held, warnings = choose_training_images(images.train, data, config.subset)
        self.warnings = images.warnings + warnings
        mean = resolve(config.backbone.name).mean
        centre, bad = EvalTransform(config), data.on_bad_image
        shown = choose_subset(images.val.names, config.subset)
        self.image_splits = ImageSplits(
            train=ClassificationTrain(
                images.train, chosen, TrainTransform(config, mean), seed=config.seed, on_bad_image=bad
            ),
            val=ClassificationEval(images.val, shown, centre, on_bad_image=bad),
            holdout=ClassificationEval(images.train, held, centre, on_bad_image=bad) if len(held) else None,
        )
        self.use(self.image_splits)
        self.robustness_sets = find_sets(config, self.class_names)
        self._summary = self._summarise(images)
        beside = [item.dataset for item in self.robustness_sets if item.name in PLAIN]
        self.warnings += note_overlap(self._summary, self.image_splits.train, self.image_splits.val, *beside)
        if self.robustness_sets:
            self._summary["robustness"] = from_rank_zero(lambda: fingerprints(self.robustness_sets))

    def use(self, splits: Splits) -> None:
        """Train and evaluate on these splits."""
        self.splits = splits
        self.train_dataset = splits.train

    def _summarise(self, images: ImageSet) -> dict[str, object]:
        """For the run record. What the protocols of a data set share: so the fingerprint holds the subset, the
        shots and the fraction, but not which draw of them, nor what a protocol sets aside to choose by."""
        data, train, val = self.config.data, self.image_splits.train, self.image_splits.val
        subset, shots = self.config.subset, data.shots
        few = (shots,) if data.fraction is None else (shots, data.fraction)
        parts = {
            split: combine(listing.identity(choose_subset(listing.names, subset)), self.class_names)
            for split, listing in (("train", images.train), ("val", images.val))
        }
        held = self.image_splits.holdout
        labels = train.labels if held is None else np.append(train.labels, held.labels)
        counts = np.bincount(labels, minlength=len(self.class_names))
        return {
            "name": self._name(images, len(labels)),
            "fingerprint": combine(parts, subset, *few),
            "whole_fingerprint": combine(parts, subset, None),
            "parts": parts,
            "names_fingerprint": combine(" ".join(map(str, (images.names_fingerprint(), subset, *few)))),
            "train_images": len(train),
            "val_images": len(val),
            "classes": len(self.class_names),
            "subset": self.config.subset,
            "draw": data.draw,
            # top-1 of always saying the commonest class
            "blind": 100 * float((val.labels == counts.argmax()).mean()) if len(labels) else None,
        }

    def _name(self, images: ImageSet, train_images: int) -> str:
        data = self.config.data
        if data.name is None and self.is_synthetic:
            return titled("generated images", data.fraction)
        shots = "" if data.shots is None else f", {data.shots} shots a class"
        whole = BENCHMARKS.get(self.config.task)
        sizes = (len(images.train), len(images.val), len(self.class_names))
        train_wanted = whole.train_images if whole and self.protocol.needs_training_images else 0
        is_whole = whole and sizes == (train_wanted, whole.val_images, whole.classes)
        if whole and is_whole and data.name is None and self.config.subset is None:
            return titled(whole.title + shots, data.fraction)
        counts = f"{len(self.class_names)} classes, {train_images} train, {len(self.image_splits.val)} val images"
        return titled(f"{set_name(data, (data.train_list, data.val_list))} ({counts}){shots}", data.fraction)

    @property
    def data_summary(self) -> dict[str, object]:
        """What the run record holds of the data; complete once training and evaluation are done."""
        splits = self.image_splits
        datasets = [splits.train, splits.val, *(item.dataset for item in self.robustness_sets)]
        datasets += [splits.holdout] if splits.holdout else []
        skipped = {name for dataset in datasets for name in dataset.skipped}
        return self._summary | {"skipped_files": sorted(skipped)}

    def with_classes(self, count: int) -> None:
        self.class_names = self.protocol.class_names = list(map(str, range(count)))

    def check_batches(self, sizes: Collection[int]) -> None:
        self.protocol.check_batches(sizes)

    def check_images(self) -> None:
        held = self.image_splits.holdout
        self.protocol.check_images(len(self.image_splits.train) + (len(held) if held is not None else 0))

    def encoder_options(self, patch_size: int) -> dict[str, object]:
        side = self.config.data.image_size
        grid_of(side, patch_size, self.config.backbone.name, what="data.image_size=")
        return self.protocol.encoder_options()

    def build_model(self, encoder: "Encoder") -> ProbeModel:
        return self.protocol.build_model(encoder, len(self.class_names))

    def prepare(self, model: nn.Module, fabric: "Fabric", folder: "RunFolder | None", progress: bool) -> None:
        assert isinstance(model, ProbeModel)
        self.use(self.protocol.prepare(model, self.image_splits, fabric, folder, progress))

    def sample_names(self, batch: Any) -> list[str]:
        self.splits.train.report_skipped(batch)
        names: list[str] = batch["names"]
        return names

    def draw_pictures(self, model: nn.Module, fabric: "Fabric", evaluation: Evaluation) -> "list[Picture]":
        assert isinstance(model, ProbeModel)
        head = model.head_names.index(evaluation.head) if len(model.head_names) > 1 and evaluation.head else 0
        pictures = self.protocol.draw_pictures(model, head, self.image_splits, self.class_names, fabric)
        return [*pictures, *attention_pictures(model.encoder, self.image_splits.val, self.config.eval.pictures)]

    def evaluate(self, model: nn.Module, fabric: "Fabric", progress: bool) -> Evaluation:
        """Accuracies in percent.

        Of several heads the one that is best on the images set aside from training counts; `top1/<head>` and
        `holdout_top1/<head>` are those of each head. `holdout_top1/<choice>` also tells of a choice that the model made
        itself, such as logistic regression's C.
        """
        assert isinstance(model, ProbeModel)
        config, heads = self.config, model.head_names
        options: dict[str, Any] = {"batch_size": config.eval.batch_size, "workers": config.data.workers}
        options |= {"num_classes": len(self.class_names), "fabric": fabric, "progress": progress}
        chosen, head, held = 0, None, dict[str, float]()
        if len(heads) > 1:
            assert self.splits.holdout is not None, "several heads need data.holdout"
            top1 = count(model, self.splits.holdout, title="choose", **options).top1()
            chosen, held = int(np.argmax(top1)), dict(zip(heads, top1, strict=True))
            head = heads[chosen]
        elif model.selection is not None:
            head, held = model.selection
        counts = count(model, self.splits.val, each=chosen, **options)
        metrics = metrics_of(counts, chosen, self.class_names if config.eval.per_class else None)
        metrics |= {f"holdout_top1/{name}": value for name, value in held.items()}
        if len(heads) > 1:
            metrics |= {f"top1/{name}": value for name, value in zip(heads, counts.top1(), strict=True)}
        metrics |= evaluate_sets(model, chosen, self.robustness_sets, **options)
        return Evaluation(metrics, counts.each, head)


def _same_files(a: ClassificationConfig, b: ClassificationConfig) -> bool:
    keys = ("root", "train_list", "val_list", "places_size")
    return a.task == b.task and all(getattr(a.data, key) == getattr(b.data, key) for key in keys)


def _protocol_class(name: str) -> type[Protocol[ProbeModel]]:
    found: type[Protocol[ProbeModel]] = load_object({card.name: card.code for card in PROTOCOLS}[name])
    return found
