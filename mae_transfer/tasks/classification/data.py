"""Images and labels as map-style data sets; which images a run trains on and which are set aside.

Files are read by `data/decode.py`, without EXIF rotation. All randomness of a training sample comes from
(seed, epoch, index), so workers and ranks do not matter.
"""

import hashlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae_transfer.data.dataset import ImageDataset
from mae_transfer.data.decode import read_rgb
from mae_transfer.data.fractions import least_percent
from mae_transfer.data.images import choose_subset
from mae_transfer.engine.task import SampleKey
from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.config import DataConfig
from mae_transfer.tasks.classification.layouts.listing import Listing
from mae_transfer.tasks.classification.transforms import EvalTransform, TrainTransform

Batch = dict[str, Any]


def choose_training_images(
    listing: Listing, data: DataConfig, subset: int | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Indices of the images to train on, of those set aside by `data.holdout`, and warnings; both sorted.

    Decided by a hash of each name (few labels: of name and draw) within its class, never by a seed: the same images on
    every machine, and fewer labels are a part of more.

    Raises UserError when there are too few images to set any aside.
    """
    chosen = choose_subset(listing.names, subset)
    warnings = []
    if data.shots is not None:
        chosen, short = _first_of_each_class(listing, chosen, lambda _: data.shots or 0, f"{data.draw}:")
        if short:
            warnings.append(f"{short} classes have fewer than data.shots={data.shots} training images; all are taken")
    if data.fraction is not None and len(chosen):
        chosen = _fraction_of_each_class(listing, chosen, data.fraction, data)
    if data.holdout == 0:
        return chosen, np.empty(0, dtype=np.int64), warnings
    # a class with one image keeps it
    share = data.holdout
    held, _ = _first_of_each_class(listing, chosen, lambda n: min(max(round(n * share), 1), n - 1), "holdout:")
    if not len(held):
        raise UserError(
            f"data.holdout={share:g}: every class has one training image, so none can be set aside to choose by; use "
            "more shots, a larger fraction or --subset, or data.holdout=0 where the protocol allows it"
        )
    return np.setdiff1d(chosen, held), held, warnings


def _fraction_of_each_class(listing: Listing, among: np.ndarray, percent: float, data: DataConfig) -> np.ndarray:
    """round(percent / 100 * n) of the n images of each class; UserError if a class has none left."""
    counts = np.bincount(listing.labels[among])
    least = int(counts[counts > 0].min())
    if not round(percent / 100 * least):
        first = int(np.flatnonzero(counts == least)[0])
        enough = least_percent(least)
        if data.holdout:  # sets one of two aside
            enough = max(enough, least_percent(int(counts.max()), 2))
        raise UserError(
            f"data.fraction={percent:g} leaves class number {first}, which has {least} training images, without one; "
            f"give {enough:g} or more, or --shots"
        )
    return _first_of_each_class(listing, among, lambda n: round(percent / 100 * n), f"{data.draw}:")[0]


def _first_of_each_class(
    listing: Listing, among: np.ndarray, wanted: Callable[[int], int], prefix: str
) -> tuple[np.ndarray, int]:
    """The first images of each class by hash, `wanted(images of the class)` many; and how many classes had fewer."""
    digests = dict(zip(among.tolist(), _digests(listing, among, prefix), strict=True))
    by_class: dict[int, list[int]] = {}
    for index in among.tolist():
        by_class.setdefault(int(listing.labels[index]), []).append(index)
    taken: list[int] = []
    short = 0
    for indices in by_class.values():
        count = wanted(len(indices))
        short += count > len(indices)
        taken += sorted(indices, key=digests.__getitem__)[:count]
    return np.sort(np.array(taken, dtype=np.int64)), short


def _digests(listing: Listing, indices: np.ndarray, prefix: str) -> list[bytes]:
    return [
        hashlib.sha256((prefix + listing.names[i]).encode(errors="surrogateescape")).digest() for i in indices.tolist()
    ]


class _Images(ImageDataset[Tensor]):
    """What the data sets share: which images of a listing."""

    def __init__(self, listing: Listing, indices: np.ndarray, on_bad_image: str) -> None:
        super().__init__(listing.root, indices, on_bad_image)
        self.listing = listing

    @property
    def labels(self) -> np.ndarray:
        """int64 (n,), in the order of the data set."""
        return self.listing.labels[self.indices]

    def file_name(self, place: int) -> str:
        return self.listing.names[int(self.indices[place])]

    def label(self, place: int) -> int:
        return int(self.listing.labels[self.indices[place]])

    def read(self, place: int) -> Tensor:
        return read_rgb(os.path.join(self.folder, self.file_name(place)))


class ClassificationTrain(_Images):
    """Augmented training samples keyed by (epoch, index).

    A sample is {"image": uint8 (3, S, S), "label": int, "name": str, "skipped": names of images that could not be
    decoded and that this one stands in for}.
    """

    def __init__(
        self, listing: Listing, indices: np.ndarray, transform: TrainTransform, *, seed: int, on_bad_image: str
    ) -> None:
        super().__init__(listing, indices, on_bad_image)
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        place, image, skipped = self.read_or_next(index)
        return {
            "image": self.transform(image, rng),
            "label": self.label(place),
            "name": self.file_name(place),
            "skipped": skipped,
        }

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> Batch:
        return _collate(samples)


class ClassificationEval(_Images):
    """Resized and cropped images keyed by 0 .. len - 1, without randomness.

    A sample is one of ClassificationTrain; its image is None when it cannot be decoded and may be skipped.
    """

    def __init__(self, listing: Listing, indices: np.ndarray, transform: EvalTransform, *, on_bad_image: str) -> None:
        super().__init__(listing, indices, on_bad_image)
        self.transform = transform

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.read_or_skip(index)
        return {
            "image": None if image is None else self.transform(image),
            "label": self.label(index),
            "name": self.file_name(index),
            "skipped": [self.file_name(index)] if image is None else [],
        }

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> Batch:
        """A batch of the images that can be used, which may be none."""
        return _collate(samples)


def _collate(samples: list[dict[str, Any]]) -> Batch:
    """{"images": uint8 (B, 3, S, S), "labels": int64 (B,), "names", "skipped"} of the samples that have an image."""
    usable = [sample for sample in samples if sample["image"] is not None]
    return {
        "images": torch.stack([sample["image"] for sample in usable]) if usable else torch.empty(0, dtype=torch.uint8),
        "labels": torch.tensor([sample["label"] for sample in usable], dtype=torch.int64),
        "names": [sample["name"] for sample in usable],
        "skipped": [name for sample in samples for name in sample["skipped"]],
    }
