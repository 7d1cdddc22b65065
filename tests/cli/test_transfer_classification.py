"""Image classification through the command line: every data set and protocol, series of runs, stops, bad input."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support.command_line import transfer

from mae_transfer.cli.transfer import main
from mae_transfer.data.synthetic.classification import draw, make_classification
from mae_transfer.results.tables.build import make_tables
from mae_transfer.run_folder.record import read_record, read_records
from mae_transfer.run_folder.validation import validate
from mae_transfer.runs.plan import parse_blocks, plan_runs

TINY = ["data.image_size=32", "--subset", "40"]
BASE = ["--backbone", "random_vit_nano", "--preset", "smoke", "--device", "cpu", *TINY]
TASKS = ("imagenet", "folder", "inat2017", "inat2018", "inat2019", "inat2021", "places205", "places365")
ALL_PROTOCOLS = "finetune,partial,linear,attentive,knn,logreg"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classification(tmp_path_factory.mktemp("data") / "set", "folder", train_images=6, val_images=3)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated sets go to a folder of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def errors_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


def arguments(data: Path, output: Path, *more: str) -> list[str]:
    return ["--task", "folder", "--data", str(data), "--output", str(output), *BASE, *more]


def folder_run(data: Path, output: Path, *more: str) -> int:
    return main(arguments(data, output, *more))


@pytest.mark.parametrize("task", TASKS)
def test_every_data_set_runs_on_generated_images(task: str, tmp_path: Path) -> None:
    assert main(["--task", task, "--output", str(tmp_path / "run"), *BASE]) == 0
    record = read_record(tmp_path / "run" / "record.json")
    assert (record["task"], record["steps"], record["data"]["classes"]) == (task, 3, 5)
    assert record["data"]["name"] == "generated images"
    assert {"top1", "top5", "mean_per_class"} <= record["metrics"].keys()
    assert record["settings"]["protocol"] == "finetune"
    assert record["data"]["blind"] == 20.0


def test_every_protocol_in_one_command_and_one_table(data: Path, tmp_path: Path) -> None:
    assert folder_run(data, tmp_path / "runs", "--protocol", ALL_PROTOCOLS, "--blocks", "curve") == 0
    blocks = {"partial-0.5blocks", "partial-1blocks", "partial-2blocks", "partial-4blocks", "partial-6blocks"}
    wanted = {"finetune", "linear", "attentive", "knn", "logreg", "partial-8blocks", *blocks}
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()} == wanted
    records, left_out = read_records(tmp_path)
    assert (len(records), left_out) == (len(wanted), [])
    assert {record["data"]["fingerprint"] for record in records} == {records[0]["data"]["fingerprint"]}
    assert all(0 <= record["metrics"]["top1"] <= 100 for record in records)
    parts = [table for table in make_tables(records).split("## ") if table.startswith("Classification, smoke")]
    tables = [table for table in parts if not table.splitlines()[0].endswith(": costs")]
    assert (len(tables), len(parts)) == (2, 4)
    assert "\n| finetune, random | " in tables[0]
    for protocol in ("linear", "attentive", "logreg", "knn"):
        assert f"\n| {protocol}, random (frozen) | " in tables[0]
    assert validate(tmp_path) == (len(wanted), []), "the results of single images give each record's top-1"
    assert {record["per_image"]["images"] for record in records} == {15}
    assert len({record["encoder_flops"] for record in records}) == 1
    assert "| blind (the commonest class) | 20.0 |" in tables[0]
    assert "| initialisation, size | 0 | 0.5 | 1 | 2 | 4 | 6 | 8 |" in tables[1]
    curve = (tmp_path / "runs" / "partial_curve.csv").read_text().splitlines()
    assert [float(line.split(",")[1]) for line in curve[1:]] == [0, 0.5, 1, 2, 4, 6, 8]
    assert (tmp_path / "runs" / "partial_curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_series_goes_on_where_it_was_stopped(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--protocol", "finetune,knn,linear"]
    assert folder_run(data, tmp_path / "runs", *options) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("record.json")}
    assert folder_run(data, tmp_path / "runs", *options) == 2
    assert "holds a run already; pass --resume" in errors_of(capsys)[0]
    (tmp_path / "runs" / "finetune" / "record.json").unlink()
    shutil.rmtree(tmp_path / "runs" / "linear")
    assert folder_run(data, tmp_path / "runs", *options, "--resume") == 0
    said = capsys.readouterr().err
    assert "run 2 of 3: finished before" in said
    assert "resuming after step 3" in said
    after = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("record.json")}
    assert after.keys() == before.keys()
    knn = tmp_path / "runs" / "knn" / "record.json"
    assert after[knn] == before[knn], "a finished run is passed over"
    for path in before:
        assert json.loads(after[path])["metrics"] == json.loads(before[path])["metrics"], path
    assert folder_run(data, tmp_path / "runs", *options, "--resume", "data.flip=0.1") == 2
    assert "data.flip: 0.5 -> 0.1" in errors_of(capsys)[0]
    assert folder_run(data, tmp_path / "runs", *options, "--eval-only") == 0


def test_draws_of_few_shots_are_averaged(data: Path, tmp_path: Path) -> None:
    assert folder_run(data, tmp_path / "runs", "--protocol", "logreg", "--shots", "2", "--draws", "3") == 0
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {f"logreg-2shot-draw{i}" for i in range(3)}
    records, _ = read_records(tmp_path)
    assert len({record["settings_id"] for record in records}) == 1
    assert {record["data"]["fingerprint"] for record in records} == {records[0]["data"]["fingerprint"]}
    values = [record["metrics"]["top1"] for record in records]
    cell = f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f} (n=3)"
    assert f"| logreg, random (frozen) | {cell} |" in make_tables(records)


def test_robustness_sets_are_evaluated_with_a_finished_run(tmp_path: Path) -> None:
    run = ["--task", "imagenet", "--output", str(tmp_path / "run"), *BASE]
    assert main(run) == 0
    for label in (1, 3):
        folder = tmp_path / "imagenet-a" / f"n{label:08d}"
        folder.mkdir(parents=True)
        draw(label, 40, 40, np.random.default_rng(0)).save(folder / "0.JPEG")
    plain = read_record(tmp_path / "run" / "record.json")
    assert main([*run, "--eval-only", f"data.imagenet_a={tmp_path / 'imagenet-a'}"]) == 0
    record = read_record(tmp_path / "run" / "record.json")
    assert record["metrics"]["imagenet_a_top1"] in (0.0, 50.0, 100.0)
    assert record["metrics"]["top1"] == plain["metrics"]["top1"]
    assert record["settings_id"] == plain["settings_id"]
    assert "IN-A top-1 nano 32" in make_tables([record])
    assert main([*run, "--eval-only", f"data.imagenet_a={tmp_path / 'imagenet-a'}", "eval.mask_classes=false"]) == 0


def test_two_processes_train_and_count_as_one_does(data: Path, tmp_path: Path) -> None:
    """15 val images on two ranks: none is counted twice. Several runs in one launch, of two precisions."""
    options = ["--protocol", "finetune,knn", "train.global_batch=4", "model.mixup=0", "model.cutmix=0"]
    options += ["model.erasing=0", "backbone.drop_path=0", "schedule.steps=1", "schedule.warmup_steps=0"]
    assert folder_run(data, tmp_path / "1", *options, "train.micro_batch=4") == 0
    done = transfer(arguments(data, tmp_path / "2", *options, "train.micro_batch=2"), ranks=2)
    assert done.returncode == 0, done.stderr
    lines = [json.loads((tmp_path / n / "finetune" / "metrics.jsonl").read_text().splitlines()[0]) for n in "12"]
    assert lines[0]["loss_ce"] == pytest.approx(lines[1]["loss_ce"], rel=1e-5)
    assert lines[0]["grad_norm"] == pytest.approx(lines[1]["grad_norm"], rel=1e-4)
    for protocol in ("finetune", "knn"):
        one, two = (read_record(tmp_path / n / protocol / "record.json")["metrics"] for n in "12")
        for metric in ("top1", "top5", "mean_per_class"):
            assert one[metric] == pytest.approx(two[metric]), (protocol, metric)
        if protocol == "knn":  # no training, so the very same predictions
            files = [(tmp_path / n / protocol / "per_image.npz").read_bytes() for n in "12"]
            assert files[0] == files[1], "each image once, in one order, on any number of ranks"
    assert "curve" not in done.stderr


def test_a_stopped_run_resumes_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    """With mixup, erasing, RandAugment and drop path on: all of them are functions of the step."""
    options = ["train.checkpoint_every=1", "train.keep_checkpoints=10"]
    assert folder_run(data, tmp_path / "a", *options) == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "record.json").unlink()
    for step in (2, 3):
        (tmp_path / "b" / "checkpoints" / f"step_{step:08d}.pt").unlink()
    assert folder_run(data, tmp_path / "b", *options, "--resume") == 0
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "step_00000003.pt", weights_only=True)["model"] for name in "ab"
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    records = [read_record(tmp_path / name / "record.json") for name in "ab"]
    assert records[0]["metrics"] == records[1]["metrics"]


def test_the_runs_of_a_command_are_planned_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--task", "imagenet", "--backbone", "random_vit_l", "--protocol", "partial", "--blocks", "curve"]
    assert main([*options, "--print-config"]) == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [config["model"]["blocks"] for config in printed] == [None, 0.5, 1, 2, 4, 6, 12, 18, 24]
    assert [config["protocol"] for config in printed] == ["linear", *["partial"] * 8]
    assert printed[0]["recipe"] == "linear_mae"
    assert printed[1]["optim"]["lr"] == 4e-3
    paths = [run.path for run in plan_runs("imagenet", "random_vit_l", protocol="partial", blocks="1,2")]
    assert len(set(paths)) == 2
    assert paths[0].name.startswith("imagenet-partial-1blocks-random_vit_l-full-seed0-")
    assert parse_blocks("curve", "random_vit_b") == [0, 0.5, 1, 2, 4, 6, 12]
    twice = plan_runs("folder", "random_vit_b", protocol="linear,partial", blocks="0,1")
    assert [run.config.protocol for run in twice] == ["linear", "partial"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--protocol", "finetunee"], "unknown protocol 'finetunee', did you mean finetune"),
        (["--protocol", "finetune,linar"], "unknown protocol 'linar', did you mean linear"),
        (["--protocol", "partial"], "--protocol partial needs --blocks"),
        (["--protocol", "partial", "--blocks", "9"], "--blocks 9: random_vit_nano takes 0, 0.5, 1, 2, ... 8, or curve"),
        (["--protocol", "partial", "--blocks", "1,x"], "--blocks x: random_vit_nano takes"),
        (["--protocol", "partial", "model.blocks=9"], "9 trainable blocks: random_vit_nano takes"),
        (["--blocks", "2"], "--blocks goes with --protocol partial"),
        (["--draws", "2"], "--draws goes with --shots"),
        (["--shots", "0"], "'data.shots': Input should be greater than or equal to 1"),
        (["--protocol", "finetune,logreg", "--shots", "1"], "every class has one training image"),
        (["protocol=linear"], "protocol= chooses the recipe's values and cannot be an override; use --protocol"),
        (["recipe=linear_mae", "--protocol", "knn"], "recipe linear_mae is for the protocol linear, not knn"),
        (["train.micro_batch=3", "train.global_batch=6"], "mixup and cutmix mix images in pairs.*a batch of 3"),
        (["train.micro_batch=2", "train.global_batch=3"], "a batch of 1"),
        (["data.image_size=40"], "data.image_size=40 is no multiple of the patch 16 of random_vit_nano; use 32 or 48"),
        (["data.crop=center"], "data.crop=center is for training without augmentation"),
        (["data.imagenet_a=/nowhere"], "data.imagenet_a is evaluated with --task imagenet only"),
        (["data.train_list=/nowhere/a.csv"], "give both data.train_list and data.val_list"),
    ],
)
def test_bad_options_are_one_line_before_any_run(
    data: Path, tmp_path: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder_run(data, tmp_path / "run", *arguments) == 2
    errors = errors_of(capsys)
    assert len(errors) == 1
    assert re.search(expected, errors[0]), errors[0]
    assert not (tmp_path / "run").exists(), "nothing half-written"


@pytest.mark.parametrize(
    ("task", "arguments", "expected"),
    [
        ("coco", ["--protocol", "linear"], "unknown protocol 'linear'; protocols of coco: finetune, partial, frozen"),
        ("ade20k", ["--protocol", "attentive"], "unknown protocol 'attentive'; protocols of ade20k: upernet, linear"),
        ("coco", ["--shots", "2"], "--shots is for image classification, not for the task coco"),
        ("ade20k", ["--shots", "2"], "--shots is for image classification, not for the task ade20k"),
    ],
)
def test_options_of_classification_are_refused_elsewhere(
    task: str, arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--task", task, "--backbone", "random_vit_nano", "--preset", "smoke", "--output", str(tmp_path / "run")]
    assert main([*base, *arguments]) == 2
    assert expected in errors_of(capsys)[0]


def test_bad_data_is_one_line_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_classification(tmp_path / "set", "inat2018", train_images=2, val_images=1)
    next((root / "train_val2018").rglob("train*.jpg")).unlink()
    run = ["--task", "inat2018", "--data", str(root), "--output", str(tmp_path / "run"), *BASE]
    assert main([*run, "--protocol", "finetune,knn"]) == 2
    errors = errors_of(capsys)
    assert len(errors) == 1
    assert "1 of 10 images are missing" in errors[0]
    assert not (tmp_path / "run").exists()
