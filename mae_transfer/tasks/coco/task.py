"""The COCO task: what the engine and the run record need of it (the contract of `engine/task.py`)."""

import importlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from torch import nn

from mae_transfer.data.fractions import left_out, titled
from mae_transfer.data.identity import combine, contents_digest, identify
from mae_transfer.data.overlap import note_overlap
from mae_transfer.data.paths import set_name
from mae_transfer.data.synthetic.coco import cached_coco
from mae_transfer.engine.task import BaseTask, Evaluation
from mae_transfer.errors import UserError
from mae_transfer.tasks.card import load_object
from mae_transfer.tasks.coco.annotations import CocoAnnotations, check_same_categories, check_same_kind
from mae_transfer.tasks.coco.blind import blind_ap
from mae_transfer.tasks.coco.card import BENCHMARK, CARDS, CATEGORY_IDS
from mae_transfer.tasks.coco.config import CocoConfig
from mae_transfer.tasks.coco.data import CocoEval, CocoPaths, CocoTrain, resolve_paths
from mae_transfer.tasks.coco.evaluate import evaluate
from mae_transfer.tasks.coco.files import check_files, note_copies
from mae_transfer.tasks.coco.pictures import draw_pictures
from mae_transfer.tasks.coco.protocols.protocol import Protocol

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.backbones.encoder import Encoder
    from mae_transfer.run_folder.pictures import Picture

SYNTHETIC = "synthetic"


