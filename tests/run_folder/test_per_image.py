"""Results of single images: files that agree with their record's hash and hold something else."""

import contextlib
import hashlib
import io
import json
import re

import numpy as np
import pytest
from support.records import described
from support.tables import make_tables

from mae_transfer.errors import UserError
from mae_transfer.run_folder.per_image import FILE, read_per_image, write_per_image
from mae_transfer.run_folder.record import read_records
from mae_transfer.run_folder.validation import validate
from mae_transfer.tasks.card import metric

IDS = np.array([b"a", b"b", b"c"])
COUNTS = {
    "ids": IDS,
    "image": np.array([0, 1, 2], np.int32),
    "label": np.array([0, 1, 1], np.int32),
    "intersection": np.array([1, 2, 3]),
    "union": np.array([4, 5, 6]),
}


def written(folder, arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return entry(folder, buffer.getvalue())


def entry(folder, content):
    (folder / FILE).write_bytes(content)
    return {"file": FILE, "sha256": hashlib.sha256(content).hexdigest(), "images": 3}


@pytest.mark.parametrize("arrays", [{"ids": IDS, "correct": np.ones(3, bool)}, COUNTS])
def test_right_arrays_are_read(tmp_path, arrays):
    found = read_per_image(tmp_path, written(tmp_path, arrays))
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


ODD = {
    "nothing": {},
    "no ids": {"correct": np.ones(3, bool)},
    "one id": {"ids": np.array(b"a"), "correct": np.ones(3, bool)},
    "ids that are numbers": {"ids": np.arange(3), "correct": np.ones(3, bool)},
    "fewer ids": {"ids": IDS[:2], "correct": np.ones(3, bool)},
    "text": {"ids": IDS, "correct": np.array(["x", "y", "z"])},
    "floats": {"ids": IDS, "correct": np.ones(3)},
    "a table": {"ids": IDS, "correct": np.ones((3, 3), bool)},
    "one truth": {"ids": IDS, "correct": np.array(True)},
    "no unions": {name: array for name, array in COUNTS.items() if name != "union"},
    "counts of another length": COUNTS | {"union": np.array([4, 5])},
    "counts below 0": COUNTS | {"intersection": np.array([-1, 2, 3])},
    "counts above their union": COUNTS | {"intersection": np.array([9, 2, 3])},
    "a row beyond the images": COUNTS | {"image": np.array([0, 1, 3])},
    "a label that no mask has": COUNTS | {"label": np.array([0, 1, 2**40])},
    "fractions": COUNTS | {"union": np.array([4.5, 5, 6])},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_arrays_are_one_line(tmp_path, name):
    with pytest.raises(UserError, match=r"per_image\.npz is no file of per-image results") as caught:
        read_per_image(tmp_path, written(tmp_path, ODD[name]))
    assert "\n" not in str(caught.value)


def put(folder, arrays, metrics, *reports, **change):
    """A run of a task of another package with these metrics and arrays."""
    folder.mkdir()
    settings = {"recipe": "r"}
    record = {"schema": 3, "run_id": folder.name, "preset": "mini", "seed": 0, **described("ade20k", settings)}
    record |= {"backbone": {"name": "b", "init": change.pop("init", "mae"), "size": "b", "fingerprint": "w"}}
    record |= {"data": {"name": "my set", "fingerprint": "f"}, "task": "outside", "title": "outside"}
    record |= {"reports": reports, "metrics": metrics, "per_image": write_per_image(folder, arrays)}
    (folder / "record.json").write_text(json.dumps(record | change))


def test_arrays_are_checked_against_the_metric_that_the_record_names(tmp_path):
    half, errors = {"ids": IDS[:2], "correct": np.array([True, False])}, np.array([0.5, 1.0, 3.0])
    accuracy, top1 = metric("accuracy", "acc", main=True), metric("top1", "top-1", per_image="correct")
    rmse = metric("rmse", "RMSE", unit="m", better="lower", main=True, per_image="error")
    put(tmp_path / "a", half, {"accuracy": 50.0}, accuracy)
    put(tmp_path / "b", half, {"f1": 3.0, "top1": 50.0}, metric("f1", "F1", main=True), top1)
    put(tmp_path / "c", {"ids": IDS, "error": errors}, {"rmse": 1.5}, rmse)
    put(tmp_path / "d", {"ids": IDS, "own": np.ones((3, 2)), "odd": np.array("x")}, {"accuracy": 1.0}, accuracy)
    put(tmp_path / "e", half, {"loss": 1.0}, metric("loss", "loss", better="lower", main=True))
    assert validate(tmp_path) == (5, [])
    put(tmp_path / "f", half, {"accuracy": 51.0}, accuracy)
    put(tmp_path / "g", half, {"accuracy": 50.0, "top1": 49.0}, accuracy, top1)
    put(tmp_path / "h", {"ids": IDS, "error": errors}, {"rmse": 1.51}, rmse)
    put(tmp_path / "i", {"ids": IDS, "other": errors}, {"rmse": 1.5}, rmse)
    put(tmp_path / "j", {"ids": IDS, "error": errors * np.nan}, {"rmse": 1.5}, rmse)
    right, problems = validate(tmp_path)
    assert right == 5
    for line, expected in zip(
        problems,
        (
            "says accuracy 51.0, its per-image results 50.0",
            "says top1 49.0, its per-image results 50.0",
            "says rmse 1.51, its per-image results 1.5",
            "has no array for rmse (error)",
            "array error is no finite number",
        ),
        strict=True,
    ):
        assert expected in line
        assert "\n" not in line


def test_an_outside_task_has_intervals_where_its_metric_says_how(tmp_path):
    rng = np.random.default_rng(0)
    ids, rmse = np.array([b"%03d" % i for i in range(300)]), metric("rmse", "RMSE", unit="m", main=True)
    one, other = rng.normal(3, 1, 300), rng.normal(2, 1, 300)
    for name, report in (("told", rmse | {"per_image": "error"}), ("untold", rmse | {"unit": "%"})):
        folder, warnings = tmp_path / name, []
        folder.mkdir()
        for init, values in (("mae", one), ("sup", other)):
            arrays = {"ids": ids, "error": values}
            put(folder / init, arrays, {"rmse": values.mean()}, report, init=init, controls=["sup"])
        text = make_tables(read_records(folder)[0], warnings=warnings)
        cell = re.search(r"\| MAE − supervised \| (.*) \|", text)[1]
        if name == "told":
            half = 1.96 * np.std(one - other) / 300**0.5
            low, high = map(float, re.fullmatch(r"\+\S+ \[\+(\S+), \+(\S+)\]\* \(images\)", cell).groups())
            assert (low, high) == pytest.approx((np.mean(one - other) - half, np.mean(one - other) + half), abs=0.06)
            assert warnings == []
        else:
            assert cell == f"+{np.mean(one - other):.1f} (n=1)"
            assert len(warnings) == 2
            assert all("card does not say by per_image what rmse follows from" in line for line in warnings)


def test_damaged_content_is_one_line(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, ids=np.repeat(IDS, 100), correct=np.random.default_rng(0).random(300) < 0.5)
    whole = buffer.getvalue()
    for at in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        with contextlib.suppress(UserError):
            read_per_image(tmp_path, entry(tmp_path, bytes(damaged)))
