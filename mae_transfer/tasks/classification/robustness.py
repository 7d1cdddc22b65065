"""ImageNet-A, -R, -Sketch and -C: evaluation of a classifier of ImageNet-1K on other images, without training.

ImageNet-A and -R have 200 of the 1000 classes: the classifier chooses among these only, as their authors' code and MAE
Table 13 do (`eval.mask_classes`). ImageNet-C's mean corruption error is the mean over 15 corruptions of the error over
five severities, each relative to AlexNet's. Its images are 224 x 224 crops already, so they are not resized to 256.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mae_transfer.data.identity import combine
from mae_transfer.data.images import choose_subset
from mae_transfer.errors import UserError
from mae_transfer.files import user_path
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.data import ClassificationEval
from mae_transfer.tasks.classification.evaluate import count
from mae_transfer.tasks.classification.layouts.folders import list_folders
from mae_transfer.tasks.classification.transforms import EvalTransform

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""Corruption -> AlexNet's error over the five severities (github.com/hendrycks/robustness)."""
SEVERITIES = (1, 2, 3, 4, 5)
PLAIN = ("imagenet_a", "imagenet_r", "imagenet_sketch")
MASKED = ("imagenet_a", "imagenet_r")


@dataclass(frozen=True)
class RobustnessSet:
    name: str
    """Of the metric: imagenet_a, or <corruption>/<severity> of ImageNet-C."""
    dataset: ClassificationEval
    classes: Tensor | None
    """int64: the classes to choose among, None for all."""
    class_names: list[str]
    """Of the training set."""

    @property
    def fingerprint(self) -> str:
        """Of its images and their classes."""
        return combine(self.dataset.listing.identity(self.dataset.indices), self.class_names)


def find_sets(config: ClassificationConfig, class_names: Sequence[str]) -> list[RobustnessSet]:
    """The sets that the configuration names, with all their files checked; UserError for what is missing."""
    sets = []
    for name in PLAIN:
        root = getattr(config.data, name)
        if root is not None:
            masked = name in MASKED and config.eval.mask_classes
            sets.append(_one_set(name, user_path(root), config, class_names, EvalTransform(config), masked))
    if config.data.imagenet_c is not None:
        crops = EvalTransform(config, crop_pct=1.0)
        root = user_path(config.data.imagenet_c)
        for corruption in ALEXNET_ERRORS:
            folder = _corruption_folder(root, corruption)
            for severity in SEVERITIES:
                name = f"{corruption}/{severity}"
                sets.append(_one_set(name, folder / str(severity), config, class_names, crops, False))
    return sets


def _one_set(
    name: str,
    root: Path,
    config: ClassificationConfig,
    class_names: Sequence[str],
    transform: EvalTransform,
    masked: bool,
) -> RobustnessSet:
    if not root.is_dir():
        raise UserError(f"{name}: folder {root} is not there; expected are class folders, named as the training set's")
    listing = list_folders(root, {class_name: label for label, class_name in enumerate(class_names)}, [])
    classes = torch.from_numpy(np.unique(listing.labels)) if masked else None
    indices = choose_subset(listing.names, config.subset)
    dataset = ClassificationEval(listing, indices, transform, on_bad_image=config.data.on_bad_image)
    return RobustnessSet(name, dataset, classes, list(class_names))


def fingerprints(sets: Sequence[RobustnessSet]) -> dict[str, str]:
    """By the beginning of a metric's key; ImageNet-C's 75 parts are one.

    It asks for the state of each of ImageNet-C's 3.75 million files: one rank is to do it.
    """
    found = {item.name: item.fingerprint for item in sets if item.name in PLAIN}
    parts = [item.fingerprint for item in sets if item.name not in PLAIN]
    return found | ({"imagenet_c": combine(*parts)} if parts else {})


def _corruption_folder(root: Path, corruption: str) -> Path:
    """Where a corruption lies: the archives (noise, blur, weather, digital) may have been unpacked each to a folder."""
    places = [root / corruption, *sorted(root.glob(f"*/{corruption}"))]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UserError(
            f"data.imagenet_c: {root} has no folder {corruption}; expected are 15 corruptions, severities 1 to 5"
        )
    return found


def evaluate_sets(
    model: nn.Module, head: int, sets: Sequence[RobustnessSet], fabric: "Fabric", **options: Any
) -> dict[str, float]:
    """`imagenet_a_top1` and so on in percent, and `imagenet_c_mCE` with `imagenet_c_CE/<corruption>`, of one head.

    options: those of `evaluate.count`.
    """
    accuracy = {}
    for item in sets:
        counts = count(model, item.dataset, fabric=fabric, title=item.name, classes=item.classes, **options)
        accuracy[item.name] = counts.top1()[head]
    metrics = {f"{name}_top1": accuracy[name] for name in PLAIN if name in accuracy}
    if any(item.name not in PLAIN for item in sets):
        errors = corruption_errors(accuracy)
        metrics["imagenet_c_mCE"] = float(np.mean(list(errors.values())))
        metrics |= {f"imagenet_c_CE/{name}": value for name, value in errors.items()}
    return metrics


def corruption_errors(accuracy: dict[str, float]) -> dict[str, float]:
    """Top-1 of each <corruption>/<severity> -> error relative to AlexNet's of each corruption; all in percent."""
    return {
        name: float(np.mean([100 - accuracy[f"{name}/{severity}"] for severity in SEVERITIES])) / alexnet
        for name, alexnet in ALEXNET_ERRORS.items()
    }
