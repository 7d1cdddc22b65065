"""The folder of one run: its lock, its configuration, its log and metrics, its checkpoints.

    config.yaml     the resolved configuration; a resume must agree with it in every field that a resume may not
                    change (config/roles.py)
    metrics.jsonl   one line per step, and one per evaluation during training
    log.txt         what is logged under `mae_transfer`
    checkpoints/    see checkpoints.py
    run.lock        held while a process works here (lock.py)

Only rank 0 has a run folder; the other ranks write nothing.
"""

import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from mae_transfer.config.old_names import renamed
from mae_transfer.config.overrides import flatten
from mae_transfer.config.roles import resumable
from mae_transfer.config.sections import RunConfig
from mae_transfer.config.yaml import dump_yaml, read_yaml
from mae_transfer.errors import UserError
from mae_transfer.run_folder.checkpoints import list_checkpoints, remove_unfinished
from mae_transfer.run_folder.lock import FolderLock
from mae_transfer.run_folder.metrics import Epoch, EpochHistory, history_of, lines_after, read_metrics, up_to

_LOG = logging.getLogger("mae_transfer")
CHECKED = 2**22
"""Bytes of a metrics.jsonl, read and checked within a second."""
_TEMPORARY = re.compile(r"\..+\.(json|npz|npy|png)\.[a-z0-9_]{8}")
"""Names that `atomic_write` gives."""


class RunFolder:
    """An output folder, made if it is not there, and locked from `__init__` to `close` (or as a context).

    config: the resolved configuration.
    resume: go on with the run in the folder instead of starting one; needs a run there with the same recipe.
    UserError: the folder is in use, cannot be written, holds a run already (without `resume`), holds none (with it), or
    holds one with another recipe. A run that ended before its first step is none, and can be resumed as well.
    """

    def __init__(self, path: str | Path, config: RunConfig, *, resume: bool = False) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.config = config
        self.history = EpochHistory()
        self._metrics: int | None = None
        self._log: logging.Handler | None = None
        has_config = (self.path / "config.yaml").exists()
        if resume and not has_config and (not self.checkpoints.is_dir() or list_checkpoints(self.checkpoints)):
            raise UserError(
                f"nothing to resume or evaluate in {self.path}: it has no config.yaml; train first, without that option"
            )
        with _writing(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path)
        try:
            self._check_and_write_config(resume and has_config)
            remove_unfinished(self.checkpoints)
            sweep(self.path)
            with _writing(self.path):
                self._log = _LogFile(self.path / "log.txt", encoding="ascii", errors="backslashreplace")
        except BaseException:
            self.close()
            raise
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        _LOG.addHandler(self._log)
        _LOG.setLevel(logging.INFO)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and free the lock."""
        if self._log is not None:
            _LOG.removeHandler(self._log)
            with suppress(OSError):  # of a record that could not be written, which has been raised already
                self._log.close()
        if self._metrics is not None:
            if not os.fstat(self._metrics).st_size:  # a finished run goes on whose file was deleted, as errors advise
                (self.path / "metrics.jsonl").unlink(missing_ok=True)
            os.close(self._metrics)
        self._lock.release()

    def start_metrics(self, step: int, epochs: Sequence[Epoch] | None = ()) -> None:
        """Cut metrics.jsonl down to the lines of the first `step` steps, whole ones only, and open it to append.

        So the history of a resumed run is that of one that was never interrupted. A file of up to `CHECKED` bytes is
        checked whole, of a larger one the lines that are cut. UserError if it ends before that step.

        Args:
            epochs: `history.epochs` after the step; None where that is not known, and the file is read for it.
        """
        path = self.path / "metrics.jsonl"
        if path.exists() and path.stat().st_size <= CHECKED:
            read_metrics(self.path)
        kept = up_to(self.path, step)
        with _writing(path):
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(kept)
            os.replace(temporary, path)
            self._metrics = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.history = history_of(self.path, epochs)
        for line in () if epochs is None else lines_after(self.path, step - 1)[1]:
            if "eval" in line:  # it came after the step's checkpoint
                self.history.add(line)

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add a line, which holds its `step` and `epoch`; numbers that are not finite become null.

        The line has reached the kernel on return, so that a killed process does not lose it.
        """
        assert self._metrics is not None, "start_metrics comes first"
        text = json.dumps(_finite(line), allow_nan=False)
        rest = text.encode("ascii") + b"\n"
        with _writing(self.path / "metrics.jsonl"):
            while rest:  # a write on an almost full disk may take a part; the next one then raises
                rest = rest[os.write(self._metrics, rest) :]
        self.history.add(json.loads(text))  # plain values, as a checkpoint holds them

    def flush_metrics(self) -> None:
        """Bring the lines to disk; before a checkpoint, so that after a power cut it has its history."""
        assert self._metrics is not None, "start_metrics comes first"
        with _writing(self.path / "metrics.jsonl"):
            os.fsync(self._metrics)

    def _check_and_write_config(self, resume: bool) -> None:
        path = self.path / "config.yaml"
        if resume:
            check_same_recipe(self.path, self.config)
        else:
            check_free(self.path)
        with _writing(path):
            temporary = path.with_suffix(".tmp")
            temporary.write_text(dump_yaml(self.config.model_dump(mode="json")), encoding="utf-8")
            os.replace(temporary, path)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sweep(path: Path) -> None:
    """Delete the temporary files that killed processes left in a run folder, which is locked, and in its features."""
    for folder in (path, path / "features"):
        for file in folder.glob("*"):
            if file.name in ("config.tmp", "metrics.tmp") or _TEMPORARY.fullmatch(file.name):
                with suppress(OSError):
                    file.unlink()


