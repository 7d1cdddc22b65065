"""Val images that are training images too: by path, or by content under another name."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from mae_transfer.data.dataset import ImageDataset

SAMPLED = 20000
"""Files of either split whose sizes and contents are compared at most, evenly spread."""
PIECE = 4096
THREADS = 16


def note_overlap(summary: dict[str, Any], train: ImageDataset[Any], val: ImageDataset[Any]) -> list[str]:
    """A line for the run's output if val images are training images; their number becomes `overlap` of the summary."""
    found = find_overlap(train, val)
    if not found:
        return []
    summary["overlap"] = len(found)
    first = ", ".join(val.file_name(place) for place in found[:3]) + (", ..." if len(found) > 3 else "")
    return [
        f"{val.folder}: {len(found)} of {len(val)} val images are training images too ({first}); the metrics are not "
        "those of unseen images"
    ]


def find_overlap(train: ImageDataset[object], val: ImageDataset[object]) -> list[int]:
    """Places of the val images that are in the training set.

    Paths are compared in full. Contents are compared of at most `SAMPLED` files of either split: first the sizes in
    bytes, then, of files of one size, their beginning, middle and end, and, where these are the same, all of it.
    """
    real = cache(os.path.realpath)

    def key(dataset: ImageDataset[object], place: int) -> tuple[str, str]:
        folder, name = os.path.split(_path(dataset, place))
        return real(folder), name

    places = {key(val, place): place for place in range(len(val))}
    found = {places[k] for k in (key(train, place) for place in range(len(train))) if k in places}
    rest = {place: _path(val, place) for place in _spread(len(val)) if place not in found}
    others = [_path(train, place) for place in _spread(len(train))] if rest else []
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = set(pool.map(_size, rest.values())) - {0, -1}
        alike = [path for path, size in zip(others, pool.map(_size, others), strict=True) if size in sizes]
        contents = dict(zip(alike, pool.map(_content, alike), strict=True))
        if contents:
            pairs = zip(rest, pool.map(_content, rest.values()), strict=True)
            likely = {place: content for place, content in pairs if content in set(contents.values())}
            wholes = set(pool.map(_whole, [path for path in alike if contents[path] in likely.values()]))
            found |= {
                p for p, c in zip(likely, pool.map(_whole, [rest[p] for p in likely]), strict=True) if c in wholes
            }
    return sorted(found)


def _path(dataset: ImageDataset[object], place: int) -> str:
    return os.path.join(dataset.folder, dataset.file_name(place))


def _spread(length: int) -> list[int]:
    """All places, or `SAMPLED` of them."""
    places: list[int] = np.linspace(0, length - 1, min(length, SAMPLED)).astype(int).tolist()
    return places


def _size(path: str) -> int:
    """Bytes; -1 of what is not there."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _whole(path: str) -> str:
    """A hash of a file; of an unreadable one a value that no other has."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
            return digest.hexdigest()
    except OSError:
        return path


def _content(path: str) -> tuple[int, bytes]:
    """Size and a hash of three pieces; of an unreadable file a value that no other has."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            for place in sorted({0, max((size - PIECE) // 2, 0), max(size - PIECE, 0)}):
                file.seek(place)
                digest.update(file.read(PIECE))
    except OSError:
        return -1, path.encode(errors="surrogateescape")
    return size, digest.digest()
