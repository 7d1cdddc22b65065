"""An online probe: weighted nearest neighbours of the class token while the encoder is being trained.

As facebookresearch/dino `eval_knn.py`, on centre crops: features of unit length, each of the k nearest training images
votes with exp(similarity / temperature). For a number to report, run the protocol knn on the checkpoint instead.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_transfer.engine.distributed import all_reduce, gather_objects
from mae_transfer.engine.evaluation import evaluating
from mae_transfer.pretrain.config import PretrainConfig
from mae_transfer.pretrain.data import PretrainImages
from mae_transfer.pretrain.evaluate import evaluation_batches

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def knn_accuracy(
    model: nn.Module,
    train: PretrainImages,
    val: PretrainImages,
    num_classes: int,
    config: PretrainConfig,
    fabric: "Fabric",
    progress: bool,
) -> float:
    """Top-1 in percent of the val images among the training images; the same on every rank.

    `model.encoder` is the encoder; `config.eval` says how many neighbours vote, and among how many images.
    """
    options = config.eval
    assert options.knn is not None
    bank_set = PretrainImages(train.source, _bank(train, options.knn_images), train.views, config.data, seed=0)
    with evaluating(model):
        parts = [_features(model.encoder, dataset, config, fabric, progress) for dataset in (bank_set, val)]
    gathered = gather_objects(fabric, [part.cpu() for part in parts[0]])
    bank, labels = (torch.cat(pieces).to(fabric.device) for pieces in zip(*gathered, strict=True))
    correct = torch.zeros(2, dtype=torch.float64, device=fabric.device)
    for features, truth in zip(*(part.split(256) for part in parts[1]), strict=True):
        votes = vote(features, bank, labels, min(options.knn, len(bank)), options.knn_temperature, num_classes)
        correct += torch.stack([(votes.argmax(1) == truth).double().sum(), torch.ones_like(truth).double().sum()])
    hits, count = all_reduce(fabric, correct, "sum").tolist()
    return 100 * hits / count


def vote(features: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    """Unit features (B, C) and a bank (n, C) with labels (n,) -> votes (B, num_classes)."""
    nearest = (features @ bank.T).topk(k, dim=1)
    weights = ((nearest.values - nearest.values[:, :1]) / temperature).exp()
    votes = torch.zeros(len(features), num_classes, device=features.device)
    return votes.scatter_add_(1, labels[nearest.indices], weights)


def _bank(train: PretrainImages, count: int | None) -> np.ndarray:
    """Indices of the training images that can be neighbours."""
    if count is None or count >= len(train):
        return train.indices
    return train.indices[np.sort(np.random.default_rng(0).permutation(len(train))[:count])]


def _features(
    encoder: Any, dataset: PretrainImages, config: PretrainConfig, fabric: "Fabric", progress: bool
) -> tuple[Tensor, Tensor]:
    """This rank's class tokens after the final norm, of unit length (n, C), and labels (n,)."""
    device = fabric.device
    found = [torch.empty(0, encoder.embed_dim, device=device)]
    labels = [torch.empty(0, dtype=torch.int64, device=device)]
    for batch in evaluation_batches(dataset, config, fabric, progress, title="knn"):
        with fabric.autocast():
            (tokens,) = encoder.tokens(encoder.normalise(batch["images"]), (encoder.depth - 1,))
            features = encoder.class_token((encoder.norm or nn.Identity())(tokens))
        found.append(F.normalize(features.float(), dim=1))
        labels.append(batch["labels"])
    return torch.cat(found), torch.cat(labels)
