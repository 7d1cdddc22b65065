"""JSON files that come with weights: `config.json`, an index of shards."""

from pathlib import Path

from mae_transfer.errors import UserError
from mae_transfer.files import JSON, parse_json

_MOST_BYTES = 100_000_000


def read_json(path: Path) -> dict[str, JSON]:
    """The object in a JSON file, in UTF-8 or UTF-16, with or without a byte order mark; UserError if there is none."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("too long")
        content = parse_json(path.read_bytes())
    except (OSError, ValueError, MemoryError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
        raise UserError(f"{path}: cannot be read ({why}); restore it or take it away.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not an object; restore it or take it away.")
    return content
