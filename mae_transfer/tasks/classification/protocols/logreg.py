"""Logistic regression on frozen features by L-BFGS, as in DINOv2 (dinov2/eval/log_regression.py).

Features (class token after the final norm, or `probe.pooling`) as they are, in float32. A classifier is fitted for each
inverse regularisation strength C; the C of the highest top-1 on the images set aside from the training set
(`data.holdout`, DINOv2's 10 %) is then fitted to all training images. Ranks share the values of C. DINOv2 uses cuML on
a GPU; this runs on the CPU, where ImageNet-1K takes hours for each C: the protocol is for smaller sets.
"""

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from typing_extensions import override

from mae_transfer.engine.distributed import gather_objects, on_rank_zero
from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.data import Batch
from mae_transfer.tasks.classification.features.frozen import FrozenFeatures
from mae_transfer.tasks.classification.features.store import FeatureSet, FeatureStore
from mae_transfer.tasks.classification.protocols.frozen import FrozenProtocol
from mae_transfer.tasks.classification.protocols.protocol import ProbeModel, Selection
from mae_transfer.tasks.classification.splits import ImageSplits, Splits
from mae_transfer.tasks.logistic_regression import Regression

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder
    from mae_transfer.run_folder.folder import RunFolder

_LOG = logging.getLogger(__name__)


class LogisticProbe(ProbeModel):
    """Frozen encoder and the classifier that `LogisticRegression.prepare` fits; `selection` names the C that it chose.

    Evaluation only: scores float32 (1, B, K).
    """

    head_names = ("logreg",)
    weight: Tensor
    bias: Tensor

    def __init__(self, encoder: "Encoder", num_classes: int, config: ClassificationConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_classes, self.pooling = num_classes, config.probe.pooling[0]
        self.frozen = FrozenFeatures(encoder, 1, (self.pooling,), config.probe.layers)
        width = self.frozen.width(len(self.frozen.blocks), self.pooling)
        self.register_buffer("weight", torch.zeros(num_classes, width), persistent=False)
        self.register_buffer("bias", torch.zeros(num_classes), persistent=False)

    def inputs(self, features: Tensor) -> Tensor:
        return self.frozen.select(features, len(self.frozen.blocks), self.pooling)

    def forward(self, batch: Batch) -> Tensor:
        features = self.inputs(self.frozen(batch))
        with torch.autocast(features.device.type, enabled=False):
            return (features @ self.weight.T + self.bias)[None]


class LogisticRegression(FrozenProtocol[LogisticProbe]):
    trains = False
    reads = (
        *(*FrozenProtocol.reads, "data.holdout"),
        *("probe.layers", "probe.pooling", "probe.c_powers", "probe.c_count", "probe.max_iter", "probe.tolerance"),
    )

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> LogisticProbe:
        probe = self.config.probe
        if len(probe.pooling) > 1:
            raise UserError(f"probe.pooling={list(probe.pooling)}: logreg reads one kind of feature; name one")
        if probe.c_count > 1 and not self.config.data.holdout:
            raise UserError(
                "several C need images to choose by: set data.holdout, for example to 0.1, or probe.c_count=1 and "
                "probe.c_powers=[0,0] for C = 1"
            )
        return LogisticProbe(encoder, num_classes, self.config)

    @override
    def prepare(
        self, model: LogisticProbe, images: ImageSplits, fabric: Fabric, folder: "RunFolder | None", progress: bool
    ) -> Splits:
        store = FeatureStore(model.frozen, self.config, fabric, folder, progress)
        train = store.features_of("train", images.train)
        holdout = store.features_of("holdout", images.holdout) if images.holdout else None
        self._fit(model, train, holdout, fabric)
        return Splits(train=train, val=store.of_val(images.val), holdout=holdout)

    def _fit(self, model: LogisticProbe, train: FeatureSet, holdout: FeatureSet | None, fabric: Fabric) -> None:
        """Choose C by the images set aside, then fit all training images."""
        probe = self.config.probe
        strengths = np.logspace(*probe.c_powers, probe.c_count).tolist()
        features, labels = _arrays(model, train)
        if len(np.unique(labels)) < 2:
            raise UserError("logistic regression needs training images of two classes at least; use a larger subset")
        chosen = strengths[0]
        if holdout is not None:
            held, held_labels = _arrays(model, holdout)
            mine, regression = {}, Regression(features, labels, model.num_classes)
            for c in strengths[fabric.global_rank :: fabric.world_size]:
                fitted = regression.fit(c, probe.max_iter, probe.tolerance)
                mine[c] = fitted.top1(held, held_labels), fitted.converged
                _LOG.info("C %.3g: top-1 %.2f on the images set aside", c, mine[c][0])
            found = {c: result for part in gather_objects(fabric, mine) for c, result in part.items()}
            chosen = max(strengths, key=lambda c: found[c][0])  # of equals the first: the strongest regularisation
            stopped = sum(not converged for _, converged in found.values())
            if stopped:
                _LOG.info(
                    "%d of %d fits had not converged after probe.max_iter=%d", stopped, len(found), probe.max_iter
                )
            model.selection = Selection(f"C{chosen:.3g}", {f"C{c:.3g}": found[c][0] for c in strengths})
            del regression
            features, labels = np.concatenate([features, held]), np.concatenate([labels, held_labels])
        final = on_rank_zero(
            fabric,
            lambda: Regression(features, labels, model.num_classes).fit(chosen, probe.max_iter, probe.tolerance),
        )
        if not final.converged:
            _LOG.warning("the fit of the chosen C had not converged after probe.max_iter=%d; raise it", probe.max_iter)
        model.weight.copy_(torch.from_numpy(final.weight))
        model.bias.copy_(torch.from_numpy(final.bias))


def _arrays(model: LogisticProbe, split: FeatureSet) -> tuple[np.ndarray, np.ndarray]:
    features, labels = split.whole()
    return model.inputs(features.float()).numpy(), labels.numpy()
