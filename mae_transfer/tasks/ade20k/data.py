"""Images and label masks as map-style datasets: ADE20K's layout, or any folders of images and masks.

ADE20K here is SceneParse150 (`ADEChallengeData2016.zip`): masks of one channel, 0 ignored, 1 .. 150 the classes. The
full ADE20K, whose `_seg.png` masks have three channels and 3000 classes, is refused by name. Labels become classes as
by mmsegmentation's `reduce_zero_label`, but that a value which is no class is an error here: there it is dropped from
the ground truth, still counts as a prediction, or wraps around in uint8.

All pairs are checked when a data set is made, by their file headers only. All randomness of a training sample comes
from (seed, epoch, index), so workers and ranks do not matter.
"""

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.config import Ade20kConfig, DataConfig
from mae_transfer.tasks.ade20k.transforms import IGNORE, augment, resize_for_evaluation
from mae_transfer.tasks.base import SampleKey
from mae_transfer.tasks.dataset import ImageDataset, collate
from mae_transfer.tasks.images import (
    DECODE_ERRORS,
    EXIF_ORIENTATION,
    ImageError,
    UndecodableImageError,
    choose_subset,
    read_image,
)
from mae_transfer.tasks.paths import find_paths

Batch = dict[str, Any]

MASK_MODES = ("1", "L", "P", "I;16", "I;16B", "I")
"""Pillow's modes of one channel whose values are labels: 1, 8, palette, 16 and 32 bit."""
LAYOUT = {
    "train_images": "images/training",
    "train_masks": "annotations/training",
    "val_images": "images/validation",
    "val_masks": "annotations/validation",
}
EXPECTED = (
    "expected is ADE20K's layout, to be had as ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu: "
    f"data.root (--data) with {', '.join(LAYOUT.values())}; or folders of your own by data.train_images=, "
    "data.train_masks=, data.val_images= and data.val_masks="
)
THREADS = 16
_OUTSIDE = -2


@dataclass(frozen=True)
class Pairs:
    """The checked pairs of one split, in order of name. `sizes` are (height, width)."""

    image_folder: Path
    mask_folder: Path
    names: list[str]
    image_suffix: str
    mask_suffix: str
    sizes: list[tuple[int, int]]
    fingerprint: str
    """SHA-256 over names and file sizes in bytes."""

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Path:
        return self.image_folder / f"{self.names[index]}{self.image_suffix}"

    def mask(self, index: int) -> Path:
        return self.mask_folder / f"{self.names[index]}{self.mask_suffix}"


def find_pairs(config: DataConfig, split: str) -> Pairs:
    """The pairs of `train` or `val`.

    Raises UserError for a missing folder, an image without mask, a mask of another size than its (upright) image or
    with more than one channel, and a file that is no image.
    """
    paths = find_paths(config, LAYOUT, EXPECTED)
    folder, masks = paths[f"{split}_images"], paths[f"{split}_masks"]
    names = _names(folder, config.image_suffix)
    if not names:
        found = ", ".join(sorted({p.suffix for p in folder.rglob("*") if p.is_file()})) or "no files"
        raise UserError(
            f"{folder}: no file ends in {config.image_suffix!r} (it holds {found}); set data.image_suffix or the folder"
        )
    masked = set(_names(masks, config.mask_suffix))
    missing = [name for name in names if name not in masked]
    if missing:
        first = ", ".join(f"{name}{config.image_suffix}" for name in missing[:3]) + (
            ", ..." if len(missing) > 3 else ""
        )
        raise UserError(
            f"{folder}: {len(missing)} of {len(names)} images have no mask in {masks}: {first}; add <name>"
            f"{config.mask_suffix} there (data.mask_suffix), or take the images out"
        )
    pairs = Pairs(folder, masks, names, config.image_suffix, config.mask_suffix, [], "")
    with ThreadPoolExecutor(THREADS) as pool:  # a network disk answers many at once
        headers = list(pool.map(lambda i: _check_pair(pairs.image(i), pairs.mask(i)), range(len(names))))
    digest = hashlib.sha256()
    for name, header in zip(names, headers, strict=True):
        digest.update(f"{name} {header[1]} {header[2]}\n".encode())
    return Pairs(
        folder,
        masks,
        names,
        config.image_suffix,
        config.mask_suffix,
        [header[0] for header in headers],
        digest.hexdigest(),
    )


def _names(folder: Path, suffix: str) -> list[str]:
    """Paths below the folder, without the suffix, of all files that have it."""
    found = [
        os.path.relpath(os.path.join(directory, file), folder).removesuffix(suffix)
        for directory, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.endswith(suffix) and not file.startswith(".")
    ]
    return sorted(found)


def _check_pair(image: Path, mask: Path) -> tuple[tuple[int, int], int, int]:
    """(height, width) of a pair, and the bytes of either file."""
    size, _ = _header(image)
    mask_size, mode = _header(mask)
    if mode not in MASK_MODES:
        raise UserError(
            f"{mask}: a mask of mode {mode}, not of one channel; class numbers are needed (the full ADE20K's _seg.png "
            "files are none: get ADEChallengeData2016.zip)"
        )
    if size != mask_size:
        raise UserError(
            f"{mask}: the mask is {mask_size[1]}x{mask_size[0]} pixels and {image} is {size[1]}x{size[0]} (upright); "
            "they must agree, annotate or resize one of them again"
        )
    return size, image.stat().st_size, mask.stat().st_size


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """(height, width) of the upright image, and Pillow's mode, without decoding it."""
    try:
        with Image.open(path) as file:
            turned = "exif" in file.info and file.getexif().get(EXIF_ORIENTATION, 1) >= 5
            size = file.size if turned else file.size[::-1]
            return size, file.mode
    except DECODE_ERRORS as error:
        reason = str(error).replace("\n", " ")
        raise UserError(f"{path}: not a readable image ({reason}); fetch it again or take the pair out") from None


