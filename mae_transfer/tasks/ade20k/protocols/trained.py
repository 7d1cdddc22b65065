"""A segmentation model that was trained elsewhere, evaluated: a UperNet, or a linear head (`trained_linear.py`).

UperNets are mmsegmentation's, BEiT's, transformers' and those of here. Every tensor of the file has to fit the model,
and every tensor of the model is in the file. LayerScale, tables of relative positions, LayerNorm eps and the images'
mean and std are the file's. Nothing is trained and no training image is read.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from typing_extensions import override

from mae_transfer.backbones.checkpoints.exact import load_exactly
from mae_transfer.backbones.checkpoints.report import fingerprint
from mae_transfer.backbones.configured import encoder_of, in_run
from mae_transfer.backbones.positions.tables import TABLE
from mae_transfer.config.sections import BackboneConfig
from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.labels import class_names
from mae_transfer.tasks.ade20k.protocols.config import TrainedConfig
from mae_transfer.tasks.ade20k.protocols.protocol import Protocol
from mae_transfer.tasks.ade20k.protocols.trained_linear import TrainedLinear
from mae_transfer.tasks.ade20k.protocols.upernet import UperNet, Upernet, build_upernet
from mae_transfer.tasks.ade20k.segmentor import Segmentor
from mae_transfer.tasks.ade20k.trained.class_names import check_classes
from mae_transfer.tasks.ade20k.trained.facts import take_facts
from mae_transfer.tasks.ade20k.trained.read import OWN, read

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class _TrainedUperNet(Upernet):
    def __init__(self, config: TrainedConfig) -> None:
        checkpoint = config.backbone.checkpoint
        if checkpoint is None:
            raise UserError("the protocol trained evaluates a segmentation model's file; pass it as --checkpoint")
        self._file = read(checkpoint, config.backbone.checkpoint_key)
        scaled = any(name.endswith(".ls1.gamma") for name in self._file.state)
        model = config.model.model_copy(update={"layer_scale": 1.0 if scaled else None})
        super().__init__(config.model_copy(update={"model": model}))

    @override
    def backbone(self) -> BackboneConfig:
        """Built without weights: the file of the model brings those of the encoder too. A run's file builds it as the
        run had it: its positions, statistics and eps."""
        tables = any(name.endswith(TABLE) for name in self._file.state)
        backbone = self.config.backbone.model_copy(update={"rel_pos": "per_block" if tables else False})
        if self._file.layout == OWN:
            return in_run(backbone)
        return backbone.model_copy(update={"checkpoint": None, "weights": "random"})

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> UperNet:
        names = class_names(self.config.data)
        return self._build(encoder, num_classes, names, self._file.labels)

    def _build(
        self, encoder: "Encoder", num_classes: int, names: Sequence[str], labels: Sequence[str] | None
    ) -> UperNet:
        file, report = self._file, encoder.load_report
        order = check_classes(names, labels, file.source)
        take_facts(encoder, file.facts)
        model = build_upernet(encoder, num_classes, self.config)
        what = f"the UperNet of {encoder.name} and recipe {self.config.recipe} of {num_classes} classes"
        load_exactly(model, file.state, file.source, what)
        report.source, report.layout = file.source, file.layout
        report.loaded, report.ignored, report.new = sorted(file.state), file.ignored, {}
        report.resized = {}
        report.fingerprint = fingerprint(file.state)
        report.settled += [f"class order: {order}"]
        return model

    def _without_data(self) -> UperNet:
        scores = self._file.state.get("decode_head.conv_seg.bias")
        classes = self.config.data.num_classes if scores is None else len(scores)
        encoder = encoder_of(self.backbone(), self.encoder_options)
        return self._build(encoder, classes, [str(number) for number in range(classes)], None)


class Trained(Protocol[TrainedConfig, Segmentor]):
    """Of a UperNet, or of a linear head where the recipe has `model.layers`."""

    trains = False
    needs_training_images = False

    def __init__(self, config: TrainedConfig) -> None:
        super().__init__(config)
        self._kind = _kind_of(config)

    @override
    def backbone(self) -> BackboneConfig:
        return self._kind.backbone()

    @override
    def encoder_options(self, patch_size: int) -> dict[str, object]:
        return self._kind.encoder_options(patch_size)

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> Segmentor:
        return self._kind.build_model(encoder, num_classes)


def load(config: TrainedConfig) -> Segmentor:
    """The model of the file that the configuration names, without data: with as many classes as the file has."""
    return _kind_of(config)._without_data()


def _kind_of(config: TrainedConfig) -> "_TrainedUperNet | TrainedLinear":
    return _TrainedUperNet(config) if config.model.layers is None else TrainedLinear(config)
