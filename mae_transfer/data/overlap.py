"""Val images that are training images too: by path, or by content under another name."""

import hashlib
import os
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
    bytes, then, of files of one size, their beginning, middle and end, and of those that are alike all bytes.
    """
    real = cache(os.path.realpath)

    def key(dataset: ImageDataset[object], place: int) -> tuple[str, str, int]:
        path, start, _ = dataset.span(place)
        folder, name = os.path.split(path)
        return real(folder), name, start

    places = {key(val, place): place for place in range(len(val))}
    found = {places[k] for k in (key(train, place) for place in range(len(train))) if k in places}
    rest = {place: val.span(place) for place in _spread(len(val)) if place not in found}
    others = [train.span(place) for place in _spread(len(train))] if rest else []
    with ThreadPoolExecutor(THREADS) as pool:
        mine, theirs = list(rest.items()), others
        for measure in (_size, _pieces, _whole):
            values = list(pool.map(measure, (span for _, span in mine)))
            known = list(pool.map(measure, theirs))
            common = set(values) & set(known) - {b""}
            mine = [item for item, value in zip(mine, values, strict=True) if value in common]
            theirs = [span for span, value in zip(theirs, known, strict=True) if value in common]
    return sorted(found | {place for place, _ in mine})


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
