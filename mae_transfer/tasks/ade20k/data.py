"""Images and label masks as map-style datasets.

All randomness of a training sample comes from (seed, epoch, index), so workers and ranks do not matter.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from mae_transfer.data.dataset import ImageDataset, collate
from mae_transfer.data.decode import read_image
from mae_transfer.data.fractions import hash_fraction
from mae_transfer.data.images import choose_subset
from mae_transfer.engine.evaluation import EvalDataset
from mae_transfer.engine.task import SampleKey
from mae_transfer.tasks.ade20k.config import CropsConfig, DataConfig, PairsConfig
from mae_transfer.tasks.ade20k.labels import Labels
from mae_transfer.tasks.ade20k.opencv import cv2
from mae_transfer.tasks.ade20k.pairs import Pairs
from mae_transfer.tasks.ade20k.transforms import augment, resize_for_evaluation

Sample = dict[str, Any]
"""What a data set gives of an image."""
Batch = Sample


class EvalSplit(EvalDataset, Protocol):
    """What is evaluated: pairs, or what a protocol puts in their place.

    A batch holds what the model takes, `labels` int16 (H, W) of the size of its predictions, `file_names` and
    `skipped`.
    """

    def report_skipped(self, batch: Batch, /) -> None:
        """Take note of a batch's pairs that could not be decoded."""
        ...


class Segmentation(ImageDataset[tuple[np.ndarray, np.ndarray]]):
    """What the data sets share: which pairs, and how they are read.

    Args:
        few: train on `data.fraction` of the pairs; `whole` are those that it is taken of.
    """

    def __init__(self, pairs: Pairs, config: PairsConfig, subset: int | None, *, few: bool = False) -> None:
        self.whole = chosen = choose_subset(pairs.names, subset)
        if few and config.fraction is not None:
            names = [pairs.names[i] for i in chosen.tolist()]
            chosen = chosen[hash_fraction(names, config.fraction, config.draw)]
        super().__init__(pairs.image_folder, chosen, config.on_bad_image)
        self.pairs = pairs
        self.pairs_config = config
        self.labels = Labels(config)

    def file_name(self, place: int) -> str:
        return f"{self.pairs.names[self.indices[place]]}{self.pairs.image_suffix}"

    def size(self, place: int) -> tuple[int, int]:
        return self.pairs.sizes[self.indices[place]]

    def read(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (h, w, 3) RGB and label int16 (h, w)."""
        if get_worker_info() is not None:
            cv2.setNumThreads(0)  # one thread per worker; a pool of threads also does not survive a fork
        number, size = int(self.indices[place]), self.size(place)
        image = read_image(self.pairs.image(number), *size)
        return np.asarray(image), self.labels.read(self.pairs.mask(number), size)

    @staticmethod
    def collate(samples: list[Any]) -> Batch:
        """One batch of samples."""
        raise NotImplementedError


class Splits(NamedTuple):
    """The pairs of a run as data sets."""

    train: Segmentation
    val: Segmentation


class Ade20kTrain(Segmentation):
    """Augmented training samples, keyed by (epoch, index).

    A sample is {"image": uint8 (3, h, w) RGB, "label": int16 (h, w), "size": original (height, width), "file_name",
    "skipped"}; h and w are at most `image_size`.
    """

    def __init__(self, pairs: Pairs, config: DataConfig, *, seed: int, subset: int | None = None) -> None:
        super().__init__(pairs, config, subset, few=True)
        self.config = config
        self.seed = seed

    def __getitem__(self, key: SampleKey) -> Sample:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        place, (image, label), skipped = self.read_or_next(index)
        image, label = augment(image, label, self.config, rng)
        return {
            "image": to_tensor(image),
            "label": torch.from_numpy(label),
            "size": self.size(place),
            "file_name": self.file_name(place),
            "skipped": skipped,
        }

    @staticmethod
    def collate(samples: list[Sample]) -> Batch:
        """Lists of what the samples hold, since the crops may differ in size."""
        return collate(samples) | {
            "images": [sample["image"] for sample in samples],
            "labels": [sample["label"] for sample in samples],
        }


class Ade20kEval(Segmentation):
    """All pairs, keyed by int.

    A sample is one of Ade20kTrain with the label at its original size and, instead of an image, "views": one uint8
    (3, h, w) per entry of `eval.ratios`. The views are None when the pair cannot be decoded and may be skipped.
    """

    def __init__(self, pairs: Pairs, config: CropsConfig, *, subset: int | None = None) -> None:
        super().__init__(pairs, config.data, subset)
        self.config = config.data
        self.eval = config.eval

    def __getitem__(self, index: int) -> Sample:
        name = self.file_name(index)
        sample: Sample = {"size": self.size(index), "file_name": name}
        pair = self.read_or_skip(index)
        if pair is None:
            return sample | {"views": None, "label": None, "skipped": [name]}
        image, label = pair
        resized = (resize_for_evaluation(image, self.config, ratio, self.eval.resize) for ratio in self.eval.ratios)
        views = [to_tensor(pixels) for pixels in resized]
        return sample | {"views": views, "label": torch.from_numpy(label), "skipped": []}

    @staticmethod
    def collate(samples: list[Sample]) -> Batch:
        """A batch of the pairs that can be used, which may be none."""
        usable = [sample for sample in samples if sample["views"] is not None]
        return collate(usable) | {
            "views": [sample["views"] for sample in usable],
            "labels": [sample["label"] for sample in usable],
            "skipped": [name for sample in samples for name in sample["skipped"]],
        }


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 (h, w, 3) -> uint8 (3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
