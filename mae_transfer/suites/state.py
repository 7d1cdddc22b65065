"""What of a suite's runs is there, told by the run folders alone, and the claims that keep two runners apart.

Beside the run folders lies the folder `suite`, with a log file (`.log`), a claim (`.lock`) and, after a failure, its
reason (`.failed.json`) for each run; on a cluster also the id of its job (`.job`). A claim is an flock, which the
runner takes and its child inherits: it is held as long as either lives, so that a runner started anew waits for the
children that a killed one left behind.
"""

import fcntl
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mae_transfer.errors import UserError
from mae_transfer.files import JSON, lacks_locks, parse_json
from mae_transfer.run_folder.lock import is_owned
from mae_transfer.run_folder.record import write_json

State = Literal["done", "running", "failed", "stopped", "missing"]
FOLDER = "suite"


@dataclass(frozen=True)
class RunPlace:
    """Where a run lies, and what the suite keeps of it."""

    path: Path
    """Its run folder."""

    def _beside(self, suffix: str) -> Path:
        return self.path.parent / FOLDER / f"{self.path.name}{suffix}"

    @property
    def log(self) -> Path:
        return self._beside(".log")

    @property
    def claim(self) -> Path:
        return self._beside(".lock")

    @property
    def job(self) -> Path:
        """The id that a cluster gave to its job."""
        return self._beside(".job")

    @property
    def failure(self) -> Path:
        return self._beside(".failed.json")

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def begun(self) -> bool:
        """Whether --resume finds something to go on with, if only a configuration."""
        return (self.path / "config.yaml").exists()

    def state(self) -> State:
        """What the files say; a claim that is held by the caller itself does not count as running."""
        if self.record.exists():
            return "done"
        if is_locked(self.path / "run.lock"):
            return "running"
        if self.failure.exists():
            return "failed"
        return "stopped" if self.begun else "missing"

    def seen_state(self) -> State:
        """As `state`, for one who holds no claim: a run whose process is still starting up is running too."""
        state = self.state()
        if state in ("failed", "stopped", "missing") and self.claim.exists():
            claim = take_claim(self)
            if claim is None:
                return "running"
            os.close(claim)
        return state

    def reason(self) -> str:
        """Of a failure, in one line."""
        try:
            return _reason(parse_json(self.failure.read_bytes()))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self.failure} ({error}); delete it to have the run made again") from None

    def note_failure(self, reason: str) -> None:
        write_json(self.failure, {"reason": reason})


def _reason(content: JSON) -> str:
    if not isinstance(content, dict) or not isinstance(content.get("reason"), str):
        raise ValueError("it has no reason")
    return str(content["reason"])


def take_claim(place: RunPlace) -> int | None:
    """A descriptor that holds the claim on a run until it is closed here and in all processes that inherited it; None
    if another holds it."""
    try:
        place.claim.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place.claim, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}; make room or change --output") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        if not lacks_locks(error):
            os.close(descriptor)
            raise UserError(f"cannot lock {place.claim}: {error.strerror}; change --output") from None
    return descriptor  # without locks a run that two runners start is refused to one of them by its own folder


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a run folder, asked without touching it (F_GETLK).

    A trial lock would make a run fail that starts at that moment.
    """
    layout, ask = (
        ("qqihh", (0, 0, 0, fcntl.F_WRLCK, 0)) if sys.platform == "darwin" else ("hhqqi", (fcntl.F_WRLCK, *[0] * 4))
    )
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; run the suite as the user whose folder it is") from None
    try:
        answer = struct.unpack(layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(layout, *ask)))
    except OSError as error:
        if not lacks_locks(error):
            raise
        return is_owned(path.parent)
    finally:
        os.close(descriptor)
    return answer[3 if sys.platform == "darwin" else 0] != fcntl.F_UNLCK


def last_line(log: Path, start: int = 0) -> str:
    """The last line with anything in it that was written to a log after byte `start`; empty if there is none."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - 8192))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
