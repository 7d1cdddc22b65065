"""The ADE20K task: what the engine and the run record need of it (the contract of `engine/task.py`)."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from mae_transfer.data.fractions import left_out, titled
from mae_transfer.data.identity import combine
from mae_transfer.data.overlap import note_overlap
from mae_transfer.data.paths import set_name
from mae_transfer.data.synthetic.ade20k import cached_ade20k
from mae_transfer.engine.task import BaseTask, Evaluation
from mae_transfer.tasks.ade20k.card import BENCHMARK, CARDS
from mae_transfer.tasks.ade20k.config import SegmentationConfig
from mae_transfer.tasks.ade20k.data import EvalSplit
from mae_transfer.tasks.ade20k.evaluate import evaluate_each
from mae_transfer.tasks.ade20k.labels import class_names
from mae_transfer.tasks.ade20k.pairs import Pairs, find_pairs
from mae_transfer.tasks.ade20k.pictures import draw_pictures
from mae_transfer.tasks.ade20k.protocols.protocol import Protocol
from mae_transfer.tasks.ade20k.values import check_values, classes_present
from mae_transfer.tasks.attention_picture import attention_pictures
from mae_transfer.tasks.card import load_object

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.backbones.encoder import Encoder
    from mae_transfer.run_folder.folder import RunFolder
    from mae_transfer.run_folder.pictures import Picture

SYNTHETIC = "synthetic"


class Ade20kTask(BaseTask):
    """Data, model and metric of semantic segmentation by one protocol; finds and checks all pairs of both splits.

    Raises:
        UserError: anything wrong with the data set or the batch, before a run makes its first file.
    """

    config: SegmentationConfig
    fixed_sizes = True

    @classmethod
    def make(
        cls, config: SegmentationConfig, protocol: type[Any] | None = None, like: BaseTask | None = None
    ) -> "Ade20kTask":
        return cls(config, protocol)

    def __init__(self, config: SegmentationConfig, protocol: "type[Protocol[Any, Any]] | None" = None) -> None:
        super().__init__(config)
        data = config.data
        self.is_synthetic = data.root == SYNTHETIC
        if self.is_synthetic:
            data = data.model_copy(update={"root": str(cached_ade20k())})
        self.protocol: Protocol[Any, Any] = (protocol or _protocol_class(config))(config)
        self.trains = self.protocol.trains
        self.class_names = class_names(data)
        with_train = self.protocol.needs_training_images
        train = find_pairs(data, "train" if with_train else "val")
        val = find_pairs(data, "val") if with_train else train
        self.warnings = train.warnings + (val.warnings if with_train else [])
        self.splits = self.protocol.datasets(train, val)
        self.train_dataset = self.splits.train
        self.eval_dataset: EvalSplit = self.splits.val
        self.warnings += check_values(self.splits if with_train else [self.splits.val], trained=not with_train)
        if data.fraction is not None:
            present, sample = classes_present(self.splits.train)
            self.warnings += left_out(self.class_names, present, data.fraction, sample)
        self._summary = self._summarise(train, val)
        if with_train:
            self.warnings += note_overlap(self._summary, *self.splits)

    @property
    def data_summary(self) -> dict[str, Any]:
        """What the run record holds of the data; complete once training and evaluation are done."""
        skipped = {name for split in self.splits for name in split.skipped}
        return self._summary | {"skipped_files": sorted(skipped)}

    def _summarise(self, train: Pairs, val: Pairs) -> dict[str, Any]:
        """Name, fingerprints and counts, for the run record. A part is the images and masks that are used of a split,
        whatever the fraction that is trained on, so that its draws share a fingerprint; the fingerprint of names is of
        the names and sizes of all files, the classes and the subset."""
        fraction = self.config.data.fraction
        few = (self.config.subset,) if fraction is None else (self.config.subset, fraction)
        by_name = (train.names_fingerprint, val.names_fingerprint, self.class_names, *few)
        splits = zip(("train", "val"), (train, val), self.splits, strict=True)
        parts = {name: combine(pairs.identity(split.whole), self.class_names) for name, pairs, split in splits}
        train_images, val_images = (len(split.whole) for split in self.splits)
        data, whole = self.config.data, (BENCHMARK.train_images, BENCHMARK.val_images, BENCHMARK.classes)
        with_train = self.protocol.needs_training_images
        train_images = train_images if with_train else 0
        sizes = (len(train) if with_train else BENCHMARK.train_images, len(val), len(self.class_names))
        if data.name is None and self.is_synthetic:
            name = "generated images"
        elif data.name is None and sizes == whole and self.config.subset is None:
            name = BENCHMARK.title
        else:
            called = set_name(data, (data.train_images, data.train_masks, data.val_images, data.val_masks))
            name = f"{called} ({len(self.class_names)} classes, {train_images} train, {val_images} val images)"
        return {
            "name": titled(name, fraction),
            "fingerprint": combine(parts, *few),
            "whole_fingerprint": combine(parts, self.config.subset),
            "parts": parts,
            "names_fingerprint": combine(*by_name),
            "train_images": len(self.splits.train) if with_train else 0,
            "val_images": val_images,
            "subset": self.config.subset,
            "draw": self.config.data.draw,
        }

    def check_batches(self, sizes: Collection[int]) -> None:
        self.protocol.check_batches(sizes)

    def check_images(self) -> None:
        self.protocol.check_images(len(self.splits.train))

    def encoder_options(self, patch_size: int) -> dict[str, object]:
        return self.protocol.encoder_options(patch_size)

    def build_encoder(self) -> "Encoder":
        from mae_transfer.backbones.configured import encoder_of

        return encoder_of(self.protocol.backbone(), self.encoder_options)

    def build_model(self, encoder: "Encoder") -> nn.Module:
        model: nn.Module = self.protocol.build_model(encoder, len(self.class_names))
        return model

    def prepare(self, model: nn.Module, fabric: "Fabric", folder: "RunFolder | None", progress: bool) -> None:
        self.eval_dataset = self.protocol.prepare(model, self.splits, fabric, folder, progress)

    def sample_names(self, batch: Any) -> list[str]:
        self.splits.train.report_skipped(batch)
        names: list[str] = batch["file_names"]
        return names

    def evaluate(self, model: nn.Module, fabric: "Fabric", progress: bool) -> Evaluation:
        names, config = self.class_names, self.config
        metrics, each, self._summary["blind"] = evaluate_each(model, self.eval_dataset, names, config, fabric, progress)
        chosen, candidates = self.protocol.selection(model)
        return Evaluation(metrics | candidates, each, chosen)

    def draw_pictures(self, model: nn.Module, fabric: "Fabric", evaluation: Evaluation) -> "list[Picture]":
        count = self.config.eval.pictures
        pictures = draw_pictures(model, self.splits.val, self.class_names, count, fabric)
        return [*pictures, *attention_pictures(cast("Encoder", model.encoder), self.splits.val, count)]


def _protocol_class(config: SegmentationConfig) -> type[Protocol[Any, Any]]:
    """The first one for a run that names none."""
    protocol = CARDS[0].protocol(getattr(config, "protocol", None))
    assert protocol is not None
    found: type[Protocol[Any, Any]] = load_object(protocol.code)
    return found
