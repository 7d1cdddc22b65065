"""Files at addresses (`https://`, `s3://`, whatever fsspec knows), fetched whole into the user's cache before a run.

From then on they are files like others, so that a run has exactly the samples that it would have from a disk. A file is
kept under what the server says of it (size, ETag or time): another one is fetched anew. The cache is bounded; data sets
that no process uses make room, the longest unused first.
"""

import fcntl
import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

import aiohttp
import fsspec

from mae_transfer.data.index_cache import lock_file
from mae_transfer.data.synthetic.folder import cache_folder
from mae_transfer.errors import UserError

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before a failed request is made again."""
WAIT = 6 * 3600.0
"""Seconds for which a process waits for one that fetches the same file."""
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
_THREADS = 8
_STATE = ("size", "ETag", "Content-MD5", "Digest", "Last-Modified", "LastModified", "updated", "mtime")
"""What file systems of fsspec say of a file, each some of it."""
_used: dict[Path, IO[str]] = {}
"""Locks of the data sets that this process uses, until it ends."""


def is_address(text: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]*://", text) is not None


def fetch(addresses: Sequence[str], most_gib: float) -> list[Path]:
    """The files in the cache, in order, after those that are not there have been fetched.

    Args:
        most_gib: GiB that all fetched files may take.

    Raises:
        UserError: an address that cannot be fetched, after some attempts; more data than the bound or the disk has room
            for.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(_Remote, addresses))
        size, missing = sum(file.size for file in files), [file for file in files if not file.path.exists()]
        for folder in {file.folder for file in files}:
            _use(folder)
        if missing:
            _make_room(sum(file.size for file in missing), size, most_gib, addresses[0])
            gib = sum(file.size for file in missing) / 2**30
            _LOG.info("fetching %d files, %.1f GiB, into %s", len(missing), gib, missing[0].folder.parent)
        told = time.monotonic()
        for done, _ in enumerate(pool.map(_Remote.fetch, missing), start=1):
            if time.monotonic() > told + 10:
                told = time.monotonic()
                _LOG.info("fetched %d of %d files", done, len(missing))
    return [file.path for file in files]


class _Unreachable(UserError):
    """Nobody answers, or answers break off."""


class _Remote:
    """A file at an address, and where the cache has it or will."""

    def __init__(self, address: str) -> None:
        base, _, name = address.rpartition("/")
        options = {"client_kwargs": {"timeout": _TIMEOUT}} if address.startswith("http") else {}
        self.address = address
        self.folder = cache_folder("fetched") / hashlib.sha256(base.encode()).hexdigest()[:16]
        kept = hashlib.sha256(address.encode()).hexdigest()[:8]
        try:
            self._system, self._place = fsspec.core.url_to_fs(address, **options)
            about = _attempts(address, lambda: self._system.info(self._place))
        except _Unreachable as error:
            there = [path for path in self.folder.glob(f"{kept}-*/*") if path.name == name]
            if not there:
                raise
            _LOG.warning("%s; the file of an earlier run is taken", error)
            self.path = max(there, key=lambda path: path.stat().st_mtime)
            self.size = self.path.stat().st_size
            return
        except (ImportError, ValueError) as error:
            raise UserError(f"{address} cannot be read: {error}") from error
        if about.get("size") is None or about.get("type") == "directory":
            raise UserError(f"{address}: the server says no size of it; give the addresses of .tar files")
        self.size = int(about["size"])
        state = [str(about.get(key)) for key in _STATE]
        digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
        self.path = self.folder / f"{kept}-{digest}" / name

    def fetch(self) -> None:
        with lock_file(self.path.parent.with_suffix(".lock"), WAIT) as writable:
            if self.path.exists():
                return
            if not writable:
                raise UserError(f"{self.folder} cannot be written; set XDG_CACHE_HOME to a folder with room")
            self.path.parent.mkdir(exist_ok=True)
            half = self.path.with_name(f"{self.path.name}.half")
            _attempts(self.address, lambda: self._whole(half))
            half.replace(self.path)

    def _whole(self, half: Path) -> None:
        self._system.get_file(self._place, str(half))
        if half.stat().st_size != self.size:
            raise OSError(f"{half.stat().st_size} of {self.size} bytes came")


def _attempts(address: str, request: Callable[[], T]) -> T:
    for pause in (*PAUSES, None):
        try:
            return request()
        except Exception as error:  # noqa: BLE001  # every protocol's library has errors of its own
            # fsspec says "not found" of a server that does not answer, too: its cause tells
            cause = (isinstance(error, FileNotFoundError) and error.__cause__) or error
            status = getattr(cause, "status", None)
            if status in (404, 410) or (status is None and isinstance(cause, FileNotFoundError)):
                raise UserError(f"{address} is not there; check the address") from cause
            reason = " ".join(f"{cause}".split()) or type(cause).__name__
            if status in (401, 403):
                raise UserError(f"{address} may not be read ({reason}); check your rights to it") from cause
            if pause is None:
                raise _Unreachable(
                    f"{address} cannot be fetched ({reason}), after {len(PAUSES) + 1} attempts"
                ) from cause
            _LOG.warning("%s: %s; it is tried again in %.0f s", address, reason, pause)
            time.sleep(pause)
    raise AssertionError


def _use(folder: Path) -> None:
    """Hold a data set in the cache until this process ends."""
    if folder in _used:
        return
    with suppress(OSError):  # a cache without locks, or that cannot be written: files already there may be read
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "used").open("w")
        fcntl.flock(lock, fcntl.LOCK_SH)
        _used[folder] = lock


def _make_room(missing: int, size: int, most_gib: float, address: str) -> None:
    """Remove the data sets that were used longest ago and by nobody now, until what is to come has room."""
    gib, root = 2**30, cache_folder("fetched")
    if size > most_gib * gib:
        raise UserError(
            f"{address} and what belongs to it take {size / gib:.1f} GiB, and data.cache_gib={most_gib:g} are allowed; "
            "raise it, or fetch them to a disk of your own"
        )
    sets = sorted(root.glob("*/used"), key=lambda path: path.stat().st_mtime)
    for used in sets:
        taken = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        if taken + missing <= most_gib * gib and missing < shutil.disk_usage(root).free:
            return
        with used.open() as lock, suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _LOG.info("%s is removed to make room", used.parent)
            shutil.rmtree(used.parent)
    if missing >= (free := shutil.disk_usage(root).free):
        raise UserError(
            f"{address} and what belongs to it take {missing / gib:.1f} GiB, and {root} has {free / gib:.1f}"
        )
