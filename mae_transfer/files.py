"""Read files with one-line errors, write them whole or not at all, parse JSON, find damage in a zip archive."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeAlias

from mae_transfer.errors import UserError

JSON: TypeAlias = "dict[str, JSON] | list[JSON] | str | int | float | bool | None"
DEPTH = 100
"""Deepest nesting of JSON that is read."""
DIGITS = 1000
"""Longest whole number of JSON that is read."""


def user_path(path: str | Path) -> Path:
    """A path with `~` as the home folder, also where no shell has replaced it; a name that only begins so is kept."""
    return Path(os.path.expanduser(path))


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; on success it is synced to disk and renamed to `path`, else removed.

    A reader sees the old file or the new one, never half of it, also after a power cut. Temporary files that killed
    processes left beside `path` are removed first.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file is left as it was.
    """
    temporary = None
    try:
        _remove_left(path)
        descriptor, temporary = _temporary(path)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(descriptor, 0o644)  # mkstemp made it private
            os.fsync(descriptor)
            os.replace(temporary, path)
            temporary = None
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the rename itself durable
        finally:
            os.close(folder)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another --output"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def lacks_locks(error: OSError) -> bool:
    """Whether a lock failed because the file system has none."""
    return error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def _temporary(path: Path) -> tuple[int, str]:
    """Descriptor and name of a new file beside `path`, with a lock that ends with its writer."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with suppress(OSError):  # a file system without locks, where nothing is removed either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # else another process removed it before it had its lock
            return descriptor, name
        os.close(descriptor)


def _remove_left(path: Path) -> None:
    """Delete the temporary files of `path` that no process holds a lock of."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with suppress(OSError), left.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def damaged_member(path: Path) -> str | None:
    """Name of the first member of a zip archive, such as torch.save writes, that fails its CRC-32; None if all agree.

    torch.load does not compare them. All are 0 in a file of `torch.serialization.set_crc32_options(False)`, which then
    says nothing.
    """
    with zipfile.ZipFile(path) as archive:
        known = any(member.CRC for member in archive.infolist())
        return archive.testzip() if known else None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits.

    Raises:
        UserError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def reading(path: Path, advice: str = "restore it or change its permissions") -> Iterator[None]:
    """Turn an OSError while `path` is read into a UserError that names the file, the reason and the advice."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path} is not there; give the path of a file that is") from error
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror or error}; {advice}") from error


def parse_json(content: bytes | str, each: Callable[[dict[str, object]], object] | None = None) -> JSON:
    """The value of a JSON text, which is in UTF-8, UTF-16 or UTF-32 if it is bytes, with or without a byte order mark.

    Args:
        each: called with every object, from the inside out; its result stands in the object's place.

    Raises:
        ValueError: what is wrong with it, in one line. A key that an object has twice, nesting deeper than `DEPTH` and
            whole numbers longer than `DIGITS` are.
    """
    try:
        text = content if isinstance(content, str) else content.decode(json.detect_encoding(content))
        value: JSON = json_decoder(each).decode(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEPTH} levels") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not {error.encoding}, by byte {error.start}") from None
    check_depth(value, DEPTH)
    return value


def json_decoder(each: Callable[[dict[str, object]], object] | None = None) -> json.JSONDecoder:
    """Python's decoder with the rules of `parse_json` for keys and whole numbers."""

    def object_of(pairs: list[tuple[str, object]]) -> object:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ValueError(f"the key {twice!r:.60} is twice in an object")
        return found if each is None else each(found)

    return json.JSONDecoder(object_pairs_hook=object_of, parse_int=_whole)


def check_depth(value: JSON, depth: int) -> None:
    """Raise ValueError if a value is nested deeper than `depth` levels."""
    level = [value]
    for _ in range(depth):
        level = [inner for outer in level for inner in _values(outer) if isinstance(inner, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {DEPTH} levels")


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _values(outer: JSON) -> Iterable[JSON]:
    return outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ()
