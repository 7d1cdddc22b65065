"""The identity of image files: a digest of names, labels, sizes and contents, the same wherever the files lie.

The sizes of all files are in it, and the contents of up to `HASHED` of them: of all files of a small set, else of one
from each of as many equal parts of the list. The digest is kept in the user's cache under the state of the files as the
file system tells it (size, times, inode), so that a later start reads no contents: it looks at all folders and at up to
`LOOKED_AT` files.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np

from mae_transfer.data.names import Names
from mae_transfer.data.synthetic.folder import cache_folder
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write, reading

HASHED = 5000
LOOKED_AT = 100_000
WHOLE = 2**23
"""Files of up to so many bytes are read whole; of a larger one so many bytes in evenly spread pieces are read."""
PIECES = 8
THREADS = 16
_VERSION = b"identity 1"
_SETTLED = 2_000_000_000
"""Nanoseconds. A file that changed less long ago may change again without another time."""


def identify(folder: str | Path, names: Names | Iterable[str], labels: np.ndarray | None = None) -> str:
    """64 hex digits for the files `names` below `folder`, in this order, with their int64 labels (n,).

    A file that is not there or cannot be read counts as one of no content: its reader says so.
    """
    names = names if isinstance(names, Names) else Names(names)
    root = os.path.realpath(folder)
    listed = _listed(names, labels)
    look = [names[i] for i in _spread(len(names), LOOKED_AT)]
    if len(look) < len(names):
        look += [*names.folders(), *(names[i] for i in _spread(len(names), HASHED))]
    states = file_states(os.path.join(root, place) for place in look)

    def compute() -> str:
        sizes = file_states(os.path.join(root, name) for name in names)[:, 0]
        return _digest(listed, sizes, lambda i: _content(os.path.join(root, names[i])))

    return _remembered([listed, os.fsencode(root)], states, compute)


def identify_members(
    archives: Sequence[Path], names: Names, sizes: np.ndarray, read: Callable[[int], bytes], labels: np.ndarray | None
) -> str:
    """The same for images within archives. Image i has the bytes `read(i)`, `sizes[i]` many."""
    listed = _listed(names, labels)
    states = file_states(map(str, archives))

    def compute() -> str:
        return _digest(listed, sizes, lambda i: hashlib.sha256(read(i)).digest())

    return _remembered([listed, *map(os.fsencode, archives)], states, compute)


def known_names(names: Names, labels: np.ndarray | None, about: str, compute: Callable[[], str]) -> str:
    """`compute()`, a digest of these names, labels and `about` alone; from the cache if it is there."""
    nothing = np.empty((0, 4), dtype=np.int64)
    return _remembered([b"names", _listed(names, labels), about.encode(errors="surrogateescape")], nothing, compute)


def contents_digest(paths: Sequence[Path], end: bytes) -> str:
    """SHA-256 of the contents of files, one after the other, and of `end`; from the cache if it is there."""

    def compute() -> str:
        digest = hashlib.sha256()
        for path in paths:
            with reading(path), path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        digest.update(end)
        return digest.hexdigest()

    places = [os.path.realpath(path) for path in paths]
    return _remembered([b"contents", *map(os.fsencode, places), end], file_states(places), compute)


def combine(*parts: object) -> str:
    """16 hex digits for several identities and what else tells data apart."""
    return hashlib.sha256("\n".join(map(str, parts)).encode(errors="surrogateescape")).hexdigest()[:16]


def _listed(names: Names, labels: np.ndarray | None) -> bytes:
    return hashlib.sha256(names.digest() + (b"" if labels is None else labels.astype("<i8").tobytes())).digest()


def _digest(listed: bytes, sizes: np.ndarray, content: Callable[[int], bytes]) -> str:
    digest = hashlib.sha256(_VERSION + listed + sizes.astype("<i8").tobytes())
    with ThreadPoolExecutor(THREADS) as pool:  # a network disk answers many at once
        for part in pool.map(content, _spread(len(sizes), HASHED)):
            digest.update(part)
    return digest.hexdigest()


def _remembered(about: Sequence[bytes], states: np.ndarray, compute: Callable[[], str]) -> str:
    """The digest that is kept under what it is about and the state of the files; else computed, and kept."""
    key = hashlib.sha256(b"\0".join([_VERSION, *about, states.tobytes()])).hexdigest()
    file = cache_folder("identity") / key[:40]
    with suppress(OSError, UnicodeDecodeError):
        stored = file.read_text(encoding="ascii")
        if re.fullmatch("[0-9a-f]{64}", stored):
            return stored
    started = time.time_ns()
    digest = compute()
    if states[:, 1:3].max(initial=0) < started - _SETTLED:
        with suppress(OSError, UserError):  # a cache that cannot be written costs time alone
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as out:
                out.write(digest.encode())
    return digest


def file_states(paths: Iterable[str]) -> np.ndarray:
    """int64 (n, 4): size, times of the last change of content and of state, inode; -1 for what is not there."""
    todo = iter(paths)
    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(_some_states, iter(lambda: list(islice(todo, 2000)), [])))
    return np.concatenate([np.empty((0, 4), dtype=np.int64), *parts])


def _some_states(paths: list[str]) -> np.ndarray:
    found = np.full((len(paths), 4), -1, dtype=np.int64)
    for i, path in enumerate(paths):
        with suppress(OSError):
            state = os.stat(path)
            found[i] = state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino
    return found


def _content(path: str) -> bytes:
    digest = hashlib.sha256()
    if not os.path.isfile(path):  # a named pipe would be waited for
        return digest.digest()
    with suppress(OSError), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= WHOLE:
            digest.update(file.read())
        else:
            for place in np.linspace(0, size - WHOLE // PIECES, PIECES).astype(int).tolist():
                file.seek(place)
                digest.update(file.read(WHOLE // PIECES))
    return digest.digest()


def _spread(length: int, most: int) -> list[int]:
    """All of range(length), or one from each of `most` equal parts of it, always the same ones."""
    if length <= most:
        return list(range(length))
    ends = np.linspace(0, length, most + 1).astype(int)
    places: list[int] = np.random.default_rng(0).integers(ends[:-1], ends[1:]).tolist()
    return places
