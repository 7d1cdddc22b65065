"""What every layout gives: a listing of each split, and the checks of numbers and files that they share."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mae_transfer.data.identity import identify, known_names
from mae_transfer.data.names import Names
from mae_transfer.errors import UserError

SPLITS = ("train", "val")

EXPECTED = {
    "folder": "train/<class>/ and val/<class>/ with images",
    "imagenet": "train/<wnid>/ and val/<wnid>/ with JPEGs",
    "inat2017": "train2017.json, val2017.json and train_val_images/, as the archives unpack",
    "inat2018": "train2018.json, val2018.json and train_val2018/, as the archives unpack",
    "inat2019": "train2019.json, val2019.json and train_val2019/, as the archives unpack",
    "inat2021": "train.json, val.json, train/ and val/, as the archives unpack",
    "places365": "places365_train_standard.txt, places365_val.txt, categories_places365.txt and data_256/ + val_256/ "
    "or data_large/ + val_large/, or train/<class>/ and val/<class>/",
    "places205": "trainvalsplit_places205/{train,val}_places205.csv and data/vision/torralba/deeplearning/images256/",
}
"""Task -> what its folder holds, for messages."""


@dataclass(frozen=True)
class Listing:
    """The images of a split: paths relative to `root`, and int64 labels (n,) in 0 .. K-1."""

    root: Path
    names: Names
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def identity(self, indices: np.ndarray) -> str:
        """Of the images at these indices, in order, with their labels (`data/identity.py`)."""
        if len(indices) == len(self):
            return identify(self.root, self.names, self.labels)
        return identify(self.root, Names(self.names[i] for i in indices.tolist()), self.labels[indices])


@dataclass(frozen=True)
class ImageSet:
    """Both splits of a data set whose files are all there."""

    train: Listing
    val: Listing
    class_names: list[str]
    warnings: list[str] = field(default_factory=list)

    def names_fingerprint(self) -> str:
        """SHA-256 of all names, labels and classes; not of where the set lies nor of the pixels."""
        about = self.val.names.digest() + self.val.labels.tobytes() + json.dumps(self.class_names).encode()
        name = hashlib.sha256(about).hexdigest()
        return known_names(self.train.names, self.train.labels, name, self._names_fingerprint)

    def _names_fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for split in (self.train, self.val):
            for name, label in zip(split.names, split.labels.tolist(), strict=True):
                digest.update(f"{name}\t{label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


Found = tuple[Listing, Listing, list[str], list[str]]
"""Training listing, validation listing, class names, warnings."""


def check_numbers(path: Path, numbers: list[Any]) -> None:
    """Raise UserError unless the class numbers, each once, are 0 .. K-1."""
    strange = next((number for number in numbers if type(number) is not int), None)
    if strange is not None:
        raise UserError(f"{path}: class number {strange!r} is not a whole number")
    ordered = sorted(numbers)
    if ordered == list(range(len(ordered))) and ordered:
        return
    if not ordered:
        what = "there are none"
    elif ordered[0] < 0:
        what = f"there is {ordered[0]}"
    else:
        first = next(place for place, number in enumerate(ordered) if place != number)
        missing = ordered[-1] + 1 - len(ordered)
        what = f"{missing} numbers below the highest, {ordered[-1]}, are missing, such as {first}"
    raise UserError(f"{path}: class numbers must be 0 .. K-1 without gaps; {what}")


def make_listing(
    path: Path, folder: Path, rows: list[tuple[str, int]], classes: Sequence[str]
) -> tuple[Listing, list[str]]:
    """The rows of a file as a listing below a folder, and warnings; UserError for labels beyond the classes, and for a
    file with two."""
    labels = np.array([label for _, label in rows], dtype=np.int64)
    beyond = np.flatnonzero(labels >= len(classes))
    if len(beyond):
        name, label = rows[int(beyond[0])]
        raise UserError(f"{path}: {name} has class {label}, but the classes are 0 .. {len(classes) - 1}")
    files = [name.lstrip("/") for name, _ in rows]
    return Listing(folder, Names(files), labels), check_repeats(path, files, hashes_of(files), labels, classes)


def hashes_of(files: Sequence[str]) -> np.ndarray:
    """Int64, of this process alone: millions of names in little memory."""
    return np.fromiter(map(hash, files), dtype=np.int64, count=len(files))


def check_repeats(
    path: Path,
    files: Sequence[str],
    keys: np.ndarray,
    labels: np.ndarray,
    classes: Mapping[Any, str] | Sequence[str],
) -> list[str]:
    """A warning if files are in the list of this path more than once; UserError for one with two classes.

    Args:
        keys: `hashes_of` the files.
    """
    order = np.argsort(keys, kind="stable")
    again = np.diff(keys[order]) == 0
    unlike = np.flatnonzero(again & (np.diff(labels[order]) != 0))
    if len(unlike):
        first, second = order[unlike[0] : unlike[0] + 2].tolist()
        both = " and ".join(classes[int(labels[i])] for i in (first, second))
        raise UserError(f"{path}: {files[first]} has the categories {both} ({len(unlike)} such images); leave it one")
    if not again.any():
        return []
    name = files[int(order[again.argmax()])]
    return [f"{path}: {name} is there more than once ({again.sum()} entries repeat an image), and each entry counts"]


def check_files(listing: Listing) -> None:
    """UserError unless every file is there. Reads each folder once instead of asking for each file."""
    folders: dict[str, set[str]] = {}
    missing = []
    for name in listing.names:
        folder, file = os.path.split(name)
        if folder not in folders:
            try:
                folders[folder] = set(os.listdir(listing.root / folder))
            except OSError:
                folders[folder] = set()
        if file not in folders[folder]:
            missing.append(name)
    if missing:
        hint = "write its path with / instead of \\" if "\\" in missing[0] else "correct the list"
        raise UserError(
            f"{listing.root / missing[0]} is not there ({len(missing)} of {len(listing)} images are missing); unpack "
            f"the images, or {hint}"
        )
