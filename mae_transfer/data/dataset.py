"""What the data sets of all tasks share: chosen images of a folder, and what becomes of undecodable ones."""

import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from torch.utils.data import Dataset

from mae_transfer.data.images import ImageError, UndecodableImageError

logger = logging.getLogger(__name__)

Content = TypeVar("Content")
"""What is read of an image."""

Span = tuple[str, int, int | None]
"""Path of a file, and where in it an image begins and how many bytes it has; None for all of the file."""


class ImageDataset(Dataset[dict[str, Any]], ABC, Generic[Content]):
    """Images below `folder`; a place is a position in `indices`, which are the chosen ones."""

    def __init__(self, folder: Path, indices: np.ndarray, on_bad_image: str) -> None:
        self.folder = folder
        self.indices = indices
        self.on_bad_image = on_bad_image
        self.skipped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.indices)

    @abstractmethod
    def file_name(self, place: int) -> str:
        """Of the image, relative to the folder."""

    def span(self, place: int) -> Span:
        """Where the bytes of the image lie."""
        return os.path.join(self.folder, self.file_name(place)), 0, None

    @abstractmethod
    def read(self, place: int) -> Content:
        """The image and what belongs to it; UndecodableImageError is what may be skipped."""

    def read_or_skip(self, place: int) -> Content | None:
        """None for an image that cannot be decoded and may be skipped."""
        try:
            return self.read(place)
        except UndecodableImageError:
            if self.on_bad_image == "error":
                raise
            return None

    def read_or_next(self, place: int) -> tuple[int, Content, list[str]]:
        """The first image from a place on that can be read: its place, itself, and the names of those skipped."""
        skipped: list[str] = []
        for step in range(len(self)):
            current = (place + step) % len(self)
            content = self.read_or_skip(current)
            if content is not None:
                return current, content, skipped
            skipped.append(self.file_name(current))
        raise ImageError(f"{self.folder}: none of the {len(self)} training images can be decoded; fetch them again")

    def report_skipped(self, batch: dict[str, Any]) -> None:
        """Count a batch's skipped images, in the process that consumes the batches, and log each file once."""
        for name in batch["skipped"]:
            if name not in self.skipped:
                logger.warning("%s: truncated or corrupt, skipped (data.on_bad_image=skip)", self.folder / name)
            self.skipped[name] += 1


def collate(samples: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Lists of what every sample holds: original sizes (height, width), file names, and names of skipped files."""
    samples = list(samples)
    return {
        "sizes": [sample["size"] for sample in samples],
        "file_names": [sample["file_name"] for sample in samples],
        "skipped": [name for sample in samples for name in sample["skipped"]],
    }
