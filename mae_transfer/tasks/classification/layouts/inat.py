"""iNaturalist: COCO-style files of images, annotations and categories."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mae_transfer.data.names import Names
from mae_transfer.errors import UserError
from mae_transfer.files import parse_json
from mae_transfer.tasks.classification.layouts.listing import EXPECTED, SPLITS, Found, Listing, check_numbers

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
        content: Any = parse_json(path.read_bytes(), lambda entry: {key: entry[key] for key in _KEPT & entry.keys()})
        categories = _by_id(path, "category", [(entry["id"], str(entry["name"])) for entry in content["categories"]])
        images = _by_id(path, "image", [(entry["id"], entry["file_name"]) for entry in content["images"]])
        pairs = [(entry["image_id"], entry["category_id"]) for entry in content["annotations"]]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); unpack it again") from None
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: an entry lacks {error}; needed are images, annotations and categories as in COCO"
        ) from None
    check_numbers(path, list(categories))
    strange = [name for name in images.values() if type(name) is not str or not name]
    if strange:
        raise UserError(f"{path}: the file_name {strange[0]!r} of an image is no path")
    labels: dict[Any, int] = {}
    for image, category in pairs:
        if type(image) not in (int, str) or image not in images:
            raise UserError(f"{path}: an annotation is of image id {image}, which is not among its images")
        if type(category) is not int or category not in categories:
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


def _by_id(path: Path, kind: str, pairs: list[tuple[object, object]]) -> dict[Any, Any]:
    """The second of each pair by the first; UserError for an id that occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        again = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise UserError(f"{path}: {kind} id {again} occurs more than once ({len(pairs) - len(found)} such entries)")
    return found
