"""One folder a class: train/<class>/... and val/<class>/..., images at any depth."""

import os
from pathlib import Path

import numpy as np

from mae_transfer.data.names import IMAGE_SUFFIXES, Names, is_image_name, walk_files
from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.layouts.listing import EXPECTED, SPLITS, Found, Listing


def from_folders(root: Path, task: str, *, train: bool = True) -> Found:
    """train: without, classes are those of the training folder if it is there, and its images are not listed."""
    folders = {split: root / split for split in SPLITS}
    if not train:
        named = folders.pop("train")
    for split, folder in folders.items():
        if not folder.is_dir():
            there = ", ".join(sorted(os.listdir(root))[:8]) or "nothing"
            raise UserError(f"{root} has no folder {split}/ (it has: {there}); expected is {EXPECTED[task]}")
    class_names = class_folders(folders["train"] if train else named if named.is_dir() else folders["val"])
    known = {name: label for label, name in enumerate(class_names)}
    warnings: list[str] = []
    listings = [list_folders(folder, known, warnings) for folder in folders.values()]
    return listings[0], listings[-1], class_names, warnings


def class_folders(folder: Path) -> list[str]:
    """Class folder names, sorted. Hidden folders are skipped, and `__MACOSX` of a zip file made on a Mac; UserError for
    one that is a broken link."""
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise UserError(f"folder {folder} cannot be listed ({error.strerror}); check it and its permissions") from None
    broken = sorted(entry.name for entry in entries if entry.is_symlink() and not os.path.exists(entry.path))
    if broken:
        raise UserError(f"{folder / broken[0]} is a link to nowhere ({len(broken)} such); mend it or take it out")
    names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        flat = next((entry.name for entry in entries if entry.name.lower().endswith(IMAGE_SUFFIXES)), None)
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
    """Sorted paths, relative to the folder, of the images at any depth, hidden folders such as `.ipynb_checkpoints`
    skipped; files of other kinds are added to `other`."""
    found = []
    for path in walk_files(folder):
        if path.startswith(".") or f"{os.sep}." in os.path.dirname(path):
            continue
        name = os.path.basename(path)
        if is_image_name(name):
            found.append(path)
        elif not name.startswith("."):
            other.append(str(folder / path))
    return sorted(found)
