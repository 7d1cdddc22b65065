"""End-to-end fine-tuning as in the MAE paper (Table 9) and its released code (main_finetune.py, models_vit.py).

The encoder's last block -> mean of the patch tokens -> a new LayerNorm (`fc_norm`) -> linear classifier; the
checkpoint's own final norm is not used. The position embedding is resampled once to the input's grid and trained.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar

from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.config import ClassifierConfig
from mae_transfer.tasks.classification.protocols.protocol import TRAINING, ProbeModel, Protocol

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class Classifier(ProbeModel):
    """Encoder, mean of its patch tokens, norm, linear classifier of K classes; one head.

    Training: {"loss_ce": mean cross-entropy}, after random erasing, mixup and cutmix on the device, from the global
    generators that the engine seeds for every micro-batch. Evaluation: scores float32 (1, B, K).
    """

    head_names = ("classifier",)

    def __init__(self, encoder: "Encoder", num_classes: int, config: ClassifierConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc_norm = nn.LayerNorm(encoder.embed_dim, eps=encoder.spec.eps or 1e-6)
        self.head = nn.Linear(encoder.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=config.head_std)
        nn.init.zeros_(self.head.bias)
        self.label_smoothing = config.label_smoothing
        self.erase, self.mix = make_erasing(config), make_mixup(config, num_classes)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor] | Tensor:
        images = self.encoder.normalise(batch["images"])
        if not self.training:
            return self.logits(images).float()[None]
        targets: Tensor = batch["labels"]
        if self.erase is not None:
            self.erase.device = images.device
            images = self.erase(images)
        if self.mix is not None:  # its soft targets hold the label smoothing
            images, targets = self.mix(images, targets)
            return {"loss_ce": F.cross_entropy(self.logits(images).float(), targets)}
        return {"loss_ce": F.cross_entropy(self.logits(images).float(), targets, label_smoothing=self.label_smoothing)}

    def logits(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, K)."""
        tokens = self.encoder(images)[-1]
        return self.head(self.fc_norm(tokens.mean((2, 3))))


def make_erasing(config: ClassifierConfig) -> RandomErasing | None:
    """timm's, on normalised batches, one rectangle of noise; the device is set at each call."""
    if not config.erasing:
        return None
    return RandomErasing(config.erasing, mode="pixel", max_count=1, num_splits=0)


def make_mixup(config: ClassifierConfig, num_classes: int) -> Mixup | None:
    """timm's, with its defaults beside the alphas: always, half of the batches each, one ratio for a micro-batch."""
    if not config.mixup and not config.cutmix:
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=1.0,
        switch_prob=0.5,
        mode="batch",
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )


def check_pairs(sizes: Collection[int], config: ClassifierConfig, micro_batch: int) -> None:
    """UserError if one of these numbers of images in a micro-batch cannot be mixed in pairs."""
    odd = [size for size in sizes if size % 2]
    if (config.mixup or config.cutmix) and odd:
        raise UserError(
            f"mixup and cutmix mix images in pairs and train.micro_batch={micro_batch} makes a batch of {odd[0]}; "
            "choose an even train.micro_batch that leaves no odd rest of a device's images, or model.mixup=0 "
            "model.cutmix=0"
        )


class Finetune(Protocol[Classifier]):
    shards = True
    reads: ClassVar[tuple[str, ...]] = (
        *(*TRAINING, "optim.layer_decay", "backbone.drop_path"),
        *("model.head_std", "model.label_smoothing", "model.mixup", "model.cutmix", "model.erasing"),
    )

    @override
    def encoder_options(self) -> dict[str, object]:
        return super().encoder_options() | {"pos_embed": "resized"}

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> Classifier:
        return Classifier(encoder, num_classes, self.config.model)

    @override
    def check_batches(self, sizes: Collection[int]) -> None:
        check_pairs(sizes, self.config.model, self.config.train.micro_batch_size)
