"""The ADE20K task: what the engine and the run record need of it (the contract of `engine/task.py`)."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from torch import nn

from mae_transfer.data.identity import combine
from mae_transfer.data.overlap import note_overlap
from mae_transfer.data.synthetic.ade20k import cached_ade20k
from mae_transfer.engine.task import BaseTask, Evaluation
from mae_transfer.tasks.ade20k.card import BENCHMARK
from mae_transfer.tasks.ade20k.config import Ade20kConfig
from mae_transfer.tasks.ade20k.data import Ade20kEval, Ade20kTrain
from mae_transfer.tasks.ade20k.evaluate import evaluate_each
from mae_transfer.tasks.ade20k.labels import class_names
from mae_transfer.tasks.ade20k.model import build_upernet, check_crop, check_norm_batch
from mae_transfer.tasks.ade20k.pairs import Pairs, find_pairs
from mae_transfer.tasks.ade20k.pictures import draw_pictures
from mae_transfer.tasks.ade20k.values import check_values

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.backbones.encoder import Encoder
    from mae_transfer.run_folder.pictures import Picture

SYNTHETIC = "synthetic"


class Ade20kTask(BaseTask):
    """Data, model and metric of semantic segmentation; finds and checks all pairs of both splits.

    Raises:
        UserError: anything wrong with the data set or the batch, before a run makes its first file.
    """

    config: Ade20kConfig
    train_dataset: Ade20kTrain

    def __init__(self, config: Ade20kConfig) -> None:
        super().__init__(config)
        data = config.data
        self.is_synthetic = data.root == SYNTHETIC
        if self.is_synthetic:
            data = data.model_copy(update={"root": str(cached_ade20k())})
        self.class_names = class_names(data)
        train, val = find_pairs(data, "train"), find_pairs(data, "val")
        self.warnings = train.warnings + val.warnings
        self.train_dataset = Ade20kTrain(train, data, seed=config.seed, subset=config.subset)
        self.eval_dataset = Ade20kEval(val, config.model_copy(update={"data": data}), subset=config.subset)
        self.warnings += check_values((self.train_dataset, self.eval_dataset))
        self._summary = self._summarise(train, val)
        self.warnings += note_overlap(self._summary, self.train_dataset, self.eval_dataset)

    @property
    def data_summary(self) -> dict[str, Any]:
        """What the run record holds of the data; complete once training and evaluation are done."""
        skipped = self.train_dataset.skipped + self.eval_dataset.skipped
        return self._summary | {"skipped_files": sorted(skipped)}

    def _summarise(self, train: Pairs, val: Pairs) -> dict[str, Any]:
        """Name, fingerprints and counts, for the run record. A part is the images and masks that are used of a split;
        the fingerprint of names is of the names and sizes of all files, the classes and the subset."""
        by_name = (train.names_fingerprint, val.names_fingerprint, self.class_names, self.config.subset)
        parts = {
            "train": combine(train.identity(self.train_dataset.indices), self.class_names),
            "val": combine(val.identity(self.eval_dataset.indices), self.class_names),
        }
        train_images, val_images = len(self.train_dataset), len(self.eval_dataset)
        if self.is_synthetic:
            name = "generated images"
        elif self.config.subset is None and (len(train), len(val), len(self.class_names)) == (
            BENCHMARK.train_images,
            BENCHMARK.val_images,
            BENCHMARK.classes,
        ):
            name = BENCHMARK.title
        else:
            name = f"{len(self.class_names)} classes ({train_images} train, {val_images} val images)"
        return {
            "name": name,
            "fingerprint": combine(parts, self.config.subset),
            "parts": parts,
            "names_fingerprint": combine(*by_name),
            "train_images": train_images,
            "val_images": val_images,
            "subset": self.config.subset,
        }

    def check_batches(self, sizes: Collection[int]) -> None:
        check_norm_batch(min(sizes))

    def encoder_options(self, patch_size: int) -> dict[str, Any]:
        side, model = self.config.data.image_size, self.config.model
        check_crop(side, patch_size, self.config.backbone.name)
        return {"img_size": side, "taps": model.taps, "pos_embed": model.pos_embed, "layer_scale": model.layer_scale}

    def build_model(self, encoder: "Encoder") -> nn.Module:
        return build_upernet(encoder, len(self.class_names), self.config)

    def sample_names(self, batch: Any) -> list[str]:
        self.train_dataset.report_skipped(batch)
        names: list[str] = batch["file_names"]
        return names

    def evaluate(self, model: nn.Module, fabric: "Fabric", progress: bool) -> Evaluation:
        names, config = self.class_names, self.config
        return Evaluation(*evaluate_each(model, self.eval_dataset, names, config, fabric, progress))

    def draw_pictures(self, model: nn.Module, fabric: "Fabric", evaluation: Evaluation) -> "list[Picture]":
        return draw_pictures(model, self.eval_dataset, self.class_names, self.config.eval.pictures, fabric)
