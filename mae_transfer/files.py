"""Read files with one-line errors, write them whole or not at all, and find damage in a zip archive."""

import fcntl
import glob
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mae_transfer.errors import UserError


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
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror or error}; {advice}") from error
