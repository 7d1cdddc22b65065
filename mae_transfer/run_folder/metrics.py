"""Reading a run folder's metrics.jsonl and config.yaml, without torch: a report of results reads them too."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mae_transfer.errors import UserError


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a folder's metrics.jsonl; a last line that a kill cut off is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    with reading(path):
        lines = path.read_text(encoding="ascii").splitlines(keepends=True)
    metrics = []
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith("\n"):
            break
        try:
            metrics.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number} is not JSON; restore or delete the file") from error
    return metrics


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a file that is no such file raises into a UserError."""
    try:
        yield
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"cannot read {path}: {reason}; restore it or give another --output") from error
