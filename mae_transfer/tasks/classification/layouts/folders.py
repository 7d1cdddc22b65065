"""One folder a class: train/<class>/... and val/<class>/..., images at any depth."""

import os
from functools import partial
from pathlib import Path

import numpy as np

from mae_transfer.data import names
from mae_transfer.data.identity import file_states
from mae_transfer.data.index_cache import Index, kept_index
from mae_transfer.data.names import IMAGE_SUFFIXES, Names, is_image_name, walk_files
from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.layouts.listing import EXPECTED, SPLITS, Found, Listing

SOURCES = [__file__, names.__file__]
LEAST_CLASSES = 100
"""Folders of fewer are listed by every process."""


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
    classes = class_folders(folder)
    found = _listed(folder, classes)
    files = Names.packed(found.arrays["name_bytes"], found.arrays["name_ends"])
    if found.about["others"]:
        warnings.append(
            f"{folder}: {found.about['others']} files that are no images by their suffix are left out, e.g. "
            f"{folder / str(found.about['other'])}"
        )
    loose = sorted(entry.name for entry in os.scandir(folder) if is_image_name(entry.name) and entry.is_file())
    if loose:
        warnings.append(f"{folder}: {len(loose)} images beside the class folders are left out, e.g. {loose[0]}")
    labels = np.array([known[name] for name in classes], dtype=np.int64)
    return Listing(folder, files, np.repeat(labels, found.arrays["counts"]))


def _listed(folder: Path, classes: list[str]) -> Index:
    """The images of all classes; many classes are listed once a node.

    A file that comes or goes changes the time of its folder. So nothing is kept but that there are folders in the
    folders, where there are, or that the times of all folders are one, as of a bucket that is mounted.
    """
    made: list[Index] = []

    def make() -> Index:
        index, deep = _list_classes(folder, classes)
        made.append(index)
        times = {os.stat(folder / name).st_mtime_ns for name in classes}
        return Index({"list": True}, {}) if deep or len(times) == 1 else index

    if len(classes) < LEAST_CLASSES:
        return _list_classes(folder, classes)[0]
    root = os.path.realpath(folder)
    states = partial(file_states, [root, *(os.path.join(root, name) for name in classes)])
    what = [os.fsencode(root), b"class folders", Names(classes).digest()]
    found = kept_index(folder, what, SOURCES, states, make)
    if "list" not in found.about:
        return found
    return made[0] if made else _list_classes(folder, classes)[0]


def _list_classes(folder: Path, classes: list[str]) -> tuple[Index, bool]:
    """The images of all classes, and whether there are folders in their folders."""
    found: list[str] = []
    counts: list[int] = []
    other: list[str] = []
    deep = False
    for name in classes:
        files = image_files(folder / name, other)
        if not files:
            raise UserError(
                f"class folder {folder / name} has no image ({', '.join(IMAGE_SUFFIXES[:4])}, ...); fill it or "
                "remove it"
            )
        found += [f"{name}/{file}" for file in files]
        counts.append(len(files))
        deep |= not all(os.path.isfile(entry.path) for entry in os.scandir(folder / name))  # of a link's loop False
    content, ends = Names(found).arrays
    first = os.path.relpath(other[0], folder) if other else ""
    arrays = {"name_bytes": content, "name_ends": ends, "counts": np.array(counts)}
    return Index({"others": len(other), "other": first}, arrays), deep


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
