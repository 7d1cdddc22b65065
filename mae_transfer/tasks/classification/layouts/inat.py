"""iNaturalist: COCO-style files of images, annotations and categories, each read once and kept in the cache."""

from array import array
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import cast

import numpy as np

from mae_transfer.data import json_stream, names
from mae_transfer.data.index_cache import Index, cached_index
from mae_transfer.data.json_stream import read_in_blocks
from mae_transfer.data.names import Names
from mae_transfer.errors import UserError
from mae_transfer.files import JSON
from mae_transfer.tasks.classification.layouts import listing
from mae_transfer.tasks.classification.layouts.listing import (
    EXPECTED,
    SPLITS,
    Found,
    Listing,
    check_numbers,
    check_repeats,
    hashes_of,
)

SOURCES = [__file__, *(module.__file__ for module in (json_stream, names, listing))]


def from_inat(root: Path, task: str) -> Found:
    year = "" if task == "inat2021" else task.removeprefix("inat")
    splits = (_read_inat(root, f"{split}{year}.json", task) for split in SPLITS)
    (train, classes, of_train), (val, val_classes, of_val) = splits
    if classes != val_classes:
        raise UserError(
            f"{root}: train{year}.json and val{year}.json have different categories; take both from one year"
        )
    return train, val, classes, of_train + of_val


def _read_inat(root: Path, file: str, task: str) -> tuple[Listing, list[str], list[str]]:
    """The listing, the classes, and warnings."""
    path = root / file
    if not path.is_file():
        raise UserError(f"{path} is not there; expected is {EXPECTED[task]}")
    try:
        index = cached_index(path, "inat", SOURCES, lambda: _index(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); unpack it again") from None
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: an entry lacks {error}; needed are images, annotations and categories as in COCO"
        ) from None
    found = index.arrays
    files = Names.packed(found["name_bytes"], found["name_ends"])
    classes, repeats = (cast("list[str]", index.about[key]) for key in ("classes", "repeats"))
    return Listing(root, files, found["labels"]), classes, [f"{path}: {line}" for line in repeats]


def _index(path: Path) -> Index:
    content = _Content(path)
    take = {"categories": content.categories, "images": content.images, "annotations": content.annotations}
    data, _ = read_in_blocks(path, take)
    for key in take:
        if key not in content.given:
            raise TypeError(f"a list {key!r}") if isinstance(data, dict) and key in data else KeyError(key)
    return content.index()


class _Numbers:
    """Values of a column, as 64-bit numbers as long as they are such."""

    def __init__(self) -> None:
        self.values: array[int] | list[JSON] = array("q")

    def add(self, values: list[JSON]) -> None:
        if isinstance(self.values, array):
            try:
                if set(map(type, values)) <= {int}:
                    self.values.extend(array("q", cast("list[int]", values)))
                    return
            except OverflowError:
                pass
            self.values = list(self.values)
        self.values.extend(values)


