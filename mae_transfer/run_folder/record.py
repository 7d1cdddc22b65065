"""The run record: one JSON file per run, the only thing tables are ever built from. Imports neither torch nor tasks.

`schema.py` holds the types, docs/records.md the description.

The protocol is everything that may change the metric and is not what a table compares (backbone, weights, seed); its id
is a hash. Two runs share a cell of a table only when their protocols agree.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from mae_transfer.config.sections import OPERATIONAL
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write
from mae_transfer.run_folder.schema import READABLE, REQUIRED, SCHEMA, SUMMARY, WHOLE

__all__ = ["REQUIRED", "SCHEMA", "find_records", "flatten", "make_protocol", "protocol_id", "read_record", "write_json"]

FILE = "record.json"
NO_RUNS = ("checkpoints", "features", "pictures")
"""Folders of a run that hold many files and no other run."""

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
    if protocol.get("tokenizer.kind") is not None:
        protocol["tokenizer.kind"] = tokenizer_identity(protocol["tokenizer.kind"])
    return protocol | {"data_fingerprint": data_fingerprint, "norm_batch": norm_batch}


def tokenizer_identity(kind: str) -> str:
    """What a tokenizer that is named by its path is, wherever it lies: the protocol of the run that trained it, whose
    seeds may share a cell as those of other pre-trainings do, or the hash of a file. Other names are themselves."""
    path = Path(kind).expanduser()
    if (path / "record.json").is_file():
        return f"run {read_record(path / 'record.json')['protocol_id']}"
    if path.is_file():
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return f"file {digest.hexdigest()[:12]}"
    return kind


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


def read_record(path: Path, *, summary: bool = False) -> dict[str, Any]:
    """Read one record; UserError, in one line, when it is not a whole record of a schema this version knows.

    summary: only what tables need, without the history and metrics of single classes and heads: a tenth of the memory.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; restore it or delete it") from error
    record = _checked(path, content, summary)
    if summary:
        record["metrics"] = {name: value for name, value in record["metrics"].items() if "/" not in name}
    return record


def _checked(path: Path, content: bytes, summary: bool) -> dict[str, Any]:
    kind = SUMMARY if summary else WHOLE
    try:
        return cast(dict[str, Any], kind.validate_json(content))
    except ValidationError as error:
        reason = _reason(error)
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no whole JSON file ({error}); restore it or delete it") from error
    missing = [key for key in REQUIRED if not isinstance(tree, dict) or key not in tree]
    if missing:
        raise UserError(f"{path} is not a run record: it lacks {', '.join(missing)}")
    known = " and ".join(map(str, READABLE))
    if type(tree["schema"]) is int and tree["schema"] > SCHEMA:
        raise UserError(f"{path} has record schema {tree['schema']}; this version reads {known}: update mae_transfer")
    try:
        # A file name that is no Unicode is a lone surrogate in JSON, which Python reads and pydantic does not.
        return cast(dict[str, Any], kind.validate_json(json.dumps(tree, ensure_ascii=False).encode("utf-8", "replace")))
    except ValidationError:
        raise UserError(f"{path} is not a valid run record: {reason}; restore it or delete it") from None


def _reason(error: ValidationError) -> str:
    """The first thing that is wrong, where, in one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return " ".join(f"{where}: {first['msg']}".split())


def record_paths(folder: Path, errors: list[OSError]) -> Iterator[Path]:
    """The record.json of every run below a folder, in a stable order; folders that cannot be listed go to `errors`."""
    for root, folders, files in os.walk(folder, onerror=errors.append):
        if FILE in files:
            yield Path(root, FILE)
            folders[:] = [name for name in folders if name not in NO_RUNS]
        folders.sort()


def find_records(folder: Path, *, summary: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    """All records below a folder in the order of their run ids, each run once, and a line for each file left out.

    A record gets the key `folder`, where it was found, which is not in the file. Of a run that is recorded twice the
    record that was finished last counts, of equals the first by path; the line says whether they differ. A record whose
    protocol id is not that of its protocol is left out.

    summary: as in `read_record`.
    """
    records: dict[str, dict[str, Any]] = {}
    protocols: dict[str, dict[str, Any]] = {}
    left_out: list[str] = []
    errors: list[OSError] = []
    for path in record_paths(folder, errors):
        try:
            record = read_record(path, summary=summary)
            _share_protocol(path, record, protocols)
        except UserError as error:
            left_out.append(str(error))
            continue
        record["folder"] = str(path.parent)
        other = records.get(record["run_id"])
        if other is None:
            records[record["run_id"]] = record
            continue
        late = record if record.get("finished", "") > other.get("finished", "") else other
        records[record["run_id"]] = late
        counted, dropped = (record, other) if late is record else (other, record)
        left_out.append(_second_time(counted, dropped))
    left_out += [f"{error.filename} cannot be searched: {error.strerror}" for error in errors]
    return sorted(records.values(), key=lambda r: r["run_id"]), left_out


def _share_protocol(path: Path, record: dict[str, Any], known: dict[str, dict[str, Any]]) -> None:
    """Check that the id is the protocol's, and let the runs of one protocol share one dict of it."""
    protocol, name = record["protocol"], record["protocol_id"]
    if name in known and known[name] == protocol:
        record["protocol"] = known[name]
        return
    if protocol_id(protocol) != name:
        raise UserError(f"{path} was changed: protocol_id {name} is not that of its protocol; restore it or delete it")
    known[name] = protocol


_ABSENT = object()


def _second_time(counted: dict[str, Any], dropped: dict[str, Any]) -> str:
    one, other = flatten(counted), flatten(dropped)
    keys = sorted(key for key in {*one, *other} - {"folder"} if one.get(key, _ABSENT) != other.get(key, _ABSENT))
    path, run = Path(dropped["folder"], FILE), dropped["run_id"]
    if not keys:
        return f"{path} records run {run} a second time, as {Path(counted['folder'], FILE)} does; counted once"
    names = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
    return f"{path} records run {run} unlike {Path(counted['folder'], FILE)}, which counts: they differ in {names}"
