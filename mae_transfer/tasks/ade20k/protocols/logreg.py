"""Logistic regression on patches (facebookresearch/capi eval_segmentation.py, `LogregClassifier`).

A patch's target is its commonest label; patches where that is ignored are left out. L-BFGS fits each inverse
regularisation strength C, which ranks share; the C of the highest mIoU on `data.holdout` is fitted to all training
patches. A predicted class fills its patch.
"""

import logging
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from typing_extensions import override

from mae_transfer.engine.distributed import gather_objects, on_rank_zero
from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.bank import modes
from mae_transfer.tasks.ade20k.evaluate import count, score
from mae_transfer.tasks.ade20k.patch_features import PatchSet
from mae_transfer.tasks.ade20k.protocols.patches import PatchClassifier, PatchesProtocol
from mae_transfer.tasks.ade20k.transforms import IGNORE
from mae_transfer.tasks.logistic_regression import Regression

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder

_LOG = logging.getLogger(__name__)
COPIES = 3
"""Of the features in float32, that a fit holds at once."""


class LinearPatches(PatchClassifier):
    """The classifier that `fit` finds: weight (K, C) and bias (K,) of scaled features."""

    weight: Tensor
    bias: Tensor

    @override
    def fit(self, train: PatchSet, holdout: PatchSet | None, fabric: Fabric) -> None:
        probe, classes = self.config.probe, self.num_classes
        strengths = np.logspace(*probe.c_powers, probe.c_count).tolist()
        check_memory([train, *([holdout] if holdout else [])])
        features, labels = self._targets(train)
        chosen = strengths[0]
        if holdout is not None:
            held, pixels = self._arrays(holdout)
            mine, regression = {}, Regression(features, labels, classes)
            for c in strengths[fabric.global_rank :: fabric.world_size]:
                fitted = regression.fit(c, probe.max_iter, probe.tolerance)
                predicted = torch.from_numpy((held @ fitted.weight.T + fitted.bias).argmax(1))
                mine[c] = score(count(pixels, predicted[:, None].expand_as(pixels), classes), [], per_class=False)[
                    "mIoU"
                ]
                _LOG.info("C %.3g: mIoU %.2f on the images set aside", c, mine[c])
            found = {c: value for part in gather_objects(fabric, mine) for c, value in part.items()}
            self.candidates = {f"C{c:.3g}": found[c] for c in strengths}
            chosen = max(strengths, key=lambda c: found[c])  # of equals the first: the strongest regularisation
            del regression
            kept = modes(pixels).numpy()
            features = np.concatenate([features, held[kept != IGNORE]])
            labels = np.concatenate([labels, kept[kept != IGNORE]])
        final = on_rank_zero(
            fabric, lambda: Regression(features, labels, classes).fit(chosen, probe.max_iter, probe.tolerance)
        )
        if not final.converged:
            _LOG.warning("the fit of the chosen C had not converged after probe.max_iter=%d; raise it", probe.max_iter)
        self.chosen = f"C{chosen:.3g}"
        device = next(self.encoder.parameters()).device
        self.weight = torch.from_numpy(final.weight).float().to(device)
        self.bias = torch.from_numpy(final.bias).float().to(device)

    @override
    def pixels(self, features: Tensor) -> Tensor:
        classes = (features @ self.weight.T + self.bias).argmax(1).to(torch.int16)
        return classes[:, None].expand(-1, self.encoder.patch_size**2)

    def _arrays(self, patches: PatchSet) -> tuple[np.ndarray, Tensor]:
        """Scaled features float32 (n, C) and pixel labels (n, p * p) of all patches."""
        features = [self.scale(patches.vectors(places)) for places in patches.blocks()]
        return torch.cat(features).numpy(), torch.cat([patches.pixels(places) for places in patches.blocks()])

    def _targets(self, patches: PatchSet) -> tuple[np.ndarray, np.ndarray]:
        """Of the patches whose commonest label is a class; UserError for less than two classes."""
        features, pixels = self._arrays(patches)
        labels = modes(pixels).numpy()
        if len(np.unique(labels[labels != IGNORE])) < 2:
            raise UserError("logistic regression needs training patches of two classes at least; use a larger subset")
        return features[labels != IGNORE], labels[labels != IGNORE]


def check_memory(sets: Sequence[PatchSet]) -> None:
    """UserError if the features of these patches cannot be held in float32."""
    values = sum(len(each) * math.prod(each.features.chunks[0].shape[1:]) for each in sets)
    needed, there = COPIES * 4 * values, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(
            f"logreg holds all patches in float32, about {needed / 2**30:.3g} GiB, and the machine has "
            f"{there / 2**30:.3g} GiB; use a smaller --subset or data.image_size, or the protocol knn"
        )


class Logreg(PatchesProtocol):
    reads: ClassVar[tuple[str, ...]] = (
        *("data.holdout", "probe.standardise"),
        *("probe.c_powers", "probe.c_count", "probe.max_iter", "probe.tolerance"),
    )

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> LinearPatches:
        if self.config.probe.c_count > 1 and not self.config.data.holdout:
            raise UserError(
                "several C need images to choose by: set data.holdout, for example to 0.1, or probe.c_count=1 and "
                "probe.c_powers=[0,0] for C = 1"
            )
        return LinearPatches(encoder, num_classes, self.config)
