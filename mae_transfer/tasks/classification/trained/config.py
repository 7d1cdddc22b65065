"""The configuration of a trained classifier's evaluation."""

from typing import Annotated, Literal

from typing_extensions import override

from mae_transfer.config.roles import Role
from mae_transfer.tasks.classification.config import ClassificationConfig, EvalConfig, ModelConfig, Resizing


class TrainedModelConfig(ModelConfig):
    classifier: Annotated[str | None, Role.COMPARED] = None
    """Path of a linear classifier that is a file of its own (DINO's, DINOv2's); None takes that beside the encoder."""


class TrainedEvalConfig(EvalConfig):
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Of the resizing, with antialiasing."""
    crop_mode: Literal["center", "squash"] = "center"
    """`squash` resizes both sides to image_size / crop_pct, whatever the image's proportions."""


class TrainedConfig(ClassificationConfig):
    model: TrainedModelConfig
    eval: TrainedEvalConfig

    @property
    @override
    def resizing(self) -> Resizing:
        return self.eval.interpolation, self.eval.crop_mode == "squash"
