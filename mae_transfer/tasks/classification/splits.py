"""The splits of a run: what is trained on, what is evaluated, and what is set aside to choose by."""

from dataclasses import dataclass
from typing import Any, Protocol

from mae_transfer.engine.task import TrainDataset
from mae_transfer.tasks.classification.data import ClassificationEval, ClassificationTrain
from mae_transfer.tasks.classification.evaluate import EvalSplit


class TrainSplit(TrainDataset, Protocol):
    def report_skipped(self, batch: Any, /) -> None:
        """Take note of a batch's images that could not be decoded."""
        ...


@dataclass(frozen=True)
class Splits:
    """Images, or what a protocol puts in their place, such as features."""

    train: TrainSplit
    val: EvalSplit
    holdout: EvalSplit | None = None
    """Training images set aside by `data.holdout`, without augmentation; None without it."""


@dataclass(frozen=True)
class ImageSplits(Splits):
    """The images themselves."""

    train: ClassificationTrain
    val: ClassificationEval
    holdout: ClassificationEval | None = None
