"""The run record: one JSON file per run, the only thing tables are ever built from. Imports neither torch nor tasks.

The protocol is everything that may change the metric and is not what a table compares (backbone, weights, seed); its id
is a hash. Two runs share a cell of a table only when their protocols agree.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_transfer.atomic import atomic_write
from mae_transfer.config import OPERATIONAL
from mae_transfer.errors import UserError

SCHEMA = 1
REQUIRED = ("schema", "run_id", "task", "backbone", "preset", "seed", "protocol", "protocol_id", "metrics", "data")

COMPARED = ("backbone.name", "backbone.checkpoint", "backbone.checkpoint_key", "backbone.weights", "seed", "data.draw")
"""What a table compares or averages over: never part of the protocol."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def make_protocol(config: Mapping[str, Any], *, data_fingerprint: str, norm_batch: int) -> dict[str, Any]:
    """The flat protocol of a run.

    Args:
        config: the resolved configuration as nested plain values.
        norm_batch: images over which batch norm takes its statistics in training (micro-batch times devices).
    """
    left_out = {*COMPARED, *OPERATIONAL, "train.micro_batch"}  # micro_batch enters as norm_batch
    protocol = {key: value for key, value in flatten(config).items() if key not in left_out}
    return protocol | {"data_fingerprint": data_fingerprint, "norm_batch": norm_batch}


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """Twelve hex digits of the SHA-256 of the protocol's canonical JSON."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinities become null."""
    text = json.dumps(_finite(value), indent=1, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode() + b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def read_record(path: Path) -> dict[str, Any]:
    """Read one record; UserError when it is not a whole record of a schema this version knows."""
    try:
        record = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a readable run record ({error})") from error
    missing = [key for key in REQUIRED if not isinstance(record, dict) or key not in record]
    if missing:
        raise UserError(f"{path} is not a run record: it lacks {', '.join(missing)}")
    if record["schema"] != SCHEMA:
        raise UserError(f"{path} has record schema {record['schema']}; this version reads {SCHEMA}")
    return record


def find_records(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All records below a folder in a stable order, each run once, and a line for each file that had to be left out."""
    records: dict[str, dict[str, Any]] = {}
    left_out: list[str] = []
    for path in sorted(folder.rglob("record.json")):
        try:
            record = read_record(path)
        except UserError as error:
            left_out.append(str(error))
            continue
        if record["run_id"] in records:
            left_out.append(f"{path} records run {record['run_id']} a second time; counted once")
            continue
        records[record["run_id"]] = record
    return sorted(records.values(), key=lambda r: r["run_id"]), left_out
