"""A data set on disk -> the paths and labels of its training and validation images; every check is made here.

    imagenet, folder          train/<class>/..., val/<class>/... ; a class is a folder, its images at any depth
    inat2017/2018/2019        train<year>.json, val<year>.json (COCO style), images where `file_name` says
    inat2021                  train.json, val.json, likewise
    places365                 places365_train_standard.txt, places365_val.txt, categories_places365.txt beside
                              data_large/ + val_large/ or data_256/ + val_256/ (torchvision's data_*_standard too), or
                              the easy directory structure, which is train/<class>, val/<class>
    places205                 trainvalsplit_places205/{train,val}_places205.csv beside data/vision/torralba/
                              deeplearning/images256/
    any                       data.train_list and data.val_list: CSV or Parquet with the columns path, label

Classes are numbered as the set's own files do; folders and names by sorted name, as torchvision's ImageFolder. A class
of the validation set is found by name, so that a missing folder cannot shift the labels.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd

from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.config import DataConfig

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""torchvision's IMG_EXTENSIONS."""
SPLITS = ("train", "val")


class Names(Sequence[str]):
    """Strings packed into one block of bytes: millions of paths that loader processes share, since a list of `str`
    would be copied page by page in each of them as reference counts change."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *(len(name) for name in encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])


@dataclass(frozen=True)
class Listing:
    """The images of a split: paths relative to `root`, and int64 labels (n,) in 0 .. K-1."""

    root: Path
    names: Names
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class ImageSet:
    """Both splits of a data set whose files are all there."""

    train: Listing
    val: Listing
    class_names: list[str]
    warnings: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all names, labels and classes; not of where the set lies nor of the pixels."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for split in (self.train, self.val):
            for name, label in zip(split.names, split.labels.tolist(), strict=True):
                digest.update(f"{name}\t{label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def find_images(task: str, data: DataConfig) -> ImageSet:
    """The images of a task; UserError, one line, for anything that is missing or does not fit."""
    if (data.train_list is None) != (data.val_list is None):
        raise UserError("give both data.train_list and data.val_list, or neither")
    if data.train_list is not None and data.val_list is not None:
        return _checked(*from_lists(Path(data.train_list), Path(data.val_list), data.root))
    if data.root is None:
        raise UserError(
            f"no data: give --data with {EXPECTED[task]}, or CSV or Parquet by data.train_list= and data.val_list="
        )
    root = Path(data.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data folder {root} (--data) is not there; expected is {EXPECTED[task]}")
    if task.startswith("inat"):
        return _checked(*from_inat(root, task))
    if task.startswith("places") and not all((root / split).is_dir() for split in SPLITS):
        return _checked(*(from_places365(root, data.places_size) if task == "places365" else from_places205(root)))
    return _checked(*from_folders(root, task))


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

Found = tuple[Listing, Listing, list[str], list[str]]
"""Training listing, validation listing, class names, warnings."""


# --- one folder a class ---------------------------------------------------------------------------------------------


def from_folders(root: Path, task: str) -> Found:
    folders = {split: root / split for split in SPLITS}
    for split, folder in folders.items():
        if not folder.is_dir():
            there = ", ".join(sorted(entry.name for entry in os.scandir(root))[:8]) or "nothing"
            raise UserError(f"{root} has no folder {split}/ (it has: {there}); expected is {EXPECTED[task]}")
    class_names = class_folders(folders["train"])
    known = {name: label for label, name in enumerate(class_names)}
    warnings: list[str] = []
    listings = [list_folders(folder, known, warnings) for folder in folders.values()]
    return listings[0], listings[1], class_names, warnings


def class_folders(folder: Path) -> list[str]:
    """The sorted names of the class folders; hidden ones are none."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        flat = next((entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(IMAGE_SUFFIXES)), None)
        hint = f"it has images without a class, such as {flat}: sort them into class folders" if flat else "it is empty"
        raise UserError(f"{folder} has no class folders; {hint}")
    return names


def list_folders(folder: Path, known: dict[str, int], warnings: list[str]) -> Listing:
    """The images of the class folders in a folder, each of a known class; adds to the warnings."""
    strangers = [name for name in class_folders(folder) if name not in known]
    if strangers:
        raise UserError(
            f"{folder}: class folder {strangers[0]} is no class of the training set ({len(strangers)} such); both need "
            "the same class names"
        )
    names: list[str] = []
    labels: list[int] = []
    other: list[str] = []
    for class_name in class_folders(folder):
        files = image_files(folder / class_name, other)
        if not files:
            raise UserError(
                f"class folder {folder / class_name} has no image ({', '.join(IMAGE_SUFFIXES[:4])}, ...); fill it or "
                "remove it"
            )
        names += [f"{class_name}/{file}" for file in files]
        labels += [known[class_name]] * len(files)
    if other:
        warnings.append(
            f"{folder}: {len(other)} files that are no images by their suffix are left out, e.g. {other[0]}"
        )
    return Listing(folder, Names(names), np.array(labels, dtype=np.int64))


