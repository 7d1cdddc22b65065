"""Checkpoints of a run: written whole or not at all, the last few kept, read back strictly.

A file `step_00001000.pt` is the state after 1000 steps. It is written to a temporary name in the same folder, flushed
to disk, renamed, and the folder flushed, so that a kill or a full disk at any moment leaves the former ones intact.
Reading uses `weights_only=True`: a checkpoint can hold tensors and plain values, never code. The checksums of the zip
archive and the `sha256` of the tensors, which the file holds, must agree.
"""

import errno
import hashlib
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_transfer.errors import UserError
from mae_transfer.files import damaged_member

_BAD_ZIP = (zipfile.BadZipFile, NotImplementedError, zlib.error)
_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, *_BAD_ZIP, pickle.UnpicklingError)
_NAME = re.compile(r"step_(\d{8,})\.pt")


class _Damaged(ValueError):
    """Found by our own checks; the errors of torch and of zip readers speak of their own insides."""


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; empty if there is no such folder."""
    found = [(int(match[1]), path) for path in folder.glob("step_*.pt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def save_checkpoint(folder: Path, step: int, state: dict[str, object], keep: int) -> Path:
    """Write the state after `step` steps and delete all but the newest `keep` checkpoints.

    UserError if it cannot be written; then nothing of it is left and the earlier ones are untouched.
    """
    path = checkpoint_path(folder, step)
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state | {"sha256": tensors_sha256(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(folder)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        cause = _os_error(error)
        if cause is None:
            raise
        good = list_checkpoints(folder)
        last = f"the last good one is {good[-1].name}" if good else "there is no earlier one"
        raise UserError(f"cannot write checkpoint {path}: {cause.strerror}; {last}; make room and --resume") from error
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU; UserError, naming the next older one, if it cannot be read."""
    try:
        if zipfile.is_zipfile(path) and (damaged := damaged_member(path)):
            raise _Damaged(f"damaged, {damaged} fails its checksum")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        verify(state)
    except _UNREADABLE as error:
        present = list_checkpoints(path.parent)
        older = present[: present.index(path)] if path in present else []
        remedy = (
            f"delete it to resume from {older[-1].name}"
            if older
            else "there is no older one: start again in another folder"
        )
        reason = str(error) if isinstance(error, _Damaged) else "truncated or damaged"
        if isinstance(error, OSError) and error.strerror and error.errno != errno.EINVAL:  # of a file cut short
            reason = f"cannot be read ({error.strerror})"
        raise UserError(f"checkpoint {path}: {reason}; {remedy}") from error
    if not isinstance(state, dict) or not {"step", "model", "optimizer"} <= state.keys():
        raise UserError(f"checkpoint {path} is not one of a training run; pass weights by --checkpoint instead")
    return state


def read_origin(folder: Path) -> dict[str, object] | None:
    """The origin of a run as its newest checkpoint has it, without reading tensors; None without a checkpoint, or if it
    cannot be read, which `load_checkpoint` explains."""
    paths = list_checkpoints(folder)
    if not paths:
        return None
    try:
        state = torch.load(paths[-1], map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE:
        return None
    return state.get("origin") if isinstance(state, dict) else None


def tensors_sha256(state: Mapping[str, object]) -> str:
    """sha256 over all tensors of a checkpoint: their places in it, types, shapes and values."""
    digest = hashlib.sha256()
    for place, tensor in _tensors(state, ""):
        digest.update(f"{place} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def verify(state: object) -> None:
    """Raise ValueError if the content of a checkpoint of a run has a hash of its tensors that they do not have."""
    if not isinstance(state, Mapping) or not {"step", "model", "optimizer", "sha256"} <= state.keys():
        return
    if state["sha256"] != tensors_sha256({key: value for key, value in state.items() if key != "sha256"}):
        raise _Damaged("damaged, its tensors are not those that were saved")


def _tensors(value: object, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{place}/{key}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from _tensors(inner, f"{place}/{i}")


def evaluated_weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The model's weights in a checkpoint that are to be evaluated: the moving average if the run kept one."""
    if state["ema"] is None:
        return state["model"]
    return {name.removeprefix("module."): value for name, value in state["ema"].items() if name != "n_averaged"}


def remove_unfinished(folder: Path) -> None:
    """Delete what a kill in the middle of a write left behind."""
    for path in folder.glob("step_*.tmp"):
        path.unlink()


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError behind an error: torch's zip writer puts a RuntimeError of its own on top when a write fails."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
