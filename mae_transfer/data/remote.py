"""Files at addresses (`https://`, `s3://`, whatever fsspec knows), fetched whole into the user's cache before a run.

From then on they are files like others, so that a run has exactly the samples that it would have from a disk. A file is
kept under what the server says of it (size, ETag, time, ...): another one is fetched anew. The cache is bounded; data
sets that no process uses make room, the longest unused first.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

import fsspec

from mae_transfer.data.index_cache import lock_file
from mae_transfer.data.synthetic.folder import cache_folder
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write, lacks_locks

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before a failed request is made again."""
WAIT = 6 * 3600.0
"""Seconds for which a process waits for one that fetches the same file."""
_THREADS = 8
_BLOCK = 2**22
_GIB = 2**30
_SAY_NOTHING = {"name", "url", "type", "size", "mimetype", "partial"}
"""Of what a file system says of a file: nothing of its content, or too little."""
_used: dict[Path, IO[str]] = {}
"""Locks of the data sets that this process uses, until it ends."""


def fetch(addresses: Sequence[str], most_gib: float) -> list[Path]:
    """The files in the cache, in order, after those that are not there have been fetched.

    Args:
        most_gib: GiB that all fetched files may take.

    Raises:
        UserError: an address that cannot be fetched, after some attempts; more data than the bound or the disk has room
            for; a cache that cannot be written.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(_Remote, addresses))
        for folder in {file.folder for file in files}:
            _use(folder, [file for file in files if file.folder == folder])
        missing = [file for file in files if not file.path.exists()]
        if missing:
            _make_room(files, sum(file.size for file in missing), most_gib)
            gib = sum(file.size for file in missing) / _GIB
            _LOG.info("fetching %d files, %.1f GiB, into %s", len(missing), gib, missing[0].folder.parent)
        told = time.monotonic()
        for done, _ in enumerate(pool.map(_Remote.fetch, missing), start=1):
            if time.monotonic() > told + 10:
                told = time.monotonic()
                _LOG.info("fetched %d of %d files", done, len(missing))
    if unsure := [file.address for file in files if not file.told]:
        _LOG.warning(
            "%s: the server says the size alone (of %d files); another file of that size is not noticed",
            *(unsure[0], len(unsure)),
        )
    return [file.path for file in files]


class _Unreachable(UserError):
    """Nobody answers, or answers break off."""


class _BrokenOff(Exception):
    """In the middle of a file."""


class _Remote:
    """A file at an address, and where the cache has it or will."""

    def __init__(self, address: str) -> None:
        base, _, name = address.rpartition("/")
        options = _http_options() if address.startswith("http") else {}
        self.address = address
        self.folder = cache_folder("fetched") / hashlib.sha256(base.encode()).hexdigest()[:16]
        self.number = hashlib.sha256(address.encode()).hexdigest()[:8]
        self.told = True
        """Whether the server says more of the file than its size."""
        try:
            self._system, self._place = fsspec.core.url_to_fs(address, **options)
            about = _attempts(address, lambda: self._system.info(self._place))
        except _Unreachable as error:
            there = [path for path in self.folder.glob(f"{self.number}-*/*") if path.name == name]
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
        said = {key: value for key, value in about.items() if key not in _SAY_NOTHING and value is not None}
        self.told = bool(said)
        state = json.dumps([self.size, said], sort_keys=True, default=str)
        self.path = self.folder / f"{self.number}-{hashlib.sha256(state.encode()).hexdigest()[:16]}" / name

    def fetch(self) -> None:
        with lock_file(self.path.parent.with_suffix(".lock"), WAIT):  # without a lock a file may be fetched twice
            if not self.path.exists():
                _attempts(self.address, self._fetch)

    def _fetch(self) -> None:
        # A stream where the protocol has one: a server may know no ranges.
        stream = {"block_size": 0} if self.address.startswith("http") else {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as file:
                for block in self._blocks(stream):
                    file.write(block)
                if file.tell() != self.size:
                    raise _BrokenOff(f"{file.tell()} of {self.size} bytes came")
        except (OSError, UserError) as error:
            raise _unwritable(error.__cause__ or error) from error

    def _blocks(self, stream: dict[str, int]) -> Iterator[bytes]:
        try:
            with self._system.open(self._place, "rb", **stream) as remote:
                while block := remote.read(_BLOCK):
                    yield block
        except Exception as error:  # every protocol's library has errors of its own
            raise _BrokenOff(" ".join(f"{error}".split()) or type(error).__name__) from error


def _http_options() -> dict[str, object]:
    """A file may take any time, but not a minute without a byte; fsspec's own limit is five minutes for the whole."""
    import aiohttp  # a quarter of a second that runs on files of their own need not wait

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)}}


