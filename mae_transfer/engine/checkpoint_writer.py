"""Checkpoints written beside the training: the state is copied to host memory, and a thread writes the copy.

A copy is written as `checkpoints.py` says, so that a kill at any moment leaves the former ones intact.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import TypeVar, cast

from torch import Tensor

from mae_transfer.run_folder.checkpoints import checkpoint_path, save_checkpoint

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes one checkpoint at a time. As a context, it ends when the last one is written."""

    def __init__(self, folder: Path, keep: int, *, beside: bool) -> None:
        """beside: `save` gives back control after a copy; without, when the file is there, and copies nothing."""
        self._folder, self._keep, self._beside = folder, keep, beside
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._written: Future[Path] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        if self._written and (error := self._written.exception()):  # beside the error that ended the training
            _LOG.error("%s", error)

    def save(self, step: int, state: dict[str, object]) -> Path:
        """The path of the checkpoint after `step` steps, which is there after `wait` at the latest.

        UserError if it, or the one before, cannot be written.
        """
        if not self._beside:
            return save_checkpoint(self._folder, step, state, self._keep)
        before, copied = self._written, each_tensor(state, _copy)
        self._written = self._thread.submit(save_checkpoint, self._folder, step, copied, self._keep)
        if before:
            before.result()
        return checkpoint_path(self._folder, step)

    def wait(self) -> None:
        """Return when the last checkpoint is written; UserError if it could not be."""
        written, self._written = self._written, None
        if written:
            written.result()


def each_tensor(value: T, change: Callable[[Tensor], Tensor | None]) -> T:
    """The same dicts and lists with what `change` makes of their tensors, in order."""
    if isinstance(value, Tensor):
        return cast(T, change(value))
    if isinstance(value, dict):
        changed = copy(value)  # of an OrderedDict also `_metadata`, the versions of a model's modules
        changed.update((key, each_tensor(inner, change)) for key, inner in value.items())
        return changed
    if isinstance(value, (list, tuple)):
        return cast(T, type(value)(each_tensor(inner, change) for inner in value))
    return value


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
