"""Images to pre-train on, from folders or tar shards, as samples with the engine's keys.

    root/train/..., root/val/...    training and val images at any depth
    root/...                        training images at any depth, no val images (or those of data.val_root)
    *.tar                           WebDataset shards, see shards.py

Images have labels when all lie in class folders (root[/train]/<class>/...) of the same names in both splits, or when
all samples of the shards have one. Files are decoded as in image classification, without EXIF rotation.
"""

import hashlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mae_transfer.data.dataset import ImageDataset, Span
from mae_transfer.data.decode import decode, read_bytes
from mae_transfer.data.identity import identify, known_names
from mae_transfer.data.images import ImageError, UndecodableImageError
from mae_transfer.data.names import IMAGE_SUFFIXES, Names, walk_files
from mae_transfer.data.synthetic.classification import cached_classification
from mae_transfer.engine.task import SampleKey
from mae_transfer.errors import UserError
from mae_transfer.files import user_path
from mae_transfer.pretrain.config import DataConfig
from mae_transfer.pretrain.shards import find_shards, is_shards, open_shards
from mae_transfer.pretrain.views import Views, to_tensor

ARRAYS = ".npy"
_EVALUATION = 1
"""Last number of the seed of an evaluated image's generator. The run's seed and the epoch are not in it: masks of val
images stay the same."""

Batch = dict[str, Any]


class Source(Protocol):
    """The images of a split: `names` for messages, bytes to decode, `labels` int64 (n,) or None."""

    @property
    def names(self) -> Names: ...

    @property
    def where(self) -> Path:
        """The folder that names are relative to."""
        ...

    @property
    def labels(self) -> np.ndarray | None: ...

    def names_fingerprint(self) -> str: ...

    def identity(self, indices: np.ndarray) -> str:
        """Of the images at these indices, in order, with their labels (`data/identity.py`)."""
        ...

    def __len__(self) -> int: ...

    def span(self, index: int) -> Span:
        """Where the bytes of an image lie."""
        ...

    def read(self, index: int) -> np.ndarray:
        """The bytes of an image file, uint8 (n,); ImageError if they cannot be had."""
        ...


