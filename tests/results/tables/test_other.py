"""A record of an unknown task, protocol or metric: each is said on standard error, none is lost."""

import html
import json
import re
from pathlib import Path

import pytest
from support.records import described

from mae_transfer.cli.tables import main
from mae_transfer.results.report.page import make_page
from mae_transfer.run_folder.record import read_records
from mae_transfer.tasks.card import metric

SETTINGS = {"recipe": "r", "optim.lr": 1e-4}


def put(
    folder: Path, name: str, like: str, metrics: dict[str, float], settings: dict[str, object], **change: object
) -> None:
    record = {
        **described(like, settings),
        **{"schema": 3, "run_id": name, "preset": "mini", "seed": 0, "metrics": metrics},
        "backbone": {"name": "mae_vit_b", "init": "mae", "size": "b", "fingerprint": "w"},
        "data": {"name": "my set", "fingerprint": "f"},
        **change,
    }
    (folder / name).mkdir(parents=True)
    (folder / name / "record.json").write_text(json.dumps(record))


def tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str]]:
    assert main(["--runs", str(folder), "--output", str(folder / "tables.md")]) == 0
    printed = capsys.readouterr()
    return printed.out, printed.err.splitlines()


def test_an_unknown_task_of_an_old_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a", "coco", {"box_AP": 40.0, "mask_AP": 30.0}, SETTINGS)
    record = json.loads((tmp_path / "a" / "record.json").read_text())
    old = {key: record[key] for key in ("run_id", "preset", "seed", "backbone", "data")}
    old |= {"schema": 2, "task": "depth", "metrics": {"rmse": 3.25}, "run_id": "b"}
    old |= {"protocol": record["settings"], "protocol_id": record["settings_id"]}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "record.json").write_text(json.dumps(old))
    out, err = tables(tmp_path, capsys)
    assert f"warning: {tmp_path}/b: its record does not describe the task depth" in "\n".join(err)
    assert "| depth mae_vit_b seed 0 | mini | my set | rmse 3.25 |" in out.split("## Other runs")[1]
    assert "| MAE | 40.0 (n=1) |" in out


