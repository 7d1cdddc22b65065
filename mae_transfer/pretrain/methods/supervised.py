"""Supervised training from scratch by the MAE paper's own recipe (Table 11): the supervised rows of its Tables 3 to 5.

No code was published. An author's word (facebookresearch/mae#28): the fine-tuning code without a checkpoint, plus an
average of the weights. So the classifier is fine-tuning's: mean of the patch tokens, norm, linear; all positions are
learned, and the weights begin as timm's.
"""

from collections.abc import Collection
from typing import Any, cast

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as vision

from mae_transfer.backbones.registry import IMAGENET_MEAN
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.data.augment import make_randaugment, seeded_globals
from mae_transfer.errors import UserError
from mae_transfer.pretrain.config import SupervisedConfig
from mae_transfer.pretrain.encoder import new_encoder
from mae_transfer.pretrain.methods.method import Method
from mae_transfer.pretrain.views import Views
from mae_transfer.tasks.classification.protocols.finetune import Classifier, check_pairs


class SupervisedViews(Views):
    """RandAugment after crop and flip."""

    def __init__(self, config: SupervisedConfig) -> None:
        super().__init__(config)
        policy, mean = config.data.randaugment, config.data.mean or IMAGENET_MEAN
        self.augment = None if policy is None else make_randaugment(policy, min(self.size), mean)

    def train(self, image: Tensor, rng: np.random.Generator) -> dict[str, Any]:
        sample = super().train(image, rng)
        if self.augment is not None:
            with seeded_globals(int(rng.integers(2**32))):
                sample["image"] = vision.pil_to_tensor(self.augment(vision.to_pil_image(sample["image"])))
        return sample


class Supervised(Classifier):
    """Fine-tuning's classifier. In eval mode {"loss", "top1", "top5"}, each (B,), the accuracies in percent."""

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        if self.training:
            return cast(dict[str, Tensor], super().forward(batch))
        logits = self.logits(self.encoder.normalise(batch["images"])).float()
        labels = batch["labels"]
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        return {
            "loss": F.cross_entropy(logits, labels, reduction="none"),
            "top1": 100 * best[:, 0].float(),
            "top5": 100 * best.any(1).float(),
        }


class SupervisedMethod(Method[SupervisedConfig, Supervised]):
    rotary = True

    def title(self) -> str:
        return "supervised (this project)"

    def make_views(self) -> SupervisedViews:
        return SupervisedViews(self.config)

    def build_encoder(self) -> ViTEncoder:
        return new_encoder(self.spec(), self.config, final_norm=False)  # the classifier has its own

    def check_batches(self, sizes: Collection[int]) -> None:
        check_pairs(sizes, self.config.model, self.config.train.micro_batch_size)

    def build_model(self, encoder: ViTEncoder, num_classes: int | None) -> Supervised:
        if num_classes is None:
            raise UserError(
                "--method supervised needs labels: class folders of the same names in train/ and val/, or shards with "
                ".cls"
            )
        model = Supervised(encoder, num_classes, self.config.model)
        if encoder.vit.cls_token is not None:
            nn.init.trunc_normal_(encoder.vit.cls_token, std=0.02)  # as timm 0.3.2, which MAE's code is built on
        return model