class _Content:
    """What is used of the entries, of which the real files have millions, with licences and authors by the gigabyte."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.given: set[str] = set()
        self.ids, self.owners, self.owned = _Numbers(), _Numbers(), _Numbers()
        self.names: list[Names] = []
        self.hashes = [np.zeros(0, np.int64)]
        self.classes: list[tuple[JSON, str]] = []

    def categories(self, block: list[JSON]) -> None:
        self.given.add("categories")
        self.classes += [(row["id"], str(row["name"])) for row in _rows(block)]

    def images(self, block: list[JSON]) -> None:
        self.given.add("images")
        rows = _rows(block)
        self.ids.add(list(map(itemgetter("id"), rows)))
        files = list(map(itemgetter("file_name"), rows))
        if not set(map(type, files)) <= {str} or not all(files):
            strange = next(name for name in files if type(name) is not str or not name)
            raise UserError(f"{self.path}: the file_name {strange!r} of an image is no path")
        try:
            self.names.append(Names(cast("list[str]", files)))
            self.hashes.append(hashes_of(cast("list[str]", files)))
        except UnicodeEncodeError as error:
            raise UserError(f"{self.path}: the file_name {error.object!r} of an image is no path") from None

    def annotations(self, block: list[JSON]) -> None:
        self.given.add("annotations")
        rows = _rows(block)
        self.owners.add(list(map(itemgetter("image_id"), rows)))
        self.owned.add(list(map(itemgetter("category_id"), rows)))

    def index(self) -> Index:
        """One class for each image, or UserError."""
        path = self.path
        _check_unique(path, "category", [number for number, _ in self.classes])
        _check_unique(path, "image", self.ids.values)
        check_numbers(path, [number for number, _ in self.classes])
        classes = dict(self.classes)
        contents, ends = zip(*(part.arrays for part in self.names), strict=True) if self.names else ((), ())
        name_bytes = np.concatenate([np.zeros(0, np.uint8), *contents])
        name_ends = np.r_[0, np.cumsum(np.concatenate([np.zeros(0, np.int64), *map(np.diff, ends)]))].astype(np.int64)
        files = Names.packed(name_bytes, name_ends)
        places = _places(self.ids.values, self.owners.values)
        strange = np.flatnonzero(places < 0)
        if len(strange):
            image = self.owners.values[int(strange[0])]
            raise UserError(f"{path}: an annotation is of image id {image}, which is not among its images")
        labels = self.owned.values
        if not isinstance(labels, array) or (len(labels) and not 0 <= min(labels) <= max(labels) < len(classes)):
            at, category = next(
                (i, value) for i, value in enumerate(labels) if type(value) is not int or not 0 <= value < len(classes)
            )
            name = files[int(places[at])]
            raise UserError(f"{path}: the annotation of {name} has category_id {category}, which is no category")
        counts = np.bincount(places, minlength=len(files))
        if (counts > 1).any():
            name = files[int((counts > 1).argmax())]
            raise UserError(f"{path}: {name} has more than one annotation; an image has one class here")
        if (counts < 1).any():
            name = files[int((counts < 1).argmax())]
            raise UserError(f"{path}: {name} has no annotation ({(counts < 1).sum()} such images)")
        of_images = np.zeros(len(files), dtype=np.int64)
        of_images[places] = np.array(labels, dtype=np.int64)
        repeats = check_repeats(path, files, np.concatenate(self.hashes), of_images, classes)
        repeats = [line.removeprefix(f"{path}: ") for line in repeats]
        about: dict[str, JSON] = {"classes": [classes[i] for i in range(len(classes))], "repeats": [*repeats]}
        return Index(about, {"name_bytes": name_bytes, "name_ends": name_ends, "labels": of_images})


def _rows(block: list[JSON]) -> list[dict[str, JSON]]:
    if not set(map(type, block)) <= {dict}:
        strange = next(row for row in block if type(row) is not dict)
        raise TypeError(f"its keys: it is {strange!r:.40}")
    return cast("list[dict[str, JSON]]", block)


def _places(ids: Sequence[JSON], wanted: Sequence[JSON]) -> np.ndarray:
    """int64: where the wanted ids are among the `ids`; -1 for those that are not, or are neither number nor text."""
    if isinstance(ids, array) and isinstance(wanted, array) and len(ids):
        numbers, looked = np.array(ids), np.array(wanted)
        order = np.argsort(numbers, kind="stable")
        found = order[np.minimum(np.searchsorted(numbers, looked, sorter=order), len(order) - 1)]
        return np.where(numbers[found] == looked, found, -1)
    place = {i: at for at, i in enumerate(ids)}
    return np.array([place.get(i, -1) if type(i) in (int, str) else -1 for i in wanted], dtype=np.int64)


def _check_unique(path: Path, kind: str, ids: Sequence[JSON]) -> None:
    """UserError for an id that occurs twice; TypeError for one that is a list or an object."""
    if isinstance(ids, array):
        ordered = np.sort(np.array(ids))
        repeated = int(np.count_nonzero(ordered[1:] == ordered[:-1]))
    else:
        repeated = len(ids) - len(set(ids))
    if repeated:
        again = next(key for key, count in Counter(ids).items() if count > 1)
        raise UserError(f"{path}: {kind} id {again} occurs more than once ({repeated} such entries)")