def test_a_task_has_a_table_for_each_group_of_its_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With and without protocols, and with no metric in the main table."""
    near, far = metric("near", "near", main=True, group="range"), metric("far", "far", group="range")
    day, own = metric("day", "day", group="weather"), metric("rmse", "RMSE", main=True)
    values = {"near": 1.5, "far": 2.5, "day": 3.5, "rmse": 4.5}
    for name, reports, change in (
        ("a", [own, near, far, day], {}),
        ("b", [near, far, day], {}),
        ("c", [near, far, day], {"row": {"name": "knn", "frozen": True, "rank": 0}, "benchmark": "the set"}),
    ):
        metrics = {report["key"]: values[report["key"]] for report in reports}
        put(
            tmp_path / name,
            name,
            "ade20k",
            metrics,
            SETTINGS,
            task=name,
            title=f"task {name}",
            reports=reports,
            **change,
        )
        out, err = tables(tmp_path / name, capsys)
        assert not any(line.startswith("warning") for line in err)
        of_group = out.split(", range\n")[1].split("## ")[0]
        assert re.search(r"MAE \| 1\.5 \(n=1\) \| 2\.5 \(n=1\) \|", of_group)
        assert re.search(r"MAE \| 3\.5 \(n=1\) \|", out.split(", weather\n")[1])
        assert ("MAE | 4.5 (n=1) |" in out) == (name == "a")
        assert out.count(": costs") <= 1


def test_an_unknown_metric_stands_in_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a", "ade20k", {"mIoU": 40.0, "boundary_F1": 55.5, "IoU/wall": 3.0}, SETTINGS)
    out, err = tables(tmp_path, capsys)
    assert "does not describe the metric boundary_F1;" in "\n".join(err)
    assert "| ade20k mae_vit_b seed 0 | mini | my set | boundary_F1 55.5 |" in out
    assert "| MAE | 40.0 (n=1) |" in out


def test_an_unknown_protocol_has_its_row_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a", "folder", {"top1": 40.0}, SETTINGS | {"protocol": "knn"})
    row = {"name": "mean_head", "frozen": True, "rank": 9}
    put(tmp_path, "b", "folder", {"top1": 50.0}, SETTINGS | {"protocol": "knn"}, row=row)
    out, err = tables(tmp_path, capsys)
    assert f"warning: {tmp_path}/b: the task folder here has no protocol mean_head; its row stands last" in err
    assert out.index("| knn, MAE | 40.0 (n=1) |") < out.index("| mean_head, MAE | 50.0 (n=1) |")
    assert "Other runs" not in out


def test_a_task_of_another_package_that_describes_itself_has_tables_like_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = [{"key": "rmse", "title": "RMSE", "better": "lower", "unit": "m", "main": True, "group": ""}]
    own = {
        "task": "depth",
        "title": "Depth",
        "kind": "Depth",
        "reports": reports,
        "benchmark": None,
        "controls": ["random"],
    }
    for seed, (mae, random) in enumerate([(3.0, 4.0), (3.2, 4.1), (3.1, 4.3)]):
        put(tmp_path, f"m{seed}", "coco", {"rmse": mae}, SETTINGS, **own, seed=seed)
        backbone = {"name": "random_vit_b", "init": "random", "size": "b", "fingerprint": None}
        put(tmp_path, f"r{seed}", "coco", {"rmse": random}, SETTINGS, **own, seed=seed, backbone=backbone)
    out, err = tables(tmp_path, capsys)
    assert not [line for line in err if line.startswith("warning")]
    block = out.split("## Depth, mini: my set, recipe r\n")[1]
    assert "| initialisation | RMSE B (lower is better) |" in block
    assert "| MAE | 3.1 ± 0.1 (n=3) |" in block
    assert "| MAE − random | −1.0 " in out.split("## Depth, mini: my set, recipe r: differences\n")[1]


def test_odd_images_have_a_footnote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"name": "my set", "fingerprint": "f", "skipped_files": ["a.jpg", "b.jpg"], "overlap": 7}
    put(tmp_path, "a", "coco", {"box_AP": 40.0, "mask_AP": 30.0}, SETTINGS, data=data)
    out, _ = tables(tmp_path, capsys)
    assert "1 of 1 runs skipped images that could not be decoded (2)." in out
    assert "1 of 1 runs were evaluated on val images that are training images too (7)." in out


def test_names_cannot_break_out_of_their_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"name": "a|b\n## c `x` <b>", "fingerprint": "f"}
    put(tmp_path, "a", "coco", {"box_AP": 40.0, "mask_AP": 30.0}, SETTINGS, data=data)
    out, _ = tables(tmp_path, capsys)
    assert "## Detection, mini: a\\|b ## c \\`x\\` \\<b>, recipe r" in out


def test_a_run_without_metrics_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a", "ade20k", {}, SETTINGS | {"model.blocks": "all"})
    out, err = tables(tmp_path, capsys)
    assert f"warning: {tmp_path}/a: its record has no metric; it stands in the table of other runs" in err
    assert "| ade20k mae_vit_b seed 0 | mini | my set | none |" in out


def test_odd_values_of_one_run_do_not_stop_the_report(tmp_path: Path) -> None:
    put(tmp_path, "a", "ade20k", {"mIoU": 40.0}, SETTINGS)
    (tmp_path / "a" / "metrics.jsonl").write_text(
        '{"step": 1, "epoch": 0.1, "loss": "x"}\n{"step": 2, "epoch": 0.2, "loss": "y"}\n'
    )
    page = html.unescape(make_page(*read_records(tmp_path), picture_bytes=10))
    assert "a/metrics.jsonl line 1: 'loss' is no number; restore or delete the file" in page


def test_runs_that_lack_what_their_tables_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        put(tmp_path, f"a{seed}", "ade20k", {"mAcc": 40.0 + seed}, SETTINGS, seed=seed)
    put(tmp_path, "b", "folder", {"top5": 50.0}, SETTINGS | {"protocol": "partial", "model.blocks": 1})
    out, err = tables(tmp_path, capsys)
    line = f"warning: {tmp_path}/a0 and 1 more runs: its record lacks the metrics that the tables of ade20k show"
    assert line in "\n".join(err)
    assert "| ade20k mae_vit_b seed 1 | mini | my set | mAcc 41 |" in out
    assert "| folder partial mae_vit_b seed 0 | mini | my set | top5 50 |" in out