def image_files(folder: Path, other: list[str]) -> list[str]:
    """Sorted paths, relative to the folder, of the images at any depth; files of other kinds are added to `other`."""
    found = []
    for place, subfolders, files in os.walk(folder, followlinks=True):
        subfolders.sort()
        for file in files:
            path = os.path.join(place, file)
            if file.lower().endswith(IMAGE_SUFFIXES):
                found.append(os.path.relpath(path, folder))
            elif not file.startswith("."):
                other.append(path)
    return sorted(found)


# --- iNaturalist ----------------------------------------------------------------------------------------------------

_KEPT = frozenset({"images", "annotations", "categories", "id", "file_name", "image_id", "category_id", "name"})


def from_inat(root: Path, task: str) -> Found:
    year = "" if task == "inat2021" else task.removeprefix("inat")
    (train, classes), (val, val_classes) = (_read_inat(root, f"{split}{year}.json", task) for split in SPLITS)
    if classes != val_classes:
        raise UserError(
            f"{root}: train{year}.json and val{year}.json have different categories; take both from one year"
        )
    return train, val, classes, []


def _read_inat(root: Path, file: str, task: str) -> tuple[Listing, list[str]]:
    path = root / file
    if not path.is_file():
        raise UserError(f"{path} is not there; expected is {EXPECTED[task]}")
    try:
        # The files hold licences and authors by the gigabyte: what is not used goes as soon as it is parsed.
        content = json.loads(
            path.read_bytes(), object_hook=lambda entry: {key: entry[key] for key in _KEPT & entry.keys()}
        )
        categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        images = {entry["id"]: entry["file_name"] for entry in content["images"]}
        pairs = [(entry["image_id"], entry["category_id"]) for entry in content["annotations"]]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); unpack it again") from None
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: an entry lacks {error}; needed are images, annotations and categories as in COCO"
        ) from None
    _check_numbers(path, list(categories))
    labels: dict[Any, int] = {}
    for image, category in pairs:
        if image not in images:
            raise UserError(f"{path}: an annotation is of image id {image}, which is not among its images")
        if category not in categories:
            raise UserError(
                f"{path}: the annotation of {images[image]} has category_id {category}, which is no category"
            )
        if image in labels:
            raise UserError(f"{path}: {images[image]} has more than one annotation; an image has one class here")
        labels[image] = category
    if len(labels) < len(images):
        bare = next(image for image in images if image not in labels)
        raise UserError(f"{path}: {images[bare]} has no annotation ({len(images) - len(labels)} such images)")
    order = np.array([labels[image] for image in images], dtype=np.int64)
    return Listing(root, Names(images.values()), order), [categories[i] for i in range(len(categories))]


def _check_numbers(path: Path, numbers: list[Any]) -> None:
    """Class numbers have to be 0 .. K-1."""
    if any(type(number) is not int for number in numbers):
        raise UserError(
            f"{path}: class number {next(n for n in numbers if type(n) is not int)!r} is not a whole number"
        )
    missing = sorted(set(range(max(numbers, default=-1) + 1)) - set(numbers))
    if missing or min(numbers, default=0) < 0 or not numbers:
        what = (
            f"{len(missing)} numbers below the highest, {max(numbers)}, are missing, such as {missing[0]}"
            if missing
            else ("there are none" if not numbers else f"there is {min(numbers)}")
        )
        raise UserError(f"{path}: class numbers must be 0 .. K-1 without gaps; {what}")


# --- Places ---------------------------------------------------------------------------------------------------------


def from_places365(root: Path, size: str | None) -> Found:
    sizes = {"large": "large", "small": "256"}
    folders = {
        name: (
            next((root / f"data_{px}{end}" for end in ("", "_standard") if (root / f"data_{px}{end}").is_dir()), None)
        )
        for name, px in sizes.items()
    }
    there = [name for name, folder in folders.items() if folder is not None and (root / f"val_{sizes[name]}").is_dir()]
    if size is None and len(there) > 1:
        raise UserError(
            f"{root} has large and small images; choose with data.places_size=large or data.places_size=small"
        )
    size = size or (there[0] if there else None)
    if size not in there:
        raise UserError(
            f"{root} has no {size or 'large or small'} Places365 images; expected is {EXPECTED['places365']}"
        )
    classes_file = root / "categories_places365.txt"
    rows = _read_pairs(classes_file, "places365")
    _check_numbers(classes_file, [label for _, label in rows])
    names = {label: name.strip("/") for name, label in rows}
    class_names = [names[i] for i in range(len(names))]
    listings = []
    for file, folder in (
        ("places365_train_standard.txt", folders[size]),
        ("places365_val.txt", root / f"val_{sizes[size]}"),
    ):
        assert folder is not None
        # with the folder's name, so that large and small images are not the same data
        pairs = [(f"{folder.name}/{name.lstrip('/')}", label) for name, label in _read_pairs(root / file, "places365")]
        listings.append(_listing(root / file, root, pairs, len(class_names)))
    return listings[0], listings[1], class_names, []


