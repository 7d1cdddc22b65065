"""A linear head that was trained elsewhere on a frozen encoder, evaluated as it is: DINOv2's and DINOv3's.

The encoder is the file of `--checkpoint`, the head that of `model.classifier`. The model is the protocol linear's:
normed patch tokens of one block, or of four side by side, a batch norm with its running statistics, a 1x1 convolution,
bilinear upsampling. Images are normalised by ImageNet's mean and std, as both sources have it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from typing_extensions import override

from mae_transfer.backbones.checkpoints.audit import refusal
from mae_transfer.backbones.checkpoints.exact import load_exactly
from mae_transfer.backbones.checkpoints.report import fingerprint
from mae_transfer.backbones.configured import encoder_of
from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.labels import class_names
from mae_transfer.tasks.ade20k.patch_tokens import padded_size
from mae_transfer.tasks.ade20k.protocols.config import TrainedConfig
from mae_transfer.tasks.ade20k.protocols.linear import LinearSegmentor
from mae_transfer.tasks.ade20k.protocols.protocol import Protocol
from mae_transfer.tasks.ade20k.trained.class_names import check_classes
from mae_transfer.tasks.ade20k.trained.facts import OF_IMAGENET, take_facts
from mae_transfer.tasks.ade20k.trained.linear_head import read_head

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class TrainedLinear(Protocol[TrainedConfig, LinearSegmentor]):
    trains = False
    needs_training_images = False

    def __init__(self, config: TrainedConfig) -> None:
        super().__init__(config)
        if config.model.classifier is None:
            raise UserError(
                f"recipe {config.recipe} evaluates a linear head in a file of its own; pass model.classifier=FILE, "
                "with its encoder as --checkpoint"
            )
        self._head = read_head(config.model.classifier)

    @override
    def encoder_options(self, patch_size: int) -> dict[str, object]:
        side = self.config.data.image_size
        return {"img_size": padded_size(side, side, patch_size), "final_norm": True}

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> LinearSegmentor:
        return self._build(encoder, class_names(self.config.data), self._head.labels)

    def _build(self, encoder: "Encoder", names: Sequence[str], labels: Sequence[str] | None) -> LinearSegmentor:
        head, report, layers = self._head, encoder.load_report, self.config.model.layers
        classes = len(head.classifier)
        if report.fingerprint is None:
            raise UserError(f"backbone {encoder.name} with random weights: pass the head's encoder as --checkpoint")
        assert layers is not None, "what makes the model a linear head"
        if classes != len(names):
            raise refusal(
                head.source,
                f"has {classes} classes, and the data have {len(names)}; set data.num_classes and "
                "data.class_names to those that it was trained on.",
            )
        order = check_classes(names, labels, head.source)
        take_facts(encoder, OF_IMAGENET)
        model = LinearSegmentor(encoder, classes, self.config, layers)
        parts = nn.ModuleDict({"norm": model.norm, "classifier": model.classifier})
        blocks = f"{len(model.tokens.blocks)} block{'s' * (len(model.tokens.blocks) > 1)}"
        load_exactly(parts, head.state, head.source, f"{encoder.name}, of which {blocks} are read")
        report.loaded = [*report.loaded, *(f"{head.author}'s head: {name}" for name in head.state)]
        report.ignored = report.ignored | {f"{head.author}'s head: {name}": why for name, why in head.ignored.items()}
        at = ", ".join(map(str, model.tokens.blocks))
        report.settled += [f"linear head of {head.author} on block{'s' * (len(model.tokens.blocks) > 1)} {at}"]
        report.settled += [f"class order: {order}"]
        report.fingerprint = fingerprint({f"encoder {report.fingerprint}": torch.empty(0), **head.state})
        return model

    def _without_data(self) -> LinearSegmentor:
        encoder = encoder_of(self.backbone(), self.encoder_options)
        return self._build(encoder, [str(number) for number in range(len(self._head.classifier))], None)