def class_names(config: DataConfig) -> list[str]:
    """One name per class; of a file with columns apart by tabs the last."""
    if config.class_names is None:
        if config.num_classes != 150:
            return [f"class {i}" for i in range(config.num_classes)]
        from mmseg.utils import ade_classes

        return [name.strip() for name in ade_classes()]
    path = Path(config.class_names).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} (data.class_names) cannot be read ({error}); give a text file") from None
    names = [line.rsplit("\t", 1)[-1].strip() for line in lines if line.strip()]
    if len(names) != config.num_classes:
        raise UserError(
            f"{path} (data.class_names) has {len(names)} names and data.num_classes is {config.num_classes}; "
            "give one line per class"
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path} (data.class_names) has {repeated[0]!r} more than once; names must differ")
    return names


class Labels:
    """Mask values -> classes 0 .. K-1 or IGNORE, by a table of all 16-bit values."""

    def __init__(self, config: DataConfig) -> None:
        first = 1 if config.reduce_zero_label else 0
        self.allowed = f"{first}..{first + config.num_classes - 1}"
        table = np.full(65536, _OUTSIDE, dtype=np.int16)
        table[first : first + config.num_classes] = np.arange(config.num_classes)
        ignored = {0} if config.reduce_zero_label else set()
        ignored |= set() if config.ignore_value is None else {config.ignore_value}
        self.ignored = sorted(ignored)
        table[self.ignored] = IGNORE
        self.table = table

    def read(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        """A mask file as int16 (height, width); ImageError names the first value that is no class."""
        try:
            with Image.open(path) as file:
                values = np.asarray(file)
        except DECODE_ERRORS as error:
            reason = str(error).replace("\n", " ")
            raise UndecodableImageError(f"{path}: truncated or corrupt mask ({reason}); fetch it again") from None
        if values.shape != size:
            raise ImageError(f"{path}: the mask is no longer {size[1]}x{size[0]}; restart after changing the data")
        if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > 65535):
            self._reject(path, values, (values < 0) | (values > 65535))
        label = self.table[values.astype(np.uint16, copy=False)]
        outside = label == _OUTSIDE
        if outside.any():
            self._reject(path, values, outside)
        return label

    def _reject(self, path: Path, values: np.ndarray, outside: np.ndarray) -> None:
        row, column = (int(i) for i in np.argwhere(outside)[0])
        ignored = f" or ignored ({', '.join(map(str, self.ignored))})" if self.ignored else ""
        raise ImageError(
            f"{path}: value {int(values[row, column])} at row {row}, column {column}; values must be {self.allowed}"
            f"{ignored}: set data.num_classes, data.ignore_value and data.reduce_zero_label to fit the masks"
        )


class _Segmentation(ImageDataset[tuple[np.ndarray, np.ndarray]]):
    """What both datasets share: which pairs, and how they are read."""

    def __init__(self, pairs: Pairs, config: DataConfig, subset: int | None) -> None:
        super().__init__(pairs.image_folder, choose_subset(pairs.names, subset), config.on_bad_image)
        self.pairs = pairs
        self.config = config
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


class Ade20kTrain(_Segmentation):
    """Augmented training samples, keyed by (epoch, index).

    A sample is {"image": uint8 (3, h, w) RGB, "label": int16 (h, w), "size": original (height, width), "file_name",
    "skipped"}; h and w are at most `image_size`.
    """

    def __init__(self, pairs: Pairs, config: DataConfig, *, seed: int, subset: int | None = None) -> None:
        super().__init__(pairs, config, subset)
        self.seed = seed

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
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
    def collate(samples: list[dict[str, Any]]) -> Batch:
        """Lists of what the samples hold, since the crops may differ in size."""
        return collate(samples) | {
            "images": [sample["image"] for sample in samples],
            "labels": [sample["label"] for sample in samples],
        }


class Ade20kEval(_Segmentation):
    """All pairs, keyed by int.

    A sample is one of Ade20kTrain with the label at its original size and, instead of an image, "views": one uint8
    (3, h, w) per entry of `eval.ratios`. The views are None when the pair cannot be decoded and may be skipped.
    """

    def __init__(self, pairs: Pairs, config: Ade20kConfig, *, subset: int | None = None) -> None:
        super().__init__(pairs, config.data, subset)
        self.ratios = config.eval.ratios

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.file_name(index)
        sample: dict[str, Any] = {"size": self.size(index), "file_name": name}
        pair = self.read_or_skip(index)
        if pair is None:
            return sample | {"views": None, "label": None, "skipped": [name]}
        image, label = pair
        views = [to_tensor(resize_for_evaluation(image, self.config, ratio)) for ratio in self.ratios]
        return sample | {"views": views, "label": torch.from_numpy(label), "skipped": []}

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> Batch:
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