def from_places205(root: Path) -> Found:
    images = root / "data/vision/torralba/deeplearning/images256"
    if not images.is_dir():
        raise UserError(f"folder {images} is not there; expected is {EXPECTED['places205']}")
    files = {}
    for split in SPLITS:
        places = [root / folder / f"{split}_places205.csv" for folder in ("trainvalsplit_places205", ".")]
        files[split] = next((place for place in places if place.is_file()), places[0])
    rows = {split: _read_pairs(file, "places205") for split, file in files.items()}
    # The archives hold no list of names: the class is the path between the images' folder and the file.
    names = {label: str(Path(name).parent) for name, label in rows["train"]}
    _check_numbers(files["train"], list(names))
    listings = [_listing(files[split], images, rows[split], len(names)) for split in SPLITS]
    return listings[0], listings[1], [names[i] for i in range(len(names))], []


def _read_pairs(path: Path, task: str) -> list[tuple[str, int]]:
    """Lines of a name and a number."""
    if not path.is_file():
        raise UserError(f"{path} is not there; expected is {EXPECTED[task]}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdigit():
            raise UserError(f"{path} line {number}: '{line[:80]}' is not a name, a blank and a class number")
        rows.append((name, int(label)))
    return rows


def _listing(path: Path, folder: Path, rows: list[tuple[str, int]], num_classes: int) -> Listing:
    """The rows of a file as a listing below a folder; labels beyond the classes are an error."""
    labels = np.array([label for _, label in rows], dtype=np.int64)
    beyond = np.flatnonzero(labels >= num_classes)
    if len(beyond):
        name, label = rows[int(beyond[0])]
        raise UserError(f"{path}: {name} has class {label}, but the classes are 0 .. {num_classes - 1}")
    return Listing(folder, Names(name.lstrip("/") for name, _ in rows), labels)


# --- lists ----------------------------------------------------------------------------------------------------------


def from_lists(train: Path, val: Path, root: str | None) -> Found:
    paths = (train.expanduser(), val.expanduser())
    tables = [_read_list(path) for path in paths]
    are_numbers = {pd.api.types.is_integer_dtype(table["label"]) for table in tables}
    if len(are_numbers) > 1:
        raise UserError(f"{train} and {val}: one has labels that are numbers and one has names; use one kind")
    known = tables[0]["label"].unique()
    if are_numbers == {True}:
        _check_numbers(train, sorted(int(label) for label in known))
        class_names = [str(i) for i in range(len(known))]
    else:
        class_names = sorted(str(label) for label in known)
    numbers = {name: label for label, name in enumerate(class_names)}
    listings = []
    for path, table in zip(paths, tables, strict=True):
        labels = table["label"].astype(str).map(numbers)
        if labels.isna().any():
            row = table.iloc[int(np.flatnonzero(labels.isna())[0])]
            raise UserError(f"{path}: {row['path']} has label {row['label']}, which {train} has not")
        folder = Path(root).expanduser() if root is not None else path.parent
        listings.append(Listing(folder, Names(table["path"].astype(str)), labels.to_numpy(dtype=np.int64)))
    return listings[0], listings[1], class_names, []


def _read_list(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path} is not there; data.train_list and data.val_list are CSV or Parquet files")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (OSError, ValueError) as error:  # pandas' and pyarrow's parsing errors are ValueErrors
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); it must be CSV or .parquet") from None
    missing = [column for column in ("path", "label") if column not in table.columns]
    if missing:
        raise UserError(f"{path} has no column {missing[0]} (it has {', '.join(map(str, table.columns))})")
    empty = table["path"].isna() | table["label"].isna()
    if empty.any():
        raise UserError(f"{path}: row {int(np.flatnonzero(empty)[0]) + 1} has no path or no label")
    if table.empty:
        raise UserError(f"{path} has no rows")
    return table[["path", "label"]]


def _read_csv(path: Path) -> pd.DataFrame:
    """Only an empty field is missing: NA, None and null are names that a class can have."""
    return pd.read_csv(path, dtype={"path": str}, keep_default_na=False, na_values=[""])


# --- what holds for all ---------------------------------------------------------------------------------------------


def _checked(train: Listing, val: Listing, class_names: list[str], warnings: list[str]) -> ImageSet:
    if len(class_names) < 2:
        raise UserError(f"{train.root}: there is one class only, {class_names[0]}; a classifier needs two")
    for split, listing in zip(SPLITS, (train, val), strict=True):
        if not len(listing):
            raise UserError(f"{listing.root}: the {split} split has no images")
        check_files(listing)
        bare = np.flatnonzero(np.bincount(listing.labels, minlength=len(class_names)) == 0)
        if len(bare):
            warnings.append(
                f"{len(bare)} of {len(class_names)} classes have no {split} image, such as {class_names[bare[0]]}"
            )
    return ImageSet(train, val, class_names, warnings)


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
        raise UserError(
            f"{listing.root / missing[0]} is not there ({len(missing)} of {len(listing)} images are missing); unpack "
            "the images, or correct the list"
        )
