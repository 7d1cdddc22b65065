"""The image files of an annotation file: all there, of the size it says, each once, by path and by content."""

import os
from collections import Counter
from functools import cache, partial
from pathlib import Path

import numpy as np

from mae_transfer.data import decode, images, overlap
from mae_transfer.data.decode import read_header
from mae_transfer.data.identity import file_states
from mae_transfer.data.images import UndecodableImageError
from mae_transfer.data.index_cache import LEAST_FILES, Index, header_numbers, kept_index
from mae_transfer.data.names import Names
from mae_transfer.data.overlap import find_copies
from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.data import CocoEval, CocoTrain

SOURCES = [__file__, decode.__file__, images.__file__]


def check_files(annotations: CocoAnnotations, folder: Path, on_bad_image: str) -> list[str]:
    """Warnings about the files in `folder`; raises UserError for missing ones and for sizes that are not the file's.

    Sizes are read from the headers of all files, about 0.1 ms each, once a node (`data/index_cache.py`). Files that
    cannot be decoded are left to the reader with `on_bad_image` "skip".
    """
    links, inodes = _check_there(annotations, folder)
    _check_sizes(annotations, folder, on_bad_image)
    real = cache(os.path.realpath)  # once a directory: `../images/1.jpg` and absolute paths are one file with `1.jpg`
    places = [os.path.split(os.path.join(folder, name)) for name in annotations.file_names]
    paths = [os.path.join(real(directory), name) for directory, name in places]
    paths = [real(path) if path in links else path for path in paths]
    firsts: dict[tuple[str, int], str] = {}  # a hard link has the inode of the file, in its own directory's entries
    for i, path in enumerate(paths):
        first = firsts.setdefault((os.path.dirname(path), inodes.get(path, -1 - i)), path)
        paths[i] = first if first != path and os.path.samefile(first, path) else path
    again = [os.path.relpath(path, real(str(folder))) for path, count in Counter(paths).items() if count > 1]
    if not again:
        return []
    first = os.path.normpath(os.path.join(real(str(folder)), again[0]))
    ids = [str(i) for i, path in zip(annotations.image_ids, paths, strict=True) if path == first]
    return [
        f"{annotations.path}: {some(again)} {'are' if len(again) > 1 else 'is'} there under several image ids "
        f"({again[0]}: {', '.join(ids[:3])}); each counts as an image, with the objects of its id alone"
    ]


def note_copies(images: CocoTrain | CocoEval) -> list[str]:
    """A warning of images whose files have the same bytes under two names; of one file `check_files` speaks."""

    def is_one_file(group: list[int]) -> bool:
        paths = [images.span(place)[0] for place in group]
        return all(os.path.samefile(paths[0], path) for path in paths[1:])

    groups = [group for group in _copies(images) if not is_one_file(group)]
    if not groups:
        return []
    first = ", ".join(f"{images.file_name(place)} (id {images.image_ids[place]})" for place in groups[0][:3])
    return [
        f"{images.annotations.path}: {sum(map(len, groups))} images have the same bytes as another "
        f"under other names ({first}); each counts as an image, with the objects of its id alone"
    ]


def _copies(images: CocoTrain | CocoEval) -> list[list[int]]:
    """`find_copies` of images of one height and width, once a node for many files."""
    sizes = images.annotations.sizes[images.indices]

    def make() -> Index:
        groups = find_copies(images, list(map(tuple, sizes.tolist())))
        numbers = {place: number for number, group in enumerate(groups) for place in group}
        return Index(
            {},
            {"places": np.array([*numbers], dtype=np.int64), "groups": np.array([*numbers.values()], dtype=np.int64)},
        )

    if len(images) < LEAST_FILES:
        found = make().arrays
    else:
        paths = [images.span(place)[0] for place in range(len(images))]
        about = [b"coco copies", Names(paths).digest(), sizes.tobytes()]
        found = kept_index(images.folder, about, [__file__, overlap.__file__], partial(file_states, paths), make).arrays
    groups: dict[int, list[int]] = {}
    for place, number in zip(found["places"].tolist(), found["groups"].tolist(), strict=True):
        groups.setdefault(number, []).append(place)
    return list(groups.values())


def _check_there(annotations: CocoAnnotations, folder: Path) -> tuple[set[str], dict[str, int]]:
    """Lists each directory once. Returns the images that are links, and the inodes of others, by path with their
    directories' real paths before them."""
    by_directory: dict[str, list[str]] = {}
    for file_name in annotations.file_names:
        directory, name = os.path.split(file_name)
        by_directory.setdefault(directory, []).append(name)
    missing: list[str] = []
    links: set[str] = set()
    inodes: dict[str, int] = {}
    for directory, names in by_directory.items():
        entries = list(os.scandir(folder / directory)) if (folder / directory).is_dir() else []
        there = {entry.name for entry in entries}
        missing += [os.path.join(directory, name) for name in names if name not in there]
        place = os.path.realpath(folder / directory)
        links |= {os.path.join(place, entry.name) for entry in entries if entry.is_symlink()}
        inodes |= {os.path.join(place, entry.name): entry.inode() for entry in entries}
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of the {len(annotations)} images of {annotations.path} are not there: "
            f"{some(sorted(missing))}; complete the folder or take them out of the annotation file"
        )
    return links, inodes


def _check_sizes(annotations: CocoAnnotations, folder: Path, on_bad_image: str) -> None:
    names = annotations.file_names

    def read(index: int) -> tuple[int, ...]:
        try:
            header = read_header(folder / names[index])
        except UndecodableImageError:
            if on_bad_image == "error":
                raise
            return -1, -1, -1, -1
        return *header.size, *header.stored_size

    said = annotations.sizes[:, ::-1]
    found = header_numbers(folder, names, f"coco {on_bad_image}", SOURCES, len(names), read)
    wrong = np.flatnonzero((found[:, :2] != said).any(1) & (found[:, 0] >= 0)).tolist()
    if not wrong:
        return
    (width, height), (first, other) = said[wrong[0]].tolist(), found[wrong[0]].reshape(2, 2).tolist()
    what = f"{names[wrong[0]]} is {first[0]}x{first[1]} and {width}x{height} there"
    remedy = "correct width and height there, or give the images that were annotated"
    if other == [width, height]:
        what += ", as it is stored"
        remedy = (
            "EXIF turns it upright: if the boxes are on the stored pixels, take the orientation tag out of the files, "
            "for example with `exiftool -Orientation= FILE`"
        )
    raise UserError(
        f"{annotations.path}: {len(wrong)} of {len(annotations)} images are of another size in {folder}: {what}; "
        f"{remedy}"
    )


def some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)} files)" if len(names) > 3 else "")
