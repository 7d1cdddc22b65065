"""A run folder of release 0.1.0 before records described themselves: it resumes, evaluates and stands in tables.

`goldens/earlier_run` holds its data, `finished` (6 steps, record of schema 2) and `stopped`, the same run as a kill
after step 3 leaves it. Both were made by commit a74307d with the options below and `--data set`.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml
from support.paths import GOLDENS
from support.tables import make_tables

from mae_transfer.backbones import registry
from mae_transfer.cli.transfer import build_parser, main
from mae_transfer.run_folder.metrics import read_metrics
from mae_transfer.run_folder.record import read_record, read_records
from mae_transfer.runs.plan import plan_runs
from mae_transfer.suites.plan import plan_suite

EARLIER = GOLDENS / "earlier_run"
OPTIONS = [
    *("--task", "folder", "--protocol", "linear", "--backbone", "random_vit_nano", "--preset", "smoke"),
    *("--device", "cpu", "data.image_size=32", "schedule.steps=6", "train.checkpoint_every=3"),
    *("train.keep_checkpoints=10", "train.global_batch=4", "train.micro_batch=4", "eval.pictures=0", "optim.lr=0.001"),
]
SUITE = {
    **{"name": "one", "preset": "smoke", "backbones": [{"name": "random_vit_nano"}]},
    "tasks": [
        {"task": "folder", "protocol": "linear", "overrides": ["device=cpu", *OPTIONS[OPTIONS.index("cpu") + 1 :]]}
    ],
}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    return shutil.copytree(EARLIER, tmp_path / "earlier")


def test_it_resumes_to_what_it_would_have_come_to_and_evaluates(earlier: Path) -> None:
    command = [*OPTIONS, "--data", str(earlier / "data"), "--output", str(earlier / "stopped")]
    before = json.loads((earlier / "finished" / "record.json").read_text())
    assert before["schema"] == 2
    assert main([*command, "--resume"]) == 0
    record = read_record(earlier / "stopped" / "record.json")
    assert (record["schema"], record["run_id"], record["steps"]) == (3, before["run_id"], 6)
    assert record["metrics"] == before["metrics"]
    losses = [line["loss"] for line in read_metrics(earlier / "stopped") if "loss" in line]
    assert losses == pytest.approx([line["loss"] for line in read_metrics(earlier / "finished")], rel=1e-3)
    assert main([*command, "--eval-only"]) == 0
    again = read_record(earlier / "stopped" / "record.json")
    assert (again["metrics"], again["settings_id"]) == (record["metrics"], record["settings_id"])


def test_positions_are_resampled_as_the_run_began(
    earlier: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run was begun with MAE's rule; DINO's, under which weights of DINO came later, is not taken on the way."""
    run = [*OPTIONS, "--data", str(earlier / "data"), "--output"]
    again = shutil.copytree(earlier / "stopped", earlier / "again")
    assert main([*run, str(earlier / "stopped"), "--resume"]) == 0
    assert "positions are resampled" not in capsys.readouterr().err
    mae = registry.find("random_vit_nano")
    monkeypatch.setitem(registry._SPECS, mae.name, dataclasses.replace(mae, pos_resampling="offset"))
    assert main([*run, str(again), "--resume"]) == 0
    assert "warning: positions are resampled bicubic, as in the run that goes on\n" in capsys.readouterr().err
    records = [read_record(earlier / name / "record.json") for name in ("stopped", "again")]
    losses = [[line.get("loss") for line in read_metrics(earlier / name)] for name in ("stopped", "again")]
    assert losses[0] == losses[1]
    assert records[0]["metrics"] == records[1]["metrics"]
    assert records[0]["settings_id"] == records[1]["settings_id"]

    assert main([*run, str(earlier / "new")]) == 0
    assert read_record(earlier / "new/record.json")["settings"]["pos_resampling"] == "offset"
    assert read_metrics(earlier / "new")[0]["loss"] != read_metrics(earlier / "stopped")[0]["loss"]
    monkeypatch.setitem(registry._SPECS, mae.name, mae)
    assert main([*run, str(earlier / "new"), "--eval-only"]) == 0
    assert "positions are resampled bicubic with offset 0.1, as in the run" in capsys.readouterr().err
    assert read_record(earlier / "new/record.json")["settings"]["pos_resampling"] == "offset"


def test_windows_that_are_padded_otherwise_now_are_refused(
    earlier: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*OPTIONS, "--data", str(earlier / "data"), "--output"]
    spec = registry.find("random_vit_nano")
    monkeypatch.setitem(registry._SPECS, spec.name, dataclasses.replace(spec, window_padding="before_shift"))
    assert main([*run, str(earlier / "stopped"), "--resume"]) == 2
    assert "error: the run was begun by a version that padded the maps of random_vit_nano" in capsys.readouterr().err
    assert main([*run, str(earlier / "new")]) == 0
    assert main([*run, str(earlier / "new"), "--eval-only"]) == 0


def test_another_recipe_is_still_refused(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*OPTIONS, "--data", str(earlier / "data"), "--output", str(earlier / "stopped"), "--resume"]
    assert main([*command, "optim.lr=0.002"]) == 2
    assert "optim.lr: 0.001 -> 0.002" in capsys.readouterr().err


def test_its_record_stands_in_tables() -> None:
    records, left_out = read_records(EARLIER)
    assert not left_out
    (record,) = records
    assert record["row"] == {"name": "linear", "frozen": True, "rank": 2}
    tables = make_tables(records)
    assert "## Classification, smoke: 2 classes (8 train, 4 val images)" in tables
    assert f"| linear, random (frozen) | {record['metrics']['top1']:.1f} (n=1) |" in tables


def test_its_default_folder_is_found(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hash of its name is of fewer fields than today's."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EARLIER / "data", "set")
    command = [*OPTIONS, "--data", "set"]
    options = vars(build_parser().parse_intermixed_args(command))
    for name in ("resume", "eval_only", "print_config"):
        del options[name]
    (new,) = plan_runs(**options)
    stem = "folder-linear-random_vit_nano-smoke-seed0"
    earlier = shutil.copytree(EARLIER / "finished", f"results/runs/{stem}-0123abcd")
    (found,) = plan_runs(**options)
    assert found.path == Path(earlier) != new.path
    assert f"{earlier}: made by an earlier version, taken as the folder of this run" in caplog.text
    assert main(command) == 2, "as the earlier version did"
    assert "0123abcd holds a run already; pass --resume or another --output" in capsys.readouterr().err
    for other in ({"data": "other"}, {"seed": 1}, {"overrides": [*options["overrides"], "optim.lr=0.002"]}):
        (run,) = plan_runs(**options | other)
        assert "0123abcd" not in run.path.name, other

    Path("suite.yaml").write_text(yaml.safe_dump(SUITE))
    (of_suite,) = plan_suite(Path("suite.yaml"), output=Path("results/runs"), data={"folder": "set"})[1]
    assert of_suite.place.path == Path(earlier)
    assert of_suite.place.state() == "done"
    assert str(earlier) in of_suite.arguments
