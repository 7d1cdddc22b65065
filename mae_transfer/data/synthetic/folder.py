"""A generated folder: made once, whole or not at all, always the same, and then reused."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from mae_transfer.errors import UserError
from mae_transfer.files import parse_json, user_path

PARAMETERS_FILE = "synthetic.json"


def make_folder(folder: str | Path, parameters: dict[str, object], write: Callable[[Path], None]) -> Path:
    """The folder, made by `write(path)` unless it is there already; `write` gets an empty one that is renamed at last.

    Args:
        parameters: plain JSON values that say what `write` makes, a version of its code among them. They are kept in
            the folder, which is reused for equal ones only.

    Raises:
        UserError: something else is there, or it cannot be written; nothing of it is left then.
    """
    folder = Path(folder)
    if _is_ready(folder, parameters):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            partial = Path(temporary, folder.name)
            partial.mkdir()
            write(partial)
            (partial / PARAMETERS_FILE).write_text(json.dumps(parameters), encoding="utf-8")
            try:
                partial.rename(folder)
            except OSError:
                if not _is_ready(folder, parameters):  # else another process was faster
                    raise
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; free space or give another folder"
        ) from error
    return folder


def cache_folder(name: str) -> Path:
    """A folder of this name in the user's cache, whether it is there or not."""
    return user_path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "mae_transfer" / name


def _is_ready(folder: Path, parameters: dict[str, object]) -> bool:
    if not folder.exists() or (folder.is_dir() and not os.listdir(folder)):
        return False
    try:
        found = parse_json((folder / PARAMETERS_FILE).read_bytes())
    except (OSError, ValueError):
        found = None
    if found != parameters:
        raise UserError(
            f"{folder}: there is something else than the synthetic data set of these parameters; remove it or give "
            "another folder"
        )
    return True