def is_free(path: Path) -> bool:
    """Whether the folder holds no run. One that ended before its first step is none."""
    return not ((path / "record.json").exists() or read_metrics(path) or list_checkpoints(path / "checkpoints"))


def check_free(path: Path) -> None:
    """UserError if the folder holds a run."""
    if not is_free(path):
        raise UserError(f"output folder {path} holds a run already; pass --resume or another --output")


def check_begun(path: Path) -> None:
    """UserError if there is no run in the folder to evaluate."""
    if not (path / "config.yaml").exists():
        raise UserError(f"nothing to evaluate in {path}: it has no config.yaml; train first, without --eval-only")


def check_same_recipe(path: Path, config: RunConfig) -> None:
    """UserError unless the run in the folder has this configuration, but for what a resume may change.

    A field that the stored configuration lacks was added after the run was made: the run had the field's default.
    """
    changed = changes(stored_config(path), config)
    if changed:
        raise UserError(
            f"another recipe than that of the run, {path / 'config.yaml'}: {'; '.join(changed)}; undo these or give "
            "another --output"
        )


def stored_config(path: Path) -> dict[str, object]:
    """The configuration in a run folder, flat and under today's names; UserError if it cannot be read."""
    return flatten(renamed(read_yaml(path / "config.yaml", "the run's configuration")))


def changes(stored: Mapping[str, object], config: RunConfig) -> list[str]:
    """'key: before -> now' for each difference of a stored configuration that a resume may not make."""
    schema, new = type(config), flatten(config.model_dump(mode="json"))
    changed = []
    for key in sorted((stored.keys() | new.keys()) - resumable(schema)):
        before = stored[key] if key in stored else default_of(schema, key)
        if key == "train.micro_batch" and new[key] == "auto" and stored.get("train.micro_batch_auto"):
            continue  # it was chosen at the run's start
        if before != new.get(key, "(absent)"):
            changed.append(f"{key}: {before} -> {new.get(key, '(absent)')}")
    return changed


def default_of(schema: type[BaseModel], key: str) -> object:
    """Of a field by its dotted key; "(absent)" if it has none."""
    *sections, leaf = key.split(".")
    for section in sections:
        inner = schema.model_fields[section].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        schema = inner
    default = schema.model_fields[leaf].default
    return "(absent)" if default is PydanticUndefined else default


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or path}: {error.strerror}; make room or change --output"
        ) from error


class _LogFile(logging.FileHandler):
    """A log file that stops the run when it cannot be written, instead of printing a traceback for each line."""

    def handleError(self, record: logging.LogRecord) -> None:
        with _writing(Path(self.baseFilename)):
            raise  # logging calls this inside its except clause
