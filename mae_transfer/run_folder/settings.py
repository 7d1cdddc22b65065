"""The settings of a run, flat, and their id.

Settings are all that may change a metric and is not what a table compares. Two runs share a cell of a table only when
their settings agree.
"""

import hashlib
import json
from collections.abc import Mapping


def settings_id(settings: Mapping[str, object]) -> str:
    """Twelve hex digits of the SHA-256 of the settings' canonical JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
