"""`--eval-only` with a weights file and no run folder: the file is a trained model, and is evaluated as it is."""

import logging
from collections.abc import Callable
from pathlib import Path

from mae_transfer.backbones.checkpoints.inspect import inspect
from mae_transfer.errors import UserError
from mae_transfer.run_folder.folder import stored_config
from mae_transfer.runs.tasks import task_card

_LOG = logging.getLogger(__name__)
PROTOCOL = "trained"
"""Name of the protocol, in tasks that have it, whose model is a file's own."""


def of_file(
    task: str,
    backbone: str | None,
    *,
    eval_only: bool,
    checkpoint: str | Path | None,
    protocol: str | None,
    folder: Callable[[str, str | None], Path],
) -> tuple[str, str | None, bool]:
    """Backbone and protocol of what is asked for, and whether a run folder is evaluated again.

    A run folder that the options name is evaluated as before. Without one, `--eval-only --checkpoint FILE` evaluates
    the file. A backbone that is not named is found by the file.

    Args:
        folder: a backbone and a protocol -> the folder of the run.

    Raises:
        UserError: no backbone is named and none is found.
    """
    has_protocol = any(known.name == PROTOCOL for known in task_card(task).protocols)
    may_be = has_protocol and protocol in (None, PROTOCOL) and (eval_only or protocol == PROTOCOL)
    if backbone is None:
        if not may_be or checkpoint is None:
            raise UserError("--backbone is missing; only a trained model's file (--eval-only --checkpoint) tells it")
        backbone = found_in(checkpoint)
    if not may_be or (checkpoint is None and protocol is None):
        return backbone, protocol, eval_only
    run = _run_folder(backbone, protocol, folder)
    if run is None:
        return backbone, PROTOCOL, False
    if stored_config(run).get("protocol") != PROTOCOL:
        return backbone, protocol, eval_only
    return backbone, PROTOCOL, eval_only


def _run_folder(backbone: str, protocol: str | None, folder: Callable[[str, str | None], Path]) -> Path | None:
    """The folder of a run that is there: by these options as a training reads them, or as a trained model's."""
    for asked in dict.fromkeys((protocol, PROTOCOL)):
        try:
            path = folder(backbone, asked)
        except UserError:
            continue
        if (path / "config.yaml").is_file():
            return path
    return None


def found_in(checkpoint: str | Path) -> str:
    """The backbone that a file's shapes tell; UserError if they tell none."""
    found = inspect(checkpoint).backbone
    if found is None:
        raise UserError(f"checkpoint {checkpoint}: no backbone name fits it; pass --backbone")
    _LOG.info("backbone %s, by the shapes in %s; --backbone names another", found, checkpoint)
    return found
