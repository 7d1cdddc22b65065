"""Weighted nearest neighbours of frozen features, as in DINO and DINOv2 (facebookresearch/dinov2 dinov2/eval/knn.py).

Features (class token after the final norm, or `probe.pooling`) are scaled to length one; each of the k training images
of the highest cosine similarity votes for its class with weight exp(similarity / temperature). Each k is a head. The
one that counts is chosen on the images set aside from the training set (`data.holdout`), not on the test set; these
stay among the neighbours, of others but not of themselves, so the test sees every training image.
"""

import logging
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.data import Batch
from mae_transfer.tasks.classification.features.store import FrozenFeatures, store_features

if TYPE_CHECKING:
    from mae_transfer.backbones.vit import ViTEncoder
    from mae_transfer.run_folder.folder import RunFolder
    from mae_transfer.tasks.classification.task import ClassificationTask

TRAINS = False
_LOG = logging.getLogger(__name__)


class NearestNeighbours(nn.Module):
    """Frozen encoder and the features of the training images, which `remember` puts there.

    Evaluation only: scores float32 (number of ks, B, K), the share of the votes; classes without any come after
    those with one, in their own order, so that five classes always fill the top five. A batch
    with "in_bank" int64 (B,) holds images of the bank, at these rows: none is a neighbour of its own. Similarities are
    float32 in any precision: those of MAE's features lie closer together than half precision can tell apart.
    """

    bank: Tensor
    labels: Tensor

    def __init__(self, encoder: "ViTEncoder", num_classes: int, config: ClassificationConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_classes, self.temperature = num_classes, config.probe.temperature
        self.pooling = config.probe.pooling[0]
        self.frozen = FrozenFeatures(encoder, 1, (self.pooling,))
        self.ks = tuple(sorted(config.probe.k))
        self.register_buffer("bank", torch.empty(0), persistent=False)
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64), persistent=False)

    @property
    def head_names(self) -> tuple[str, ...]:
        return tuple(f"k{k}" for k in self.ks)

    def remember(self, features: Tensor, labels: Tensor, batch: int = 8192) -> None:
        """Take the training images' features (n, 1, parts, C) and labels (n,), on the model's device from now on."""
        device = next(self.encoder.parameters()).device
        parts = [self._unit(part.to(device).float()) for part in features.split(batch)]
        self.bank, self.labels = torch.cat(parts), labels.to(device)

    def _unit(self, features: Tensor) -> Tensor:
        return F.normalize(self.frozen.select(features, 1, self.pooling), dim=1)

    def nearest(self, batch: Batch, k: int) -> "torch.return_types.topk":
        """The highest cosine similarities (B, k) of each image to the bank, at most all, and their rows there."""
        features = self.frozen(batch)
        with torch.autocast(features.device.type, enabled=False):
            similarity = self._unit(features) @ self.bank.T
        if "in_bank" in batch:
            similarity.scatter_(1, batch["in_bank"][:, None], -torch.inf)
        return similarity.topk(min(k, len(self.bank)), dim=1)

    def forward(self, batch: Batch) -> Tensor:
        nearest = self.nearest(batch, self.ks[-1])
        # less the highest, as in a softmax: the shares stay the same and nothing overflows
        weights = ((nearest.values - nearest.values[:, :1]) / self.temperature).exp()
        classes = self.labels[nearest.indices]
        none = torch.zeros(len(classes), self.num_classes, device=weights.device)
        votes = torch.stack([none.scatter_add(1, classes[:, :k], weights[:, :k]) for k in self.ks])
        last = -1 - torch.arange(self.num_classes, device=votes.device) / self.num_classes
        return torch.where(votes > 0, votes / votes.sum(-1, keepdim=True), last)


def encoder_options(config: ClassificationConfig) -> dict[str, Any]:
    return {"img_size": config.data.image_size, "final_norm": config.probe.final_norm}


def build_model(encoder: "ViTEncoder", num_classes: int, config: ClassificationConfig) -> NearestNeighbours:
    if len(config.probe.pooling) > 1:
        raise UserError(f"probe.pooling={list(config.probe.pooling)}: knn reads one kind of feature; name one")
    if len(config.probe.k) > 1 and not config.data.holdout:
        raise UserError("several k need images to choose by: set data.holdout, for example to 0.1, or probe.k=[20]")
    return NearestNeighbours(encoder, num_classes, config)


def prepare(
    task: "ClassificationTask", model: NearestNeighbours, fabric: Fabric, folder: "RunFolder | None", progress: bool
) -> None:
    stored = store_features(task, model.frozen, fabric, folder, progress, splits=("train", "holdout"))
    features, labels = zip(*(split.whole() for split in stored.values()), strict=True)
    model.remember(torch.cat(features), torch.cat(labels))
    most = len(model.bank)
    if "holdout" in stored:
        stored["holdout"].in_bank = len(features[0])
        most -= 1  # one that was set aside is no neighbour of its own
    ks = tuple(k for k in model.ks if k <= most)
    if not ks:
        raise UserError(f"probe.k={list(model.ks)}: there are {most} training images to be neighbours; set a smaller k")
    if ks != model.ks:
        _LOG.warning("probe.k: only %s of %s; there are %d training images", list(ks), list(model.ks), most)
        model.ks = ks
