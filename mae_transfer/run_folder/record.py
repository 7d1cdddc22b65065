"""The run record: one JSON file per run, the only thing tables are ever built from. Imports neither torch nor tasks.

`schema.py` holds the types, `settings.py` the settings and their id, docs/records.md the description.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from mae_transfer.config.overrides import flatten
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write, parse_json, reading
from mae_transfer.run_folder.old_schemas import upgrade
from mae_transfer.run_folder.schema import OLD_REQUIRED, READABLE, REQUIRED, SCHEMA, SUMMARY, WHOLE, RunRecord
from mae_transfer.run_folder.settings import settings_id

RUNS = Path("results/runs")
"""Where runs go that are given no folder."""
FILE = "record.json"
ROUNDING = 1e-4
"""Percent, by which a mean of single-precision numbers may be off."""
NO_RUNS = ("checkpoints", "features", "pictures")
"""Folders of a run that hold many files and no other run."""


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; NaN and infinities become null."""
    text = json.dumps(_finite(value), indent=1, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode() + b"\n")


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def read_record(path: Path, *, summary: bool = False) -> RunRecord:
    """Read one record, of any readable schema, as one of the newest.

    summary: only what tables need, without the history and metrics of single classes and heads: a tenth of the memory.

    Raises:
        UserError: the file is not a whole record of a schema that this version knows.
    """
    if path.exists() and not path.is_file():  # a named pipe would be waited for
        raise UserError(f"{path} is no file; delete it")
    with reading(path, "restore it or delete it"):
        content = path.read_bytes()
    record = _checked(path, content, summary)
    if summary:
        record["metrics"] = {name: value for name, value in record["metrics"].items() if "/" not in name}
    return record


def _checked(path: Path, content: bytes, summary: bool) -> RunRecord:
    kind = SUMMARY if summary else WHOLE
    try:
        record = cast(RunRecord, kind.validate_json(content))
        parse_json(_without_history(content) if summary else content)  # pydantic takes the last of doubled keys
        return record
    except ValueError:
        pass  # an old schema, or something is wrong with it
    try:
        tree: Any = parse_json(content)
    except ValueError as error:
        raise UserError(f"{path} is no whole JSON file ({error}); restore it or delete it") from error
    old = isinstance(tree, dict) and type(tree.get("schema")) is int and tree["schema"] in (1, 2)
    missing = [key for key in (OLD_REQUIRED if old else REQUIRED) if not isinstance(tree, dict) or key not in tree]
    if missing:
        raise UserError(f"{path} is not a run record: it lacks {', '.join(missing)}")
    if type(tree["schema"]) is int and tree["schema"] > SCHEMA:
        known = ", ".join(map(str, READABLE))
        raise UserError(f"{path} has record schema {tree['schema']}; this version reads {known}: update mae_transfer")
    if old:
        for key in ("protocol", "metrics"):
            if not isinstance(tree[key], dict):
                raise UserError(f"{path} is not a valid run record: {key} is no object; restore it or delete it")
        upgrade(tree)
    try:
        # A file name that is no Unicode is a lone surrogate in JSON, which Python reads and pydantic does not.
        content = json.dumps(tree, ensure_ascii=False).encode("utf-8", "replace")
        return cast(RunRecord, kind.validate_json(content))
    except ValidationError as error:
        raise UserError(f"{path} is not a valid run record: {_reason(error)}; restore it or delete it") from None


def _without_history(content: bytes) -> bytes:
    """A record with an empty history, which is most of its text; as it is if `write_json` did not lay it out."""
    before, found, rest = content.partition(b'\n "history": [\n')
    _, end, after = rest.partition(b"\n ],")
    return before + found + b" ]," + after if end else content


def _reason(error: ValidationError) -> str:
    """The first thing that is wrong, where, in one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return " ".join(f"{where}: {first['msg']}".split())


def record_paths(folder: Path, errors: list[OSError]) -> Iterator[Path]:
    """The record.json of every run below a folder, in a stable order; folders that cannot be listed go to `errors`."""
    for root, folders, files in os.walk(folder, onerror=errors.append):
        if FILE in files or FILE in folders:  # the latter is said to be no file
            yield Path(root, FILE)
            folders[:] = [name for name in folders if name not in (*NO_RUNS, FILE)]
        folders.sort()


def read_records(folder: Path, *, summary: bool = False) -> tuple[list[RunRecord], list[str]]:
    """All records below a folder in the order of their run ids, each run once, and a line for each file left out.

    A record gets the key `folder`, where it was found, which is not in the file. Of a run that is recorded twice the
    record that was finished last counts, of equals the first by path; the line says whether they differ. A record whose
    settings id is not the id of its settings is left out, and one with a percentage that none can be.

    summary: as in `read_record`.
    """
    records: dict[str, RunRecord] = {}
    known: dict[str, dict[str, object]] = {}
    left_out: list[str] = []
    errors: list[OSError] = []
    for path in record_paths(folder, errors):
        try:
            record = read_record(path, summary=summary)
            _check_percentages(path, record)
            _share_settings(path, record, known)
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


def _check_percentages(path: Path, record: RunRecord) -> None:
    """UserError for a share of images, pixels or objects beyond 0 .. 100; errors relative to another model's may be."""
    for report in record["reports"]:
        value = record["metrics"].get(report["key"])
        share = report["unit"] == "%" and report["better"] == "higher" and report["group"] != "details"
        if share and value is not None and not -ROUNDING <= value <= 100 + ROUNDING:
            raise UserError(f"{path} says {report['key']} {value:g} %, which none can be; restore it or delete it")


def _share_settings(path: Path, record: RunRecord, known: dict[str, dict[str, object]]) -> None:
    """Check that the id is the settings', and let the runs of the same settings share one dict of them."""
    settings, name = record["settings"], record["settings_id"]
    if name in known and known[name] == settings:
        record["settings"] = known[name]
        return
    if settings_id(settings) != name:
        raise UserError(f"{path} was changed: settings_id {name} is not that of its settings; restore it or delete it")
    known[name] = settings


_ABSENT = object()


def _second_time(counted: RunRecord, dropped: RunRecord) -> str:
    one, other = flatten(counted), flatten(dropped)
    keys = sorted(key for key in {*one, *other} - {"folder"} if one.get(key, _ABSENT) != other.get(key, _ABSENT))
    path, run = Path(dropped["folder"], FILE), dropped["run_id"]
    if not keys:
        return f"{path} records run {run} a second time, as {Path(counted['folder'], FILE)} does; counted once"
    names = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
    return f"{path} records run {run} unlike {Path(counted['folder'], FILE)}, which counts: they differ in {names}"