@dataclass(frozen=True)
class Folder:
    """Image files under a folder, by their paths relative to it."""

    root: str
    names: Names
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def span(self, index: int) -> Span:
        return os.path.join(self.root, self.names[index]), 0, None

    def read(self, index: int) -> np.ndarray:
        return read_bytes(os.path.join(self.root, self.names[index]))

    @property
    def where(self) -> Path:
        return Path(self.root)

    def identity(self, indices: np.ndarray) -> str:
        whole = len(indices) == len(self)
        names = self.names if whole else Names(self.names[i] for i in indices.tolist())
        return identify(self.root, names, None if self.labels is None else self.labels[indices])

    def names_fingerprint(self) -> str:
        """SHA-256 of names and labels. It leaves out the pixels, and where the folder lies."""
        return known_names(self.names, self.labels, "pre-training", self._names_fingerprint)

    def _names_fingerprint(self) -> str:
        digest = hashlib.sha256()
        for index, name in enumerate(self.names):
            label = "" if self.labels is None else int(self.labels[index])
            digest.update(f"{name}\t{label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageSet:
    train: Source
    val: Source | None
    num_classes: int | None
    """None without labels."""
    warnings: list[str] = field(default_factory=list)

    def names_fingerprint(self) -> str:
        """SHA-256 of names and labels, and in shards of sizes, of both splits."""
        both = f"{self.train.names_fingerprint()} {self.val.names_fingerprint() if self.val else None}"
        return hashlib.sha256(both.encode()).hexdigest()


def find_images(data: DataConfig) -> ImageSet:
    """The images of a configuration; UserError, one line, for anything that is missing or does not fit."""
    if data.root is None:
        raise UserError("no data: give --data a folder of images, with or without train/ and val/, or .tar shards")
    if data.root == "synthetic":
        if data.channels not in (1, 3):
            raise UserError(f"data.channels={data.channels}: the generated images are RGB; give --data .npy files")
        return find_images(data.model_copy(update={"root": str(cached_classification("folder"))}))
    root = user_path(data.root)
    if is_shards(data.root):
        train_shards, val_shards = find_shards(data.root, data.cache_gib)
        train: Source = open_shards(train_shards)
        val: Source | None = open_shards(val_shards) if val_shards else None
    else:
        if not root.is_dir():
            raise UserError(f"data folder {root} (--data) is not there; give a folder of images, or of .tar shards")
        split = (root / "train").is_dir()
        train = _list(root / "train" if split else root, data.channels)
        val = _list(root / "val", data.channels) if split and (root / "val").is_dir() else None
    if data.val_root is not None:
        val = _open_val(data.val_root, data)
    if isinstance(train, Folder):
        train, val, num_classes = _label(train, val)
    else:
        num_classes = None if train.labels is None else int(train.labels.max()) + 1
        if num_classes is not None and num_classes > len(train):
            raise UserError(
                f"{data.root}: the highest label is {num_classes - 1}, of {len(train)} images; number the classes from "
                "0 on without gaps"
            )
    if num_classes is not None and val is not None:
        if val.labels is None:
            num_classes = None
        elif val.labels.max() >= num_classes:
            raise UserError(
                f"{data.val_root or data.root}: a val image has the label {val.labels.max()}, which no training image "
                f"has; both need 0 to {num_classes - 1}"
            )
    warnings = [] if val is not None else ["no val images: nothing is evaluated; data.val_root=FOLDER names some"]
    return ImageSet(train, val, num_classes, warnings)


def _open_val(text: str, data: DataConfig) -> Source:
    if is_shards(text):
        return open_shards(find_shards(text, data.cache_gib)[0])
    folder = user_path(text)
    if not folder.is_dir():
        raise UserError(f"data.val_root={text} is not there; give a folder of images or .tar shards")
    return _list(folder, data.channels)


def _list(folder: Path, channels: int) -> Folder:
    """All images in a folder, at any depth, sorted; arrays where the number of channels is no picture's."""
    suffixes = (*IMAGE_SUFFIXES, ARRAYS) if channels in (1, 3) else (ARRAYS,)
    found = [
        path
        for path in walk_files(folder)
        if path.lower().endswith(suffixes) and not os.path.basename(path).startswith(".")
    ]
    if not found:
        raise UserError(f"{folder} has no images ({', '.join(suffixes[:4])}, ...), at any depth")
    return Folder(str(folder), Names(sorted(found)))


def _label(train: Folder, val: Source | None) -> tuple[Folder, Source | None, int | None]:
    """Labels by class folders, if all images of both splits lie in such."""
    classes = sorted({_class(name) for name in train.names})
    ids = {name: label for label, name in enumerate(classes)}
    if "" in ids or len(classes) < 2:
        return train, val, None
    if isinstance(val, Folder):
        if not {_class(name) for name in val.names} <= ids.keys():
            return train, val, None
        val = Folder(val.root, val.names, np.array([ids[_class(name)] for name in val.names]))
    return Folder(train.root, train.names, np.array([ids[_class(name)] for name in train.names])), val, len(classes)


def _class(name: str) -> str:
    return name.split(os.sep, 1)[0] if os.sep in name else ""


class PretrainImages(ImageDataset[Tensor]):
    """Samples of images `indices` of a source, keyed by (epoch, index) in training and by index in evaluation.

    A sample has what `Views` give, "label" (-1 without labels), "name" and "skipped". In training the next image stands
    in for one that cannot be decoded, whose name is then in "skipped". In evaluation "image" is None instead.
    """

    def __init__(self, source: Source, indices: np.ndarray, views: Views, data: DataConfig, *, seed: int) -> None:
        super().__init__(source.where, indices, data.on_bad_image)
        self.source, self.views, self.seed, self.channels = source, views, seed, data.channels

    @property
    def labels(self) -> np.ndarray | None:
        """int64 (n,), in the order of the data set."""
        return None if self.source.labels is None else self.source.labels[self.indices]

    def file_name(self, place: int) -> str:
        return self.source.names[int(self.indices[place])]

    def span(self, place: int) -> Span:
        return self.source.span(int(self.indices[place]))

    def read(self, place: int) -> Tensor:
        """uint8 (C, H, W); UndecodableImageError if the file holds no such image."""
        content, name = self.source.read(int(self.indices[place])), self.file_name(place)
        if name.lower().endswith(ARRAYS):
            return _decode_array(content, name, self.channels)
        return decode(content, name, grey=self.channels == 1)

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any]:
        if isinstance(key, int):
            return self._evaluated(key)
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        place, image, skipped = self.read_or_next(index)
        return self.views.train(image, rng) | self._about(place) | {"skipped": skipped}

    def _evaluated(self, index: int) -> dict[str, Any]:
        image = self.read_or_skip(index)
        if image is None:
            return {"image": None, **self._about(index), "skipped": [self.file_name(index)]}
        rng = np.random.default_rng((0, 0, int(self.indices[index]), _EVALUATION))
        return self.views.test(image, rng) | self._about(index) | {"skipped": []}

    def _about(self, index: int) -> dict[str, Any]:
        labels = self.source.labels
        return {"label": -1 if labels is None else int(labels[self.indices[index]]), "name": self.file_name(index)}

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> Batch:
        """{"images", "labels" int64 (B,), "names", "skipped"} and a stack of each other entry of the samples.

        Samples without an image are left out; a batch of such samples alone has no "images".
        """
        usable = [sample for sample in samples if sample["image"] is not None]
        batch: Batch = {
            "labels": torch.tensor([sample["label"] for sample in usable], dtype=torch.int64),
            "names": [sample["name"] for sample in usable],
            "skipped": [name for sample in samples for name in sample["skipped"]],
        }
        for key in usable[0] if usable else ():
            if key not in ("label", "name", "skipped"):
                stacked = torch.stack([to_tensor(sample[key]) for sample in usable])
                batch["images" if key == "image" else key] = stacked
        return batch


def _decode_array(content: np.ndarray, name: str, channels: int) -> Tensor:
    try:
        array = np.load(io.BytesIO(content.tobytes()), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UndecodableImageError(f"{name}: no readable .npy array ({error}); write it again") from None
    if array.ndim == 2 and channels == 1:
        array = array[:, :, None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != channels:
        raise ImageError(
            f"{name}: {array.dtype} {array.shape}, but data.channels={channels} asks for uint8 (H, W, {channels})"
        )
    return torch.from_numpy(array).permute(2, 0, 1)
