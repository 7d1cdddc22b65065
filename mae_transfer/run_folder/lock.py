"""The lock of a run folder, so that two runs never write into one.

It is a POSIX record lock on `run.lock`: the kernel frees it when the process ends, however it ends, and loader
processes forked from it do not inherit it (they would inherit `flock`, and keep a killed run's folder locked for the
seconds they need to notice).

On a file system without locks (Lustre mounted without `flock`, some NFS) the file `run.owner` takes its place. Making
it fails where it is already (O_EXCL); it holds host, process and time, and goes with the run. A process that was killed
leaves it behind: on the same host the next run sees that its owner is gone and takes over, on another host it cannot.
Nor can it in another container, where process numbers are others, or after a restart of the machine, which another one
of the same name looks like.
"""

import fcntl
import json
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from mae_transfer.errors import UserError
from mae_transfer.files import lacks_locks, parse_json

_LOG = logging.getLogger("mae_transfer")
OWNER = "run.owner"
TAKEOVER = "run.takeover"
"""Held for the moment in which the file of an owner that is gone is deleted."""
# A record lock does not keep a process from locking twice, and closing ANY descriptor of the file gives it up: so a
# folder that this process holds must not even be opened again.
_held: set[Path] = set()


class FolderLock:
    """Held from `__init__` to `release`.

    Raises:
        UserError: another run holds it.
        OSError: the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner: Path | None = None
        message = f"output folder {path} is in use by another run; wait for it or give another --output"
        if path.resolve() in _held:
            raise UserError(message)
        self._descriptor = os.open(path / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(self._descriptor)
            raise UserError(message) from error
        except OSError as error:
            try:
                if not lacks_locks(error):
                    raise
                self._owner = _own(path / OWNER)
            except BaseException:
                os.close(self._descriptor)
                raise
            _LOG.warning(
                "%s: this file system has no locks (%s); %s keeps other runs out", path, error.strerror, self._owner
            )
        _held.add(path.resolve())

    def release(self) -> None:
        if self._owner is not None:
            with suppress(OSError):
                self._owner.unlink()
        os.close(self._descriptor)
        _held.discard(self.path.resolve())


def is_owned(path: Path) -> bool:
    """Whether the folder has an owner that is not known to be gone."""
    return (path / OWNER).exists() and not _is_gone(path / OWNER)


def _own(path: Path) -> Path:
    """Make the owner's file; UserError if there is one of another run."""
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            if not _is_gone(path):
                raise UserError(
                    f"output folder {path.parent} is in use by {_text(path)}; wait for it, give another --output or, "
                    f"if that run is over, delete {path}"
                ) from None
            _delete_left(path)
            continue
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "machine": _machine(),
            "started": _started(os.getpid()),
        }
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(owner, file)
            file.flush()
            os.fsync(file.fileno())
        return path
    raise UserError(f"output folder {path.parent} is in use by another run; wait for it or give another --output")


def _delete_left(path: Path) -> None:
    """Delete the file of an owner that is gone. One process at a time looks again and deletes: another may have taken
    over in the meantime, and its file stays."""
    held = path.with_name(TAKEOVER)
    try:
        os.close(os.open(held, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        raise UserError(
            f"output folder {path.parent} is in use by another run, which starts now; wait for it, give another "
            f"--output or, if none starts, delete {held}"
        ) from None
    try:
        if _is_gone(path):
            path.unlink(missing_ok=True)
    finally:
        held.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, object]:
    """What the file says; empty while it is being written."""
    with suppress(OSError, ValueError):
        content = parse_json(path.read_bytes())
        if isinstance(content, dict):
            return dict(content)
    return {}


def _is_gone(path: Path) -> bool:
    """Whether the owner was a process of this machine and container, and its number is free or another process's."""
    owner = _read(path)
    pid = owner.get("pid")
    if (owner.get("host"), owner.get("machine")) != (socket.gethostname(), _machine()) or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's
    started = _started(pid)
    return started is not None and started != owner.get("started")


def _machine() -> str | None:
    """This start of the machine and the namespace of process numbers, of which containers have their own; None where
    the system does not say."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return None


def _started(pid: int) -> str | None:
    """When a process was started, in ticks of the machine; None where the system does not say."""
    with suppress(OSError, IndexError):  # proc_pid_stat(5): field 22; the second is a name in brackets
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    return None


def _text(path: Path) -> str:
    owner = _read(path)
    return (
        f"process {owner['pid']} on {owner['host']} since {owner['time']}"
        if owner.keys() >= {"pid", "host", "time"}
        else "another run"
    )
