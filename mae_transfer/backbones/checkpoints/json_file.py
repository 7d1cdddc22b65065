"""JSON files that come with weights: `config.json`, an index of shards."""

import json
from pathlib import Path
from typing import Any

from mae_transfer.errors import UserError

_MOST_BYTES = 100_000_000


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, in UTF-8 or UTF-16, with or without a byte order mark; UserError if there is none."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("too long")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); restore it or take it away.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not an object; restore it or take it away.")
    return content
