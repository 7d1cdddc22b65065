"""Tables from records: grouping, statistics, footnotes, and what is left out."""

import itertools
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import TOOLS
from support.records import described
from support.tables import make_tables

from mae_transfer.errors import UserError
from mae_transfer.results.published import PUBLISHED
from mae_transfer.run_folder.record import read_record, read_records, write_json
from mae_transfer.run_folder.schema import SCHEMA

COUNT = itertools.count()


def record(
    init: str, size: str, seed: int, box: float | None, mask: float | None = 1.0, **change: Any
) -> dict[str, Any]:
    protocol = {"recipe": change.pop("recipe", "mask_rcnn_li2021"), "optim.lr": change.pop("lr", 8e-5)}
    return {
        "schema": SCHEMA,
        "run_id": f"run{next(COUNT):03}",
        "backbone": {
            "name": f"{init}_vit_{size}",
            "init": init,
            "size": size,
            "fingerprint": change.pop("weights", "w0"),
        },
        "preset": "full",
        "seed": seed,
        **described(change.pop("task", "coco"), protocol),
        "metrics": {"box_AP": box, "mask_AP": mask},
        "data": {"name": "COCO val2017", "fingerprint": "f0"},
        **change,
    }


def row(table: str, name: str) -> list[str]:
    found = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    assert len(found) == 1, table
    return [cell.strip() for cell in found[0].split("|")[2:-1]]


def test_mean_and_deviation_over_seeds() -> None:
    values = [50.1, 50.6, 49.8]
    table = make_tables([record("mae", "b", seed, value) for seed, value in enumerate(values)])
    expected = f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} (n=3)"
    assert row(table, "MAE") == [expected, "-", "1.0 ± 0.0 (n=3)", "-"]


def test_published_rows_are_marked_with_their_source_and_never_averaged() -> None:
    table = make_tables([record("mae", "b", 0, 10.0)])
    assert row(table, "MAE, published (MAE (arXiv 2111.06377) Table 4)") == ["50.3", "53.3", "44.9", "47.2"]
    assert row(table, "MAE")[0] == "10.0 (n=1)"
    assert row(make_tables([]), "BEiT, published (MAE (arXiv 2111.06377) Table 4)") == ["49.8", "53.3", "44.4", "47.1"]


def test_published_numbers_name_a_source_each() -> None:
    lines = PUBLISHED.read_text().splitlines()[1:]
    assert len(lines) >= 16
    assert all(line.split(",")[-1].strip() for line in lines)


def test_published_rows_of_one_recipe_never_stand_with_those_or_the_runs_of_another() -> None:
    def parts(records: list[dict[str, Any]]) -> dict[str, str]:
        tables = [table for table in make_tables(records).split("## ") if table.startswith("COCO: COCO val2017")]
        return {table.splitlines()[0].removeprefix("COCO: COCO val2017"): table for table in tables}

    vitdet, li = "MAE, published (ViTDet (arXiv 2203.16527) Tables 5 and 9)", "MAE, published (MAE (arXiv 2111.06377)"
    empty = parts([])
    assert sorted(empty) == [
        f", recipe {name} (no full run recorded yet)"
        for name in ("mask_rcnn_li2021", "vitdet_cascade", "vitdet_mask_rcnn")
    ]
    cascade = empty[", recipe vitdet_cascade (no full run recorded yet)"]
    assert row(cascade, vitdet) == ["54.0", "57.6", "58.7", "46.7", "49.8", "50.9"]
    assert li not in cascade
    assert vitdet not in empty[", recipe mask_rcnn_li2021 (no full run recorded yet)"]

    runs = [record("mae", "b", 0, 40.0), record("mae", "b", 1, 41.0, recipe="vitdet_mask_rcnn")]
    both = parts([*runs, record("mae", "b", 2, 42.0, recipe="of my own")])
    of_vitdet = both[", recipe vitdet_mask_rcnn"]
    assert row(of_vitdet, vitdet)[0] == "51.6"
    assert row(of_vitdet, "MAE")[0] == "41.0 (n=1)"
    assert li not in of_vitdet
    assert li in both[", recipe mask_rcnn_li2021"]
    assert "published" not in both[", recipe of my own"]