class CocoTask(BaseTask):
    """Data, model and metric of COCO detection by one protocol; reads and checks both annotation files.

    Raises:
        UserError: anything wrong with the data set, before a run makes its first file.
    """

    config: CocoConfig
    train_dataset: CocoTrain

    @classmethod
    def make(
        cls, config: CocoConfig, protocol: "type[Protocol[CocoConfig]] | None" = None, like: BaseTask | None = None
    ) -> "CocoTask":
        return cls(config, protocol)

    def __init__(self, config: CocoConfig, protocol: "type[Protocol[CocoConfig]] | None" = None) -> None:
        super().__init__(config)
        self.protocol: Protocol[CocoConfig] = (protocol or _protocol_class(config))(config)
        if config.model.implementation == "detectron2":
            _check_detectron2()
        data = config.data
        self.is_synthetic = data.root == SYNTHETIC
        if self.is_synthetic:
            data = data.model_copy(update={"root": str(cached_coco())})
        self.trains, with_train = self.protocol.trains, self.protocol.needs_training_images
        paths = resolve_paths(data, train=with_train)
        val = CocoAnnotations(paths.val_json)
        train = CocoAnnotations(paths.train_json, scored=False) if with_train else val
        warnings = check_files(train, paths.train_images, data.on_bad_image) if with_train else []
        warnings += check_files(val, paths.val_images, data.on_bad_image)
        check_same_categories(train, val)
        self.num_classes, self.has_masks = len(train.names), train.has_masks
        self.warnings = (train.warnings if with_train else []) + val.warnings + warnings
        self.train_dataset = CocoTrain(train, paths.train_images, data, seed=config.seed, subset=config.subset)
        self.eval_dataset = CocoEval(val, paths.val_images, data, subset=config.subset, images=config.eval.images)
        if not val.num_objects[self.eval_dataset.indices].any():
            raise UserError(f"{paths.val_json}: no val image has an object that is no crowd; nothing to evaluate")
        self.warnings += check_same_kind(train, val)
        self.warnings += note_copies(self.train_dataset) if with_train else []
        self.warnings += note_copies(self.eval_dataset)
        if data.fraction is not None and with_train:
            self.warnings += left_out(train.names, self.train_dataset.classes_present(), data.fraction)
        sizes = (len(train) if with_train else BENCHMARK.train_images, len(val))
        self._summary = self._summarise(paths, sizes)
        if with_train:
            self.warnings += note_overlap(self._summary, self.train_dataset, self.eval_dataset)
        elif tuple(val.category_ids) != CATEGORY_IDS:
            order = f"{len(val.names)} classes in the order of their ids, {val.names[0]} to {val.names[-1]}"
            self.warnings.append(f"the detector's outputs are taken as {order}; no file says so")

    def _summarise(self, paths: CocoPaths, sizes: tuple[int, int]) -> dict[str, object]:
        """Name, fingerprints and image counts, for the run record. A part is an annotation file and the images that are
        used of it, whatever the fraction that is trained on, so that its draws share a fingerprint; the fingerprint of
        names is SHA-256 of both annotation files and the subset."""
        data = self.config.data
        few = () if data.fraction is None else (data.fraction, data.fraction_rule)
        parts = {}
        for split, dataset in (("train", self.train_dataset), ("val", self.eval_dataset)):
            names = (dataset.annotations.file_names[i] for i in dataset.whole.tolist())
            parts[split] = combine(dataset.annotations.sha256, identify(dataset.folder, names))
        about = " ".join(map(str, (self.config.subset, *few))).encode()
        val_images = len(self.eval_dataset)
        train_images = len(self.train_dataset.whole) if self.protocol.needs_training_images else 0
        whole = (BENCHMARK.train_images, BENCHMARK.val_images, BENCHMARK.classes)
        all_used = self.config.subset is None and val_images == sizes[1]
        if data.name is None and self.is_synthetic:
            name = "generated images"
        elif data.name is None and (*sizes, self.num_classes) == whole and all_used:
            name = BENCHMARK.title
        else:
            called = set_name(data, (data.train_json, data.train_images, data.val_json, data.val_images))
            name = f"{called} ({train_images} train, {val_images} val images)"
        return {
            "name": titled(name, data.fraction),
            "fingerprint": combine(parts, self.config.subset, *few),
            "whole_fingerprint": combine(parts, self.config.subset),
            "parts": parts,
            "names_fingerprint": contents_digest((paths.train_json, paths.val_json), about)[:16],
            "train_images": len(self.train_dataset) if self.protocol.needs_training_images else 0,
            "val_images": val_images,
            "subset": self.config.subset,
            "draw": data.draw,
        }

    @property
    def data_summary(self) -> dict[str, object]:
        skipped = self.train_dataset.skipped + self.eval_dataset.skipped
        return self._summary | {"skipped_files": sorted(skipped)}

    def with_classes(self, count: int) -> None:
        self.num_classes = count

    def encoder_options(self, patch_size: int) -> dict[str, object]:
        return self.protocol.encoder_options(patch_size)

    def build_encoder(self) -> "Encoder":
        from mae_transfer.backbones.configured import encoder_of

        return encoder_of(self.protocol.backbone(), self.encoder_options)

    def build_model(self, encoder: "Encoder") -> nn.Module:
        return self.protocol.build_model(encoder, self.num_classes, masks=self.has_masks)

    def check_batches(self, sizes: Collection[int]) -> None:
        if self.config.model.implementation == "detectron2":
            from mae_transfer.tasks.coco.detectron2.engine import check_loss_average

            check_loss_average(self.config, max(sizes))

    def sample_names(self, batch: Any) -> list[str]:
        self.train_dataset.report_skipped(batch)
        return [
            f"{name} (id {image_id})" for name, image_id in zip(batch["file_names"], batch["image_ids"], strict=True)
        ]

    def evaluate(self, model: nn.Module, fabric: "Fabric", progress: bool) -> Evaluation:
        if "blind" not in self._summary and fabric.global_rank == 0:
            self._summary["blind"] = blind_ap(self.eval_dataset.annotations, self.eval_dataset.image_ids)
        return Evaluation(*evaluate(model, self.eval_dataset, self.config, fabric, progress))

    def draw_pictures(self, model: nn.Module, fabric: "Fabric", evaluation: Evaluation) -> "list[Picture]":
        return draw_pictures(model, self.eval_dataset, self.config.eval.pictures, fabric)


def _protocol_class(config: CocoConfig) -> type[Protocol[CocoConfig]]:
    """The first one for a run that names none."""
    protocol = CARDS[0].protocol(getattr(config, "protocol", None))
    assert protocol is not None
    found: type[Protocol[CocoConfig]] = load_object(protocol.code)
    return found


def _check_detectron2() -> None:
    try:
        importlib.import_module("detectron2.modeling")
    except ImportError as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"--engine detectron2: the package cannot be imported ({reason}); install it by its own guide, "
            "https://detectron2.readthedocs.io/tutorials/install.html, or leave out --engine"
        ) from error
