"""In-context segmentation: nearest patches of a memory vote by attention (Hummingbird, arXiv 2306.01667).

Source: vpariza/open-hummingbird-eval, hbird/hbird_eval.py. Each patch of a val image attends to its nearest patches in
the memory: softmax of cosine similarity over temperature. The sum of their label shares is upsampled bilinearly; the
class of the highest share counts. Of a memory smaller than the training set each image fills the same part, with
patches of rare classes first (`sample_features` there). Nothing is chosen, so nothing is set aside.
"""

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from typing_extensions import override

from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.bank import Bank
from mae_transfer.tasks.ade20k.inference import classes_at
from mae_transfer.tasks.ade20k.patch_features import PatchSet
from mae_transfer.tasks.ade20k.protocols.patches import PatchClassifier, PatchesProtocol
from mae_transfer.tasks.ade20k.transforms import IGNORE

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


class Memory(PatchClassifier):
    """`bank` is there after `fit`."""

    bank: Bank

    @override
    def fit(self, train: PatchSet, holdout: PatchSet | None, fabric: Fabric) -> None:
        chosen = remembered(train, self.config.probe.memory_size, self.num_classes, self.config.seed)
        self.bank = Bank([train], self.scale, [chosen])
        check_neighbours(self.config.probe.neighbours, len(self.bank))

    @override
    def segment(self, features: Tensor, size: tuple[int, int]) -> list[Tensor]:
        patch = self.encoder.patch_size
        shares = torch.stack([self.shares(image) for image in features])
        maps = shares.transpose(1, 2).unflatten(2, (size[0] // patch, size[1] // patch))
        return [classes_at(of_image, size) for of_image in maps]

    def shares(self, features: Tensor) -> Tensor:
        """Scaled features of patches (n, C) -> the shares of the classes float32 (n, K)."""
        probe = self.config.probe
        similarities, numbers = self.bank.nearest(features, probe.neighbours, "cosine")
        weights = (similarities / probe.temperature).softmax(1)
        pixels = self.bank.labels(numbers).long()
        each = (weights / pixels.shape[2])[..., None].expand_as(pixels).flatten(1)
        labels = torch.where(pixels == IGNORE, self.num_classes, pixels).flatten(1)
        shares = torch.zeros(len(pixels), self.num_classes + 1, device=features.device)
        return shares.scatter_add_(1, labels, each)[:, : self.num_classes]


def remembered(train: PatchSet, size: int | None, num_classes: int, seed: int) -> np.ndarray:
    """Which patches the memory holds, bool (images * h * w); patches without a labelled pixel never are.

    Of a bounded memory each image has the same part. A patch's score is the number of the image's patches that hold
    one of its classes, summed over its classes, times U(0, 1) from (seed, place of the image); the lowest are taken.
    """
    count = train.features.chunks[0].shape[1]
    most = count if size is None else size // len(train)
    found = []
    for place in train.places:
        pixels = train.pixels(np.array([place])).long()
        holds = torch.zeros(count, num_classes + 1, dtype=torch.bool)
        holds.scatter_(1, torch.where(pixels == IGNORE, num_classes, pixels), True)
        holds = holds[:, :num_classes]
        kept = holds.any(1)
        if int(kept.sum()) > most:
            scores = (holds.float() @ holds.sum(0).float()).double()
            scores *= torch.from_numpy(np.random.default_rng((seed, int(place))).random(count))
            scores[~kept] = torch.inf
            kept = torch.zeros_like(kept)
            kept[scores.topk(most, largest=False).indices] = True
        found.append(kept.numpy())
    return np.concatenate(found)


def check_neighbours(asked: int, there: int) -> None:
    """UserError for more neighbours than patches in the memory."""
    if asked > there:
        raise UserError(
            f"probe.neighbours={asked}: the memory holds {there} patches; set fewer, or a larger probe.memory_size"
        )


class InContext(PatchesProtocol):
    reads: ClassVar[tuple[str, ...]] = (
        "probe.neighbours",
        "probe.temperature",
        "probe.memory_size",
        "probe.standardise",
    )

    @override
    def _check_patches(self, images: int, patches: int) -> None:
        size = self.config.probe.memory_size
        if size is not None and size < images:
            raise UserError(
                f"probe.memory_size={size} is below the number of training images, {images}, and each fills a part of "
                f"it; set {images} or more"
            )
        each = patches if size is None else min(size // images, patches)
        check_neighbours(self.config.probe.neighbours, images * each)

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> Memory:
        if self.config.data.holdout:
            raise UserError("data.holdout: the protocol in_context chooses nothing; leave it out")
        return Memory(encoder, num_classes, self.config)
