"""The settings of a run, flat, and their id.

Settings are all that may change a metric and is not what a table compares. Two runs share a cell of a table only when
their settings agree.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def settings_id(settings: Mapping[str, object]) -> str:
    """Twelve hex digits of the SHA-256 of the settings' canonical JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
