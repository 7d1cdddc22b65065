"""Lists of images: `data.train_list` and `data.val_list`, CSV or Parquet with the columns path and label."""

import lzma
import os
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from mae_transfer.data.names import Names
from mae_transfer.errors import UserError
from mae_transfer.files import user_path
from mae_transfer.tasks.classification.layouts.listing import Found, Listing, check_numbers

# of pandas and pyarrow, whose parsing errors are ValueErrors, and of what unpacks .gz, .zip, .xz and .tar for them
_UNREADABLE = (
    OSError, ValueError, OverflowError, TypeError, EOFError, ImportError, NotImplementedError, zlib.error,
    lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError,
)  # fmt: skip


def from_lists(train: Path, val: Path, root: str | None) -> Found:
    paths = (user_path(train), user_path(val))
    tables = [_read_list(path, root) for path in paths]
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
        folder = user_path(root) if root is not None else path.parent
        listings.append(Listing(folder, Names(table["path"].astype(str)), labels.to_numpy(dtype=np.int64)))
    return listings[0], listings[1], class_names, []


def _read_list(path: Path, root: str | None) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path} is not there; data.train_list and data.val_list are CSV or Parquet files")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); it must be CSV or .parquet") from None
    missing = [column for column in ("path", "label") if column not in table.columns]
    if missing:
        raise UserError(f"{path} has no column {missing[0]} (it has {', '.join(map(str, table.columns))})")
    empty = table["path"].isna() | table["label"].isna()
    if empty.any():
        raise UserError(f"{path}: row {int(np.flatnonzero(empty)[0]) + 1} has no path or no label")
    if table.empty:
        raise UserError(f"{path} has no rows")
    odd = ~table["label"].map(pd.api.types.is_scalar)  # of Parquet, whose fields may be lists
    if odd.any():
        row = int(np.flatnonzero(odd)[0])
        raise UserError(
            f"{path}: row {row + 1} has the label {table['label'].iloc[row]!s:.60}, which is no name or number"
        )
    folder = user_path(root) if root is not None else path.parent
    paths = table["path"].astype(str).map(lambda name: os.path.normpath(os.path.join(folder, name)))
    unlike = table["label"].groupby(paths, sort=False).nunique()
    if (unlike > 1).any():
        name = unlike.index[unlike > 1][0]
        labels = table.loc[paths == name, "label"].unique()
        name = table.loc[paths == name, "path"].iloc[0]
        raise UserError(
            f"{path}: {name} has the labels {labels[0]} and {labels[1]} ({int((unlike > 1).sum())} such images); leave "
            "each image one label"
        )
    repeats = paths.duplicated()
    if repeats.any():
        name = table.loc[repeats, "path"].iloc[0]
        times = int((paths == paths[repeats].iloc[0]).sum())
        raise UserError(
            f"{path}: {name} is listed {times} times ({int(repeats.sum())} of {len(table)} rows repeat an image), and "
            "would count as often; list each image once"
        )
    return table[["path", "label"]]


def _read_csv(path: Path) -> pd.DataFrame:
    """Only an empty field is missing: NA, None and null are names that a class can have.

    Labels are names unless all of them are whole numbers without leading zeros: 01 and 1 stay two classes.
    """
    header = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0].tolist()  # pandas gives a second one a new name
    twice = [name for name in ("path", "label") if header.count(name) > 1]
    if twice:
        raise UserError(f"{path} has the column {twice[0]} twice; leave one path and one label")
    table = pd.read_csv(path, dtype={"path": str, "label": str}, keep_default_na=False, na_values=[""])
    if "label" in table and table["label"].str.fullmatch(r"\s*(0|-?[1-9]\d{0,18})\s*", na=False).all():
        table["label"] = table["label"].astype("int64")
    return table
