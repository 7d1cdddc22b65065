"""Pairs for the protocols that fit patches: image and mask stretched to one size, without augmentation (CAPI)."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mae_transfer.backbones.grid import pair
from mae_transfer.data.dataset import collate
from mae_transfer.tasks.ade20k.data import Batch, Segmentation, to_tensor
from mae_transfer.tasks.ade20k.pairs import Pairs
from mae_transfer.tasks.ade20k.protocols.config import PatchesConfig


def stretch(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 (h, w, 3) at `size` (height, width) by Pillow's bicubic filter, label int16 (h, w) by the nearest."""
    height, width = size
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    nearest = Image.fromarray(label.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(resized), np.asarray(nearest).astype(np.int16)


class PatchImages(Segmentation):
    """Stretched pairs keyed by 0 .. len - 1.

    A sample is {"image": uint8 (3, H, W) or None if the pair cannot be decoded and may be skipped, "label": int16
    (H, W), "size": (H, W), "file_name", "skipped"}.
    """

    def __init__(self, pairs: Pairs, config: PatchesConfig, *, few: bool = False) -> None:
        super().__init__(pairs, config.data, config.subset, few=few)
        self.stretched = pair(config.data.image_size)

    def read(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        return stretch(*super().read(place), self.stretched)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, found = self.file_name(index), self.read_or_skip(index)
        sample: dict[str, Any] = {"size": self.stretched, "file_name": name, "skipped": []}
        if found is None:
            return sample | {"image": None, "label": None, "skipped": [name]}
        return sample | {"image": to_tensor(found[0]), "label": torch.from_numpy(found[1])}

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> Batch:
        """A batch of the pairs that can be used, which may be none."""
        usable = [sample for sample in samples if sample["image"] is not None]
        return collate(usable) | {
            "images": torch.stack([sample["image"] for sample in usable]) if usable else torch.empty(0),
            "labels": [sample["label"] for sample in usable],
            "skipped": [name for sample in samples for name in sample["skipped"]],
        }


def cut(labels: Tensor, patch: int) -> Tensor:
    """(B, H, W) -> the pixels of each patch, row by row: (B, h * w, patch * patch)."""
    batch, height, width = labels.shape
    cells = labels.reshape(batch, height // patch, patch, width // patch, patch)
    return cells.transpose(2, 3).reshape(batch, -1, patch * patch)


def joined(patches: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """The inverse of `cut`."""
    height, width = size
    cells = patches.reshape(len(patches), height // patch, width // patch, patch, patch)
    return cells.transpose(2, 3).reshape(-1, height, width)
