"""A UperNet that was trained elsewhere, evaluated as it is: mmsegmentation's, BEiT's, transformers', and those of here.

Every tensor of the file has to fit the model, and every tensor of the model is in the file. LayerScale, tables of
relative positions, LayerNorm eps and the images' mean and std are the file's. Nothing is trained and no training image
is read.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from typing_extensions import override

from mae_transfer.backbones.checkpoints.exact import load_exactly
from mae_transfer.backbones.checkpoints.report import fingerprint
from mae_transfer.backbones.configured import encoder_of
from mae_transfer.backbones.positions.tables import TABLE
from mae_transfer.config.sections import BackboneConfig
from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.labels import class_names
from mae_transfer.tasks.ade20k.protocols.config import TrainedConfig
from mae_transfer.tasks.ade20k.protocols.upernet import UperNet, Upernet, build_upernet
from mae_transfer.tasks.ade20k.trained.class_names import check_classes
from mae_transfer.tasks.ade20k.trained.read import Facts, read

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class Trained(Upernet):
    trains = False
    needs_training_images = False
    reads: ClassVar[tuple[str, ...]] = ()

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
        """Built without weights: the file of the model brings those of the encoder too."""
        tables = any(name.endswith(TABLE) for name in self._file.state)
        options = {"checkpoint": None, "weights": "random", "rel_pos": "per_block" if tables else False}
        return self.config.backbone.model_copy(update=options)

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> UperNet:
        names = class_names(self.config.data)
        return self._build(encoder, num_classes, names, self._file.labels)

    def _build(
        self, encoder: "Encoder", num_classes: int, names: Sequence[str], labels: Sequence[str] | None
    ) -> UperNet:
        file, report = self._file, encoder.load_report
        order = check_classes(names, labels, file.source)
        _take_facts(encoder, file.facts)
        model = build_upernet(encoder, num_classes, self.config)
        what = f"the UperNet of {encoder.name} and recipe {self.config.recipe} of {num_classes} classes"
        load_exactly(model, file.state, file.source, what)
        report.source, report.layout = file.source, file.layout
        report.loaded, report.ignored, report.new = sorted(file.state), file.ignored, {}
        report.resized = {}
        report.fingerprint = fingerprint(file.state)
        report.settled += [f"class order: {order}"]
        return model


def load(config: TrainedConfig) -> UperNet:
    """The model of the file that the configuration names, without data: with as many classes as the file has."""
    protocol = Trained(config)
    scores = protocol._file.state.get("decode_head.conv_seg.bias")
    classes = config.data.num_classes if scores is None else len(scores)
    encoder = encoder_of(protocol.backbone(), protocol.encoder_options)
    return protocol._build(encoder, classes, [str(number) for number in range(classes)], None)


def _take_facts(encoder: "Encoder", facts: Facts) -> None:
    """Mean and std of the images and eps of the blocks' norms, as the file or its source has them."""
    known = {name: value for name, value in facts.items() if name in ("mean", "std", "eps")}
    changed = {name: value for name, value in known.items() if getattr(encoder.spec, name) != value}
    encoder.spec = dataclasses.replace(encoder.spec, **changed)
    encoder.mean, encoder.std = encoder.spec.mean, encoder.spec.std
    for buffer, values in ((encoder.pixel_mean, encoder.mean), (encoder.pixel_std, encoder.std)):
        buffer.copy_(torch.tensor([255 * value for value in values]).view(-1, 1, 1))
    for norm in (module for module in encoder.modules() if isinstance(module, nn.LayerNorm)):
        norm.eps = changed.get("eps", norm.eps)
    encoder.load_report.settled += [f"{name} {value}" for name, value in changed.items()]
