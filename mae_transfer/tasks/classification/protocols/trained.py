"""A classifier that was trained elsewhere, evaluated as it is: encoder, final norm, pooling and layers of its file.

Nothing is trained and no training image is read. `model.classifier` names a linear classifier in a file of its own
(DINO, DINOv2). Image size, crop and interpolation are those that the source states (`trained/stated.py`).
"""

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from typing_extensions import override

from mae_transfer.backbones.checkpoints.report import fingerprint
from mae_transfer.backbones.configured import encoder_of
from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.data import Batch
from mae_transfer.tasks.classification.pictures import draw_grid, predict
from mae_transfer.tasks.classification.protocols.protocol import ProbeModel, Protocol
from mae_transfer.tasks.classification.trained.class_order import ClassOrder, match_classes, own_order
from mae_transfer.tasks.classification.trained.config import TrainedConfig
from mae_transfer.tasks.classification.trained.heads import Layer, TrainedHead, head_beside, head_of_file
from mae_transfer.tasks.classification.trained.stated import stated_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_fabric import Fabric

    from mae_transfer.backbones.encoder import Encoder
    from mae_transfer.run_folder.pictures import Picture
    from mae_transfer.tasks.classification.splits import ImageSplits

_LOG = logging.getLogger(__name__)
EPS = 1e-6
"""Of the BatchNorm in MAE's linear probe (facebookresearch/mae main_linprobe.py)."""


class TrainedClassifier(ProbeModel):
    """Evaluation only: {"images": uint8 (B, 3, H, W)} -> scores float32 (1, B, K), the data set's classes first."""

    head_names = ("classifier",)
    outputs: Tensor

    def __init__(self, encoder: "Encoder", head: TrainedHead, order: ClassOrder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head, self.order = head, order
        self.layers = nn.ModuleList(_linear(layer, head.statistics) for layer in head.layers)
        self.register_buffer("outputs", torch.tensor(order.outputs), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        logits = self.logits(self.encoder.normalise(batch["images"])).float()
        return logits[None][..., self.outputs]

    def logits(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> scores (B, K) in the file's own order."""
        encoder, head = self.encoder, self.head
        norm = encoder.norm or nn.Identity()
        before, after = (nn.Identity(), norm) if head.norm_after else (norm, nn.Identity())
        blocks = tuple(range(encoder.depth - head.blocks, encoder.depth))
        tokens = [before(x) for x in encoder.tokens(images, blocks)]
        scores = [
            module(after(self._pooled(tokens, layer))) for module, layer in zip(self.layers, head.layers, strict=True)
        ]
        return torch.stack(scores).mean(0)

    def _pooled(self, tokens: list[Tensor], layer: Layer) -> Tensor:
        last, prefix = tokens[-1], self.encoder.prefix
        if layer.pooling == "mean":
            return last[:, prefix:].mean(1)
        if layer.pooling == "distillation":
            return last[:, 1]
        classes = torch.cat([x[:, 0] for x in tokens], dim=1)
        if layer.pooling == "token":
            return classes
        mean = last[:, prefix:].mean(1)
        if layer.pooling == "token+mean":
            return torch.cat([classes, mean], dim=1)
        return torch.stack([classes, mean], dim=2).flatten(1)


def _linear(layer: Layer, statistics: tuple[Tensor, Tensor] | None) -> nn.Module:
    linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
    linear.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    if statistics is None:
        return linear
    norm = nn.BatchNorm1d(linear.in_features, affine=False, eps=EPS)
    norm.load_state_dict(
        {"running_mean": statistics[0], "running_var": statistics[1], "num_batches_tracked": torch.tensor(0)}
    )
    return nn.Sequential(norm, linear)


class Trained(Protocol[TrainedClassifier]):
    trains = False
    needs_training_images = False

    @override
    def encoder_options(self) -> dict[str, object]:
        return super().encoder_options() | {"final_norm": True, "beside": True}

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> TrainedClassifier:
        assert isinstance(self.config, TrainedConfig)
        report, backbone = encoder.load_report, self.config.backbone
        if encoder.spec.stages or encoder.spec.origin is not None:
            raise UserError(f"backbone {encoder.name}: trained classifiers are read of plain ViTs only")
        if report.fingerprint is None:
            raise UserError(
                f"backbone {encoder.name} with random weights: there is no classifier to evaluate; pass --checkpoint"
            )
        separate = self.config.model.classifier
        head = head_of_file(separate, encoder) if separate is not None else head_beside(encoder)
        labels = stated_labels(backbone.checkpoint)
        order = match_classes(self.class_names, head.classes, labels) if self.class_names else own_order(head.classes)
        report.loaded += head.used
        report.ignored = {key: why for key, why in report.ignored.items() if key not in head.used}
        reads = " and ".join(dict.fromkeys(layer.pooling for layer in head.layers))
        report.settled += [f"classifier of {head.classes} classes on: {reads}", f"class order: {order.about}"]
        weights = {f"{layer.name}.{part}": getattr(layer, part) for layer in head.layers for part in ("weight", "bias")}
        report.fingerprint = fingerprint({f"encoder {report.fingerprint}": torch.empty(0), **weights})
        return TrainedClassifier(encoder, head, order)

    @override
    def draw_pictures(
        self,
        model: TrainedClassifier,
        head: int,
        images: "ImageSplits",
        class_names: "Sequence[str]",
        fabric: "Fabric",
    ) -> "list[Picture]":
        names = model.order.names
        return draw_grid(predict(model, head, images.val, names, self.config.eval.pictures, fabric))


def load(config: TrainedConfig) -> TrainedClassifier:
    """The model of the file that the configuration names, without data: its classes are in the file's own order."""
    protocol = Trained(config)
    return protocol.build_model(encoder_of(config.backbone, lambda _: protocol.encoder_options()), 0)
