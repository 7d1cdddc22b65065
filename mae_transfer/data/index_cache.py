"""Arrays that were made of a large file, or of many files, kept in the user's cache and mapped by every process.

Of the processes of a node one makes them, under a lock; the others wait for it. They are kept under the state of the
files as the file system tells it (place, size, times, inode), under what they are about and under the code that makes
them: a file or code that is another gets arrays of its own, and those of the file before are removed.
"""

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from mae_transfer.data.identity import file_states
from mae_transfer.data.names import Names
from mae_transfer.data.synthetic.folder import cache_folder
from mae_transfer.errors import UserError
from mae_transfer.files import JSON, atomic_write, lacks_locks, parse_json

LEAST = 2**22
"""Bytes. A smaller file is read every time, within a fraction of a second."""
LEAST_FILES = 1000
"""Headers of fewer are read every time."""
THREADS = 16
SETTLED = 2_000_000_000
"""Nanoseconds. A file that changed less long ago may change again without another time."""
WAIT = 1800.0
"""Seconds for another process to finish, after which a process reads the file by itself."""
_BEGIN = b"mae_transfer index 1\n"
_ALIGNED = 64
_LOG = logging.getLogger(__name__)


@dataclass
class Index:
    about: dict[str, JSON]
    arrays: Mapping[str, np.ndarray]
    """Read-only where they are mapped into memory."""


def cached_index(path: Path, about: str, sources: Sequence[str | None], make: Callable[[], Index]) -> Index:
    """What `make()` gives for the file `path`; from the cache if it is there.

    Args:
        about: what else the index depends on.
        sources: the files of the code that makes it.

    Raises:
        OSError: the file is not there.
        Exception: what `make` raises; nothing is kept then.
    """
    if os.stat(path).st_size < LEAST:
        return make()
    place = os.fsencode(os.path.realpath(path))
    return kept_index(path, [place, about.encode()], sources, lambda: file_states([str(path)]), make)


def header_numbers(
    folder: Path,
    files: Sequence[str],
    about: str,
    sources: Sequence[str | None],
    rows: int,
    read: Callable[[int], Sequence[int]],
) -> np.ndarray:
    """int64 (rows, k): `read(i)` for every row, numbers of the headers of files; from the cache if none has changed.

    Args:
        folder: that the files are in.
        files: all that are read, as paths from there.
        about, sources: as in `cached_index`.

    Raises:
        Exception: what `read` raises first; nothing is kept then.
    """

    def make() -> Index:
        with ThreadPoolExecutor(THREADS) as pool:  # a network disk answers many at once
            return Index({}, {"numbers": np.array(list(pool.map(read, range(rows))), dtype=np.int64)})

    if rows < LEAST_FILES:
        return make().arrays["numbers"]
    root = os.path.realpath(folder)
    what = [os.fsencode(root), about.encode(), Names(files).digest()]
    states = partial(file_states, [os.path.join(root, file) for file in files])
    return kept_index(folder, what, sources, states, make).arrays["numbers"]


def kept_index(
    path: Path,
    about: Sequence[bytes],
    sources: Sequence[str | None],
    states: Callable[[], np.ndarray],
    make: Callable[[], Index],
) -> Index:
    """What `make()` gives, kept as long as `states()` (`identity.file_states`) stay the same.

    Args:
        path: for the log.
        about, sources: as in `cached_index`; of the same `about` one index is kept.
    """
    state = states()
    name = hashlib.sha256(b"\0".join(about)).hexdigest()[:20]
    code = [Path(source).read_bytes() for source in (__file__, *filter(None, sources))]
    key = hashlib.sha256(b"\0".join([name.encode(), state.tobytes(), *code])).hexdigest()
    file = cache_folder("index") / f"{name}-{key[:20]}.index"
    if (found := _open(file, key)) is not None:
        return found
    with lock_file(file.with_suffix(".lock"), WAIT) as writable:
        if (found := _open(file, key)) is not None:
            return found
        _LOG.info("%s: it is read once and kept as %s", path, file)
        started = time.time_ns()
        index = make()
        settled = state[:, 1:3].max(initial=0) < started - SETTLED and np.array_equal(state, states())
        if not (writable and settled):
            return index
        with suppress(OSError, UserError):  # a cache that cannot be written costs time alone
            with atomic_write(file) as out:
                _write(out.write, key, index)
            for old in file.parent.glob(f"{name}-*"):
                if not old.name.startswith(file.stem):
                    old.unlink(missing_ok=True)
    return _open(file, key) or index


@contextmanager
def lock_file(path: Path, wait: float = WAIT) -> Iterator[bool]:
    """Hold a lock of the processes of a node, which ends with its process.

    Yields False where the folder cannot be written, or after a wait of so many seconds, which a warning says: both only
    cost time. On a file system without locks nobody waits.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        _LOG.warning("%s: cannot be written (%s); what it would keep is made anew in every run", path.parent, error)
        yield False
        return
    with lock:
        yield _acquire(lock.fileno(), path, wait)


def _acquire(descriptor: int, path: Path, wait: float) -> bool:
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                _LOG.warning("%s: another process has held it for %.0f s; this one goes on by itself", path, wait)
                return False
            time.sleep(0.1)
        except OSError as error:
            if not lacks_locks(error):
                raise
            _LOG.warning("%s: this file system has no locks; each process makes by itself what it keeps", path.parent)
            return True


def _write(write: Callable[[bytes | memoryview], object], key: str, index: Index) -> None:
    """A line, the length of a JSON text, the text, and every array at a multiple of 64 bytes."""
    places, end = [], 0
    arrays = {name: np.ascontiguousarray(array) for name, array in index.arrays.items()}
    for name, array in arrays.items():
        places.append([name, array.dtype.str, list(array.shape), end])
        end += -(-array.nbytes // _ALIGNED) * _ALIGNED
    text = json.dumps({"key": key, "about": index.about, "places": places, "bytes": end}).encode()
    text += b" " * (-(len(_BEGIN) + 8 + len(text)) % _ALIGNED)
    write(_BEGIN + len(text).to_bytes(8, "little") + text)
    for array in arrays.values():
        write(array.reshape(-1).view(np.uint8).data)
        write(b"\0" * (-array.nbytes % _ALIGNED))


def _open(file: Path, key: str) -> Index | None:
    """None where it is not there, or not whole, or another's."""
    try:
        content = np.memmap(file, mode="r").view(np.ndarray)
    except (OSError, ValueError):  # ValueError: an empty file
        return None
    start = len(_BEGIN) + 8
    if content[: len(_BEGIN)].tobytes() != _BEGIN:
        return None
    end = start + int.from_bytes(content[len(_BEGIN) : start].tobytes(), "little")
    try:
        head = parse_json(content[start:end].tobytes())
        assert isinstance(head, dict)
        if head["key"] != key or head["bytes"] != len(content) - end:
            return None
        arrays = {}
        for name, kind, shape, place in cast("list[tuple[str, str, list[int], int]]", head["places"]):
            dtype = np.dtype(kind)
            part = content[end + place : end + place + dtype.itemsize * int(np.prod(shape))]
            arrays[name] = part.view(dtype).reshape(shape)
        about = head["about"]
        assert isinstance(about, dict)
    except (ValueError, KeyError, TypeError, AssertionError):
        return None
    return Index(about, arrays)
