"""Images that are there more than once, by content under another name; val images that are training images too."""

import hashlib
import os
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from mae_transfer.data.dataset import ImageDataset, Span

SAMPLED = 20000
"""Files of either split whose sizes and contents are compared at most, evenly spread."""
PIECE = 4096
READ = 2**20
THREADS = 16


def note_overlap(
    summary: dict[str, Any], train: ImageDataset[Any], val: ImageDataset[Any], *beside: ImageDataset[Any]
) -> list[str]:
    """A line for the run's output for each of these sets with images that are training images too; the number of such
    val images becomes `overlap` of the summary."""
    lines = []
    for images, found in zip((val, *beside), find_overlaps(train, (val, *beside)), strict=True):
        if not found:
            continue
        if images is val:
            summary["overlap"] = len(found)
        first = ", ".join(images.file_name(place) for place in found[:3]) + (", ..." if len(found) > 3 else "")
        lines.append(
            f"{images.folder}: {len(found)} of {len(images)} val images are training images too ({first}); the metrics "
            "are not those of unseen images"
        )
    return lines


def find_overlaps(train: ImageDataset[object], sets: Sequence[ImageDataset[object]]) -> list[list[int]]:
    """For each set the places of its images that are in the training set, whose paths are gone through once.

    Paths are compared in full. Contents are compared of at most `SAMPLED` files of either split: first the sizes in
    bytes, then, of files of one size, their beginning, middle and end, and of those that are alike all bytes.
    """
    real = cache(os.path.realpath)

    def key(dataset: ImageDataset[object], place: int) -> tuple[str, str, int]:
        path, start, _ = dataset.span(place)
        folder, name = os.path.split(path)
        return real(folder), name, start

    places: dict[tuple[str, str, int], list[tuple[int, int]]] = {}
    for number, images in enumerate(sets):
        for place in range(len(images)):
            places.setdefault(key(images, place), []).append((number, place))
    found: list[set[int]] = [set() for _ in sets]
    for place in range(len(train)):
        for number, other in places.get(key(train, place), ()):
            found[number].add(other)
    others = [train.span(place) for place in _spread(len(train))]
    measures = [(measure, cache(measure)) for measure in (_size, _pieces, _whole)]
    with ThreadPoolExecutor(THREADS) as pool:
        for images, same in zip(sets, found, strict=True):
            mine = [(place, images.span(place)) for place in _spread(len(images)) if place not in same]
            theirs = others
            for measure, kept in measures:
                if not mine:
                    break
                values = list(pool.map(measure, (span for _, span in mine)))
                known = list(pool.map(kept, theirs))  # the training files are measured once for all sets
                common = set(values) & set(known) - {b""}
                mine = [item for item, value in zip(mine, values, strict=True) if value in common]
                theirs = [span for span, value in zip(theirs, known, strict=True) if value in common]
            same |= {place for place, _ in mine}
    return [sorted(same) for same in found]


def find_copies(images: ImageDataset[Any], kinds: Sequence[Hashable]) -> list[list[int]]:
    """Groups of places whose images have the same bytes; each in order, by their first.

    Args:
        kinds: what each image and its copies have in common, such as height and width. Of files that agree in it and in
            their bytes' number at most `SAMPLED` are read.
    """
    of_kinds: dict[Hashable, list[int]] = {}
    for place, kind in enumerate(kinds):
        of_kinds.setdefault(kind, []).append(place)
    groups = [group for group in of_kinds.values() if len(group) > 1]
    with ThreadPoolExecutor(THREADS) as pool:
        for measure in (_size, _pieces, _whole):
            spans = [[images.span(place) for place in group] for group in groups]
            values = pool.map(measure, (span for of_group in spans for span in of_group))
            parts: dict[tuple[int, bytes], list[int]] = {}
            for number, group in enumerate(groups):
                for place in group:
                    parts.setdefault((number, next(values)), []).append(place)
            groups = [part for (_, value), part in parts.items() if value and len(part) > 1]
            until = np.cumsum([len(group) for group in groups]) <= SAMPLED
            groups = [group for group, read in zip(groups, until, strict=True) if read]
    return sorted(groups)


def _spread(length: int) -> list[int]:
    """All places, or `SAMPLED` of them."""
    places: list[int] = np.linspace(0, length - 1, min(length, SAMPLED)).astype(int).tolist()
    return places


def _size(span: Span) -> bytes:
    """Bytes of the image in digits; b"" of an empty or missing file."""
    path, _, size = span
    if size is None:
        try:
            size = os.stat(path).st_size
        except OSError:
            return b""
    return b"%d" % size if size else b""


def _pieces(span: Span) -> bytes:
    """Size and a hash of three pieces; b"" of an unreadable file."""
    digest = hashlib.sha256()
    path, start, size = span
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size if size is None else size
            for place in sorted({0, max((size - PIECE) // 2, 0), max(size - PIECE, 0)}):
                file.seek(start + place)
                digest.update(file.read(min(PIECE, size)))
    except OSError:
        return b""
    return b"%d " % size + digest.digest()


def _whole(span: Span) -> bytes:
    """Hash of all bytes; b"" of an unreadable file."""
    digest = hashlib.sha256()
    path, start, size = span
    try:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size if size is None else size
            file.seek(start)
            while left > 0 and (piece := file.read(min(left, READ))):
                digest.update(piece)
                left -= len(piece)
    except OSError:
        return b""
    return digest.digest()
