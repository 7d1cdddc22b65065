"""The schema of run records: what is not a whole, right record is named and left out, whatever is wrong with it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import TOOLS
from support.records import described
from support.tables import make_tables

from mae_transfer.errors import UserError
from mae_transfer.run_folder.record import FILE, read_record, read_records, write_json
from mae_transfer.run_folder.schema import DESCRIPTION, REQUIRED, SCHEMA
from mae_transfer.run_folder.validation import validate

PROTOCOL = {"recipe": "li", "optim.lr": 8e-05, "optim.betas": [0.9, 0.999]}
TOOL = TOOLS / "validate_results.py"


def small(**change: Any) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "run_id": "20260101T000000-0",
        "backbone": {"name": "mae_vit_b", "init": "mae", "size": "b", "fingerprint": None},
        "preset": "full",
        "seed": 0,
        **described("coco", PROTOCOL),
        "metrics": {"box_AP": 50.5, "AP/cat": None},
        "data": {"name": "COCO val2017", "fingerprint": "f"},
        "history": [{"epoch": 1, "loss": 0.5}],
        "wall_seconds": 1.5,
        "device": "cpu (2 threads)",
        "world_size": 1,
        "finished": "2026-01-01T00:00:00+00:00",
        **change,
    }


def put(folder: Path, record: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    path.write_bytes(record if isinstance(record, bytes) else json.dumps(record).encode())
    return path


def test_a_record_cut_at_any_byte_is_left_out(tmp_path: Path) -> None:
    whole = json.dumps(small()).encode()
    for length in range(len(whole)):
        path = put(tmp_path, whole[:length])
        for summary in (False, True):
            with pytest.raises(UserError, match="no whole JSON file") as caught:
                read_record(path, summary=summary)
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)
    assert read_record(put(tmp_path, whole)) == small()


WRONG: tuple[Any, ...] = (None, True, -1, 1.5, "", "x", [], [1], {}, {"a": 1}, float("nan"), float("inf"), 10**30)
ALLOWED = {
    "task": ("x",),
    "title": ("x",),
    "kind": ("x",),
    "reports": ([],),
    "benchmark": (None, "", "x"),
    "controls": ([],),
    "transfers": (True,),
    "run_id": ("x",),
    "settings": (),
    "metrics": ({}, {"a": 1}),
    "seed": (),
    "device": ("", "x"),
    "finished": ("", "x"),
    "wall_seconds": (None, 1.5, 10**30),
    "history": ([],),
}


@pytest.mark.parametrize("field", [key for key in small() if key != "schema"])
def test_a_wrong_type_in_any_field_is_left_out(field: str, tmp_path: Path) -> None:
    for value in WRONG:
        path = put(tmp_path, small(**{field: value}))
        if any(value is good or (type(value) is type(good) and value == good) for good in ALLOWED.get(field, ())):
            assert len(read_records(tmp_path, summary=True)[0]) == 1, value
            continue
        records, left_out = read_records(tmp_path)
        if field == "history":  # tables do without: only a whole reading checks it
            assert len(left_out) == 1, value
            continue
        records, left_out = read_records(tmp_path, summary=True)
        if (field, value) == ("seed", 10**30) or (field in ("world_size",) and value == 10**30):
            make_tables(records)  # absurd, but a number
            continue
        assert not records, (field, value)
        assert len(left_out) == 1
        assert str(path) in left_out[0]
        assert "\n" not in left_out[0]


def test_a_percentage_that_none_can_be_is_left_out(tmp_path: Path) -> None:
    report = {"key": "top1", "title": "top-1", "better": "higher", "unit": "%", "main": True, "group": ""}
    reports = [report, report | {"key": "imagenet_c_mCE", "better": "lower"}, report | {"key": "loss", "unit": ""}]
    put(tmp_path, small(reports=reports, metrics={"top1": 100.0, "imagenet_c_mCE": 130.0, "loss": 250.0}))
    assert len(read_records(tmp_path)[0]) == 1, "an error relative to another model's may be more"
    for value in (250.0, -1.0):
        path = put(tmp_path, small(reports=reports, metrics={"top1": value}))
        for summary in (False, True):
            records, (line,) = read_records(tmp_path, summary=summary)
            assert records == []
            assert line == f"{path} says top1 {value:g} %, which none can be; restore it or delete it"


@pytest.mark.parametrize("inner", ["backbone", "data", "metrics"])
def test_wrong_types_inside(inner: str, tmp_path: Path) -> None:
    for key in small()[inner]:
        for value in (True, [], {}, "", 1.5):
            if (inner, value) == ("metrics", 1.5) or (key == "fingerprint" and inner == "backbone" and value == ""):
                continue
            put(tmp_path, small(**{inner: small()[inner] | {key: value}}))
            records, left_out = read_records(tmp_path, summary=True)
            if inner == "metrics" and key == "AP/cat":
                records, left_out = read_records(tmp_path)
            assert (records, len(left_out)) == ([], 1), (inner, key, value)


@pytest.mark.parametrize("field", REQUIRED)
def test_a_field_that_lacks_is_named(field: str, tmp_path: Path) -> None:
    path = put(tmp_path, {key: value for key, value in small().items() if key != field})
    with pytest.raises(UserError, match=f"it lacks {field}$"):
        read_record(path)


def of_schema(version: int) -> dict[str, Any]:
    """The same record as versions 1 and 2 wrote it."""
    record = {key: value for key, value in small(schema=version).items() if key not in DESCRIPTION}
    record["protocol"], record["protocol_id"] = record.pop("settings"), record.pop("settings_id")
    return record


def test_versions(tmp_path: Path) -> None:
    for version in (1, 2):
        record = read_record(put(tmp_path, of_schema(version)))
        assert record["schema"] == version
        new = small()
        for key in ("settings", "settings_id", "metrics", "title", "benchmark", "controls", "transfers", "row"):
            assert record[key] == new[key], key
        today = [{key: value for key, value in report.items() if key != "per_image"} for report in new["reports"][:2]]
        assert [report for report in record["reports"] if report["main"]] == today
    for key in ("protocol", "metrics", "task"):
        for value in (None, 3, [], ""):
            with pytest.raises(UserError, match="is not a valid run record"):
                read_record(put(tmp_path, of_schema(2) | {key: value}))
    with pytest.raises(UserError, match="has record schema 4; this version reads 1, 2, 3: update mae_transfer"):
        read_record(put(tmp_path, small(schema=4, run_id=7)))
    for value in (0, -1, "2", None, True, 2.5):
        with pytest.raises(UserError, match="schema"):
            read_record(put(tmp_path, small(schema=value)))


def test_an_old_record_of_an_unknown_task_is_described_as_such(tmp_path: Path) -> None:
    record = read_record(put(tmp_path, of_schema(2) | {"task": "depth"}))
    assert (record["title"], record["reports"], record["benchmark"]) == ("depth", [], None)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"a":1}'])
def test_foreign_files(content: bytes, tmp_path: Path) -> None:
    put(tmp_path, content)
    records, left_out = read_records(tmp_path)
    assert (records, len(left_out)) == ([], 1)


@pytest.mark.parametrize("indent", [None, 1], ids=["by hand", "as written"])
def test_a_key_that_is_there_twice_is_found_out(indent: int | None, tmp_path: Path) -> None:
    """On every level; within the history, which tables pass over, where the whole record is read."""
    whole = small(history=[{"epoch": i, "loss": 0.5} for i in range(3)])
    text = json.dumps(whole, indent=indent)
    assert read_record(put(tmp_path, text.encode()), summary=True)["metrics"] == {"box_AP": 50.5}
    for key in ("seed", "metrics", "history", "box_AP", "optim.lr", "fingerprint", "loss"):
        at = text.index(f'"{key}":')
        record = put(tmp_path, f'{text[:at]}"{key}": 0, {text[at:]}'.encode())
        for summary in (False, True):
            if (key, indent, summary) == ("loss", 1, True):
                assert read_record(record, summary=True)
                continue
            with pytest.raises(UserError, match=f"the key '{key}' is twice in an object"):
                read_record(record, summary=summary)


def test_a_changed_protocol_is_found_out(tmp_path: Path) -> None:
    put(tmp_path / "a", small())
    put(tmp_path / "b", small(run_id="other", settings=PROTOCOL | {"optim.lr": 1e-4}))
    records, left_out = read_records(tmp_path)
    assert [record["run_id"] for record in records] == [small()["run_id"]]
    assert "was changed: settings_id" in left_out[0]


def test_a_run_recorded_twice_counts_once_and_a_difference_is_said(tmp_path: Path) -> None:
    put(tmp_path / "a", small())
    put(tmp_path / "b", small())
    records, left_out = read_records(tmp_path)
    assert (len(records), len(left_out)) == (1, 1)
    assert "counted once" in left_out[0]
    later = small(metrics={"box_AP": 60.0}, finished="2026-01-02T00:00:00+00:00")
    put(tmp_path / "b", later)
    records, left_out = read_records(tmp_path)
    assert [record["metrics"]["box_AP"] for record in records] == [60.0], "the one that was finished last"
    assert str(tmp_path / "a") in left_out[0]
    assert "they differ in finished, metrics.AP/cat, metrics.box_AP" in left_out[0]


def test_a_summary_has_what_tables_need_and_no_more(tmp_path: Path) -> None:
    path = put(tmp_path, small())
    summary = read_record(path, summary=True)
    assert "history" not in summary
    assert summary["metrics"] == {"box_AP": 50.5}
    whole, _ = read_records(tmp_path)
    lean, _ = read_records(tmp_path, summary=True)
    assert make_tables(whole) == make_tables(lean)


def test_names_that_are_no_unicode_and_unknown_keys_are_read(tmp_path: Path) -> None:
    """As Python names such files: with lone surrogates, which JSON can hold."""
    record = small(data=small()["data"] | {"skipped_files": ["a\udc80.jpg"]}, later_addition=[1])
    write_json(tmp_path / FILE, record)
    found = read_record(tmp_path / FILE)
    assert found["data"]["skipped_files"] == ["a?.jpg"]
    assert found["later_addition"] == [1]


def test_validate_results_on_the_command_line(tmp_path: Path) -> None:
    put(tmp_path / "good", small())

    def run(*folders: Path) -> tuple[int, list[str]]:
        command = [sys.executable, str(TOOL), *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout.splitlines()

    assert run(tmp_path) == (0, [])
    put(tmp_path / "cut", b'{"schema"')
    put(tmp_path / "gone", small(run_id="x", per_image={"file": "per_image.npz", "sha256": "0" * 64, "images": 3}))
    status, lines = run(tmp_path)
    assert (status, len(lines)) == (2, 2)
    assert str(tmp_path / "cut") in lines[0]
    assert "per_image.npz cannot be read" in lines[1]
    assert run(tmp_path / "nowhere")[0] == 2
    assert validate(tmp_path / "good") == (1, [])


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "record.json")
    with pytest.raises(UserError, match=r"record\.json is no file"):
        read_record(tmp_path / "record.json")
    (tmp_path / "run/record.json").mkdir(parents=True)  # a folder of that name is not left out in silence either
    _, left_out = read_records(tmp_path)
    assert [line.partition("; ")[0] for line in left_out] == [
        f"{tmp_path / place} is no file" for place in ("record.json", "run/record.json")
    ]
