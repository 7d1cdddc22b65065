"""Nearest neighbours of patches (facebookresearch/capi eval_segmentation.py, `KNNClassifier`).

The k nearest patches of the training images vote for each pixel of a patch with their own pixels at the same place. k
and the metric are chosen on `data.holdout`.
"""

import itertools
from typing import TYPE_CHECKING, ClassVar

import torch
from lightning_fabric import Fabric
from torch import Tensor
from typing_extensions import override

from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.bank import Bank, votes
from mae_transfer.tasks.ade20k.patch_features import PatchSet
from mae_transfer.tasks.ade20k.protocols.patches import PatchClassifier, PatchesProtocol

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder

VOTES = 2**25
"""Counts of votes held at once."""


class NearestPatches(PatchClassifier):
    """`bank`, `k` and `metric` are there after `fit`."""

    bank: Bank

    @override
    def fit(self, train: PatchSet, holdout: PatchSet | None, fabric: Fabric) -> None:
        probe = self.config.probe
        self.bank = Bank([train], self.scale)
        if max(probe.k) > len(self.bank):
            raise UserError(f"probe.k={list(probe.k)}: there are {len(self.bank)} labelled patches; set a smaller k")
        grid = list(itertools.product(probe.k, probe.metrics))
        if holdout is not None:
            found = {}
            for self.k, self.metric in grid:
                found[self.k, self.metric] = self.mean_iou(holdout, fabric)
            self.candidates = {f"k{k}-{metric}": value for (k, metric), value in found.items()}
            best = max(grid, key=lambda each: found[each])  # of equals the first
            self.bank = Bank([train, holdout], self.scale)
        else:
            best = grid[0]
        self.k, self.metric = best
        self.chosen = f"k{self.k}-{self.metric}"

    @override
    def pixels(self, features: Tensor) -> Tensor:
        _, numbers = self.bank.nearest(features, self.k, self.metric)
        step = max(VOTES // (self.encoder.patch_size**2 * self.num_classes), 1)
        return torch.cat([votes(self.bank.labels(some), self.num_classes) for some in numbers.split(step)])


class Knn(PatchesProtocol):
    reads: ClassVar[tuple[str, ...]] = ("data.holdout", "probe.standardise", "probe.k", "probe.metrics")

    @override
    def _check_patches(self, images: int, patches: int) -> None:
        k, most = self.config.probe.k, images * patches
        if max(k) > most:
            raise UserError(f"probe.k={list(k)}: the training images to fit have {most} patches; set a smaller k")

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> NearestPatches:
        probe = self.config.probe
        if len(probe.k) * len(probe.metrics) > 1 and not self.config.data.holdout:
            raise UserError(
                "several probe.k or probe.metrics need images to choose by: set data.holdout, for example to 0.1, or "
                "name one of each"
            )
        return NearestPatches(encoder, num_classes, self.config)