def test_presets_and_data_sets_are_never_mixed() -> None:
    other = {"name": "my set", "fingerprint": "f1"}
    records = [
        record("mae", "b", 0, 50.0),
        record("mae", "b", 1, 20.0, preset="mini"),
        record("mae", "b", 2, 1.0, preset="smoke"),
        record("mae", "b", 3, 70.0, data=other),
    ]
    parts = [table for table in make_tables(records).split("## ") if table.startswith(("COCO", "Detection"))]
    heads = [table.splitlines()[0] for table in parts]
    assert [head for head in heads if head.endswith("(no full run recorded yet)")] == [
        "COCO: COCO val2017, recipe vitdet_cascade (no full run recorded yet)",
        "COCO: COCO val2017, recipe vitdet_mask_rcnn (no full run recorded yet)",
    ], "what is published of a recipe does not go with the first run of another"
    parts = [table for table, head in zip(parts, heads, strict=True) if not head.endswith("recorded yet)")]
    tables = [table for table in parts if not table.splitlines()[0].endswith((": differences", ": costs"))]
    assert [table.splitlines()[0] for table in tables] == [
        "COCO: COCO val2017, recipe mask_rcnn_li2021",
        "Detection, full: my set, recipe mask_rcnn_li2021",
        "COCO, mini: COCO val2017, recipe mask_rcnn_li2021",
        "COCO, smoke: COCO val2017, recipe mask_rcnn_li2021",
    ]
    assert [row(table, "MAE")[0] for table in tables] == ["50.0 (n=1)", "70.0 (n=1)", "20.0 (n=1)", "1.0 (n=1)"]
    assert "mean nothing" in tables[3]
    assert not any("published (" in table for table in tables[1:])


def test_unlike_runs_get_rows_of_their_own_and_a_footnote() -> None:
    table = make_tables(
        [record("mae", "b", 0, 50.0), record("mae", "b", 1, 40.0, lr=1e-4), record("sup", "b", 0, 47.0)]
    )
    lines = [line for line in table.splitlines() if line.startswith(("| MAE |", "| MAE [1] |"))]
    assert len(lines) == 2
    assert "n=2" not in table
    assert "optim.lr 8e-05 -> 0.0001" in table or "optim.lr 0.0001 -> 8e-05" in table
    weights = make_tables([record("mae", "b", 0, 50.0), record("mae", "b", 1, 40.0, weights="w1")])
    assert "weights w0 -> w1" in weights
    across = make_tables([record("mae", "b", 0, 50.0), record("mocov3", "b", 0, 40.0, lr=1.6e-4)])
    assert "[1] unlike the reference run of its size in b: optim.lr 8e-05 -> 0.00016." in across


def test_the_same_seed_twice_counts_once_and_a_missing_value_is_missing() -> None:
    table = make_tables([record("mae", "b", 0, 50.0), record("mae", "b", 0, 51.0), record("mae", "l", 0, None)])
    assert row(table, "MAE")[:2] == ["51.0 (n=1)", "-"]


def test_the_order_of_records_does_not_matter() -> None:
    records = [
        record(i, s, seed, 40 + seed, lr=lr)
        for i in ("mae", "sup")
        for s in "bl"
        for seed in (0, 1)
        for lr in (1e-4, 2e-4)
    ]
    shuffled = records.copy()
    random.Random(0).shuffle(shuffled)
    assert make_tables(records) == make_tables(shuffled)


def test_bad_records_are_named_and_left_out(tmp_path: Path) -> None:
    good = record("mae", "b", 0, 50.0)
    contents = {
        "good": json.dumps(good),
        "half": json.dumps(good)[:80],
        "foreign": '{"a": 1}',
        "future": json.dumps({**good, "schema": SCHEMA + 1}),
        "same": json.dumps(good),
    }
    for name, text in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(text)
    records, left_out = read_records(tmp_path)
    assert [r["run_id"] for r in records] == [good["run_id"]]
    assert len(left_out) == 4
    for name in ("half", "foreign", "future", "same"):
        assert any(str(tmp_path / name) in line for line in left_out), left_out


def test_writing_is_atomic_and_nan_is_null(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, record("mae", "b", 0, float("nan")))
    assert read_record(path)["metrics"]["box_AP"] is None
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert read_record(path), "a failed write must leave the old file"
    with pytest.raises(UserError, match="cannot write"):
        write_json(tmp_path / "nowhere" / "record.json", {})


def test_tables_need_no_torch(tmp_path: Path) -> None:
    """The command line, as a user has it: prints, writes, and imports neither torch nor timm."""
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "record.json", record("mae", "b", 0, 50.0))
    tool = TOOLS / "make_tables.py"
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tool), "--runs", str(tmp_path), "--output", str(tmp_path / "t.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "50.0 (n=1)" in done.stdout
    assert (tmp_path / "t.md").read_text().strip() in done.stdout
    missing = subprocess.run(
        [sys.executable, str(tool), "--runs", str(tmp_path / "no")], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1


def test_pre_trainings_of_one_protocol_share_a_cell_and_those_of_another_do_not() -> None:
    def own(seed: int, value: float, trained_as: str) -> dict[str, Any]:
        found = record("MAE (this project)", "b", seed, value, weights=f"w{seed}{trained_as}")
        found["backbone"]["trained_as"] = trained_as
        return found

    table = make_tables([own(0, 40.0, "p0"), own(1, 42.0, "p0"), own(0, 30.0, "p1")])
    assert row(table, "MAE (this project)")[0] == "41.0 ± 1.4 (n=2)"
    assert row(table, "MAE (this project) [1]")[0] == "30.0 (n=1)"
    assert "weights p0 -> p1" in table
