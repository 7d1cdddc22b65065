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

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mae_transfer.data.names import Names
from mae_transfer.data.paths import check_local
from mae_transfer.errors import UserError
from mae_transfer.files import user_path
from mae_transfer.tasks.classification.config import DataConfig
from mae_transfer.tasks.classification.layouts.folders import from_folders
from mae_transfer.tasks.classification.layouts.inat import from_inat
from mae_transfer.tasks.classification.layouts.listing import (
    EXPECTED,
    SPLITS,
    Found,
    ImageSet,
    Listing,
    check_files,
)
from mae_transfer.tasks.classification.layouts.places import from_places205, from_places365


def find_images(task: str, data: DataConfig, *, train: bool = True) -> ImageSet:
    """The images of a task; UserError, one line, for anything that is missing or does not fit.

    train: without, the training split has no images, and a set in folders need not have that split.
    """
    listing, val, class_names, warnings = _found(task, data, train)
    if not train:
        listing = Listing(listing.root, Names(()), np.empty(0, dtype=np.int64))
    splits = SPLITS if train else SPLITS[1:]
    return _checked(listing, val, class_names, warnings, splits=splits)


def _found(task: str, data: DataConfig, train: bool) -> Found:
    check_local(data)
    if (data.train_list is None) != (data.val_list is None):
        raise UserError("give both data.train_list and data.val_list, or neither")
    if data.train_list is not None and data.val_list is not None:
        from mae_transfer.tasks.classification.layouts.lists import from_lists  # here: it imports pandas

        return from_lists(Path(data.train_list), Path(data.val_list), data.root)
    if data.root is None:
        raise UserError(
            f"no data: give --data with {EXPECTED[task]}, or CSV or Parquet by data.train_list= and data.val_list="
        )
    root = user_path(data.root)
    if not root.is_dir():
        raise UserError(f"data folder {root} (--data) is not there; expected is {EXPECTED[task]}")
    if task.startswith("inat"):
        return from_inat(root, task)
    if task.startswith("places") and not all((root / split).is_dir() for split in SPLITS):
        return from_places365(root, data.places_size) if task == "places365" else from_places205(root)
    return from_folders(root, task, train=train)


def _checked(
    train: Listing, val: Listing, class_names: list[str], warnings: list[str], *, splits: Sequence[str]
) -> ImageSet:
    """splits: those that have to have images."""
    if len(class_names) < 2:
        raise UserError(f"{train.root}: there is one class only, {class_names[0]}; a classifier needs two")
    for split, listing in zip(SPLITS, (train, val), strict=True):
        if split not in splits:
            continue
        if not len(listing):
            raise UserError(f"{listing.root}: the {split} split has no images")
        check_files(listing)
        bare = np.flatnonzero(np.bincount(listing.labels, minlength=len(class_names)) == 0)
        if len(bare):
            warnings.append(
                f"{len(bare)} of {len(class_names)} classes have no {split} image, such as {class_names[bare[0]]}"
            )
    return ImageSet(train, val, class_names, warnings)
