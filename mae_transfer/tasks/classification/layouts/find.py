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

from pathlib import Path

import numpy as np
import pandas as pd

from mae_transfer.data.names import Names
from mae_transfer.errors import UserError
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
    check_numbers,
)
from mae_transfer.tasks.classification.layouts.places import from_places205, from_places365


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


def from_lists(train: Path, val: Path, root: str | None) -> Found:
    paths = (train.expanduser(), val.expanduser())
    tables = [_read_list(path) for path in paths]
    are_numbers = {pd.api.types.is_integer_dtype(table["label"]) for table in tables}
    if len(are_numbers) > 1:
        raise UserError(f"{train} and {val}: one has labels that are numbers and one has names; use one kind")
    known = tables[0]["label"].unique()
    if are_numbers == {True}:
        check_numbers(train, sorted(int(label) for label in known))
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
