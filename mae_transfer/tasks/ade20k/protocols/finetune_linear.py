"""Fine-tuning of the whole encoder under one linear layer, as in benchmark-vfm-ss (arXiv 2404.12172).

Patch tokens of the last block -> the weights' final norm -> linear layer -> bilinear upsampling. The encoder learns at
a share of the head's rate (tue-mps/benchmark-vfm-ss models/linear_decoder.py, training/linear_semantic.py). The loss is
the mean over an image's labelled pixels, as there in batches of one image, then over images: the same however a batch
is split.
"""

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from mae_transfer.tasks.ade20k.data import Ade20kEval, Ade20kTrain, Splits
from mae_transfer.tasks.ade20k.inference import Predictor
from mae_transfer.tasks.ade20k.pairs import Pairs
from mae_transfer.tasks.ade20k.patch_tokens import padded_size, patch_maps
from mae_transfer.tasks.ade20k.protocols.config import FinetuneLinearConfig
from mae_transfer.tasks.ade20k.protocols.protocol import TRAINING, Protocol
from mae_transfer.tasks.ade20k.segmentor import Segmentor
from mae_transfer.tasks.ade20k.transforms import IGNORE

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class TunedLinear(Segmentor):
    """An encoder that is trained, and a linear classifier of each patch with PyTorch's initialisation, as there."""

    def __init__(self, encoder: "Encoder", num_classes: int, config: FinetuneLinearConfig) -> None:
        side = config.data.image_size
        super().__init__(encoder, side, Predictor(num_classes, side, encoder.patch_size, config.eval))
        encoder.lr_scale = config.model.encoder_lr
        self.classifier = nn.Conv2d(encoder.embed_dim, num_classes, kernel_size=1)

    @override
    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss_seg": labelled_loss(self.patch_logits(images), targets)}

    @override
    def patch_logits(self, images: Tensor) -> Tensor:
        (tokens,) = patch_maps(self.encoder, images, (self.encoder.depth - 1,))
        logits: Tensor = self.classifier(tokens)
        return logits


def labelled_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K, h, w) upsampled to labels int64 (B, H, W): over labelled pixels, then images.

    An image without labels gives 0.
    """
    logits = F.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear", align_corners=False)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").sum((1, 2))
    return (losses / (labels != IGNORE).sum((1, 2)).clamp(min=1)).mean()


class FinetuneLinear(Protocol[FinetuneLinearConfig, TunedLinear]):
    reads: ClassVar[tuple[str, ...]] = (*TRAINING, "backbone.drop_path", "model.encoder_lr", "model.final_norm")

    @override
    def datasets(self, train: Pairs, val: Pairs) -> Splits:
        config, fit = self.config, self.config.data.fit_side
        data = config.data.model_copy(update={"short_side": fit, "long_side": fit})
        return Splits(
            Ade20kTrain(train, data, seed=config.seed, subset=config.subset),
            Ade20kEval(val, config, subset=config.subset),
        )

    @override
    def encoder_options(self, patch_size: int) -> dict[str, object]:
        side = self.config.data.image_size
        size = padded_size(side, side, patch_size)
        return {"img_size": size, "pos_embed": "resized", "final_norm": self.config.model.final_norm}

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> TunedLinear:
        return TunedLinear(encoder, num_classes, self.config)