def _attempts(address: str, request: Callable[[], T]) -> T:
    for pause in (*PAUSES, None):
        try:
            return request()
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  # every protocol's library has errors of its own
            # fsspec says "not found" of a server that does not answer, too: its cause tells
            cause = (isinstance(error, (FileNotFoundError, _BrokenOff)) and error.__cause__) or error
            status = getattr(cause, "status", None)
            if status in (404, 410) or (status is None and isinstance(cause, FileNotFoundError)):
                raise UserError(f"{address} is not there; check the address") from cause
            reason = " ".join(f"{cause}".split()) or type(cause).__name__
            if status in (401, 403) or isinstance(cause, PermissionError):
                raise UserError(f"{address} may not be read ({reason}); check your rights to it") from cause
            if pause is None:
                tried = f"after {len(PAUSES) + 1} attempts"
                raise _Unreachable(f"{address} cannot be fetched ({reason}), {tried}") from cause
            _LOG.warning("%s: %s; it is tried again in %.0f s", address, reason, pause)
            time.sleep(pause)
    raise AssertionError


def _unwritable(error: BaseException) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(
        f"{cache_folder('fetched')} cannot be written ({reason}); set XDG_CACHE_HOME to a folder with room"
    )


def _use(folder: Path, files: Sequence[_Remote]) -> None:
    """Hold a data set in the cache until this process ends, without what the server has no more if nobody uses that."""
    if folder in _used:
        return
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / "used").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                wanted = {file.number: file.path.parent for file in files}
                for old in folder.glob("*-*/"):
                    if wanted.get(old.name.partition("-")[0], old) != old:
                        shutil.rmtree(old)
            except BlockingIOError:
                pass
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _same(lock, folder / "used"):  # else another process removed the data set before it was held
                _used[folder] = lock
                return
            lock.close()
    except OSError as error:
        if not lacks_locks(error) and not all(file.path.exists() for file in files):
            raise _unwritable(error) from error


def _same(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _make_room(files: Sequence[_Remote], missing: int, most_gib: float) -> None:
    """Remove the data sets that were used longest ago and by nobody now, until what is to come has room."""
    root, what = cache_folder("fetched"), f"{files[0].address} and what belongs to it"
    size = sum(file.size for file in files)
    if size > most_gib * _GIB:
        raise UserError(
            f"{what} take {size / _GIB:.1f} GiB, and data.cache_gib={most_gib:g} are allowed; raise it, or fetch them "
            "to a disk of your own"
        )
    for used in [*sorted(root.glob("*/used"), key=_time), None]:
        taken = sum(map(_size, root.rglob("*.tar")))
        free = shutil.disk_usage(root).free
        if taken + missing <= most_gib * _GIB and missing < free:
            return
        if used is None:
            break
        with suppress(OSError), used.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _LOG.info("%s is removed to make room", used.parent)
            shutil.rmtree(used.parent)
    raise UserError(
        f"{what} need {missing / _GIB:.1f} GiB more; running processes use {taken / _GIB:.1f} of the "
        f"data.cache_gib={most_gib:g} GiB of {root}, and its disk has {free / _GIB:.1f} GiB free; raise it, or set "
        "XDG_CACHE_HOME to a folder with room"
    )


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process has removed it
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
