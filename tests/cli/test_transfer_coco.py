"""The command line end to end, as a user runs it: real processes on generated images, tiny sizes."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from support.coco_command import BASE, TINY
from support.command_line import SIX_STEPS, TOOL, assert_same_run, kill_after, launched, run, start, transfer

from mae_transfer.cli.transfer import main
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.run_folder.record import read_record
from mae_transfer.run_folder.schema import REQUIRED
from mae_transfer.tasks.coco.card import STATISTICS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("data") / "coco", train_images=6, val_images=3, size=(48, 64))


def arguments(output: Path, data: Path, *more: str) -> list[str]:
    return [*BASE, "--data", str(data), "--output", str(output), *TINY, *more]


def test_a_run_from_command_to_table(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    done = run(launched(arguments(output, data, "eval.per_class=true")))
    assert done.returncode == 0, done.stderr
    record = read_record(output / "record.json")
    assert set(REQUIRED) <= record.keys()
    names = {f"{kind}_{name}" for kind in ("box", "mask") for name in STATISTICS}
    assert names <= record["metrics"].keys()
    assert "box_AP/circle" in record["metrics"]
    assert record["steps"] == 4
    assert record["settings"]["eval.images"] == record["data"]["val_images"] == 2, (
        "the smoke preset says its few images"
    )
    assert record["data"]["name"] == "coco (5 train, 2 val images)"
    assert record["backbone"]["init"] == "random"
    assert yaml.safe_load((output / "config.yaml").read_text())["data"]["image_size"] == 64
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert "RANDOM weights" in (output / "log.txt").read_text()

    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    again = transfer(arguments(output, data))
    assert again.returncode == 2
    assert "holds a run already; pass --resume or another --output" in again.stderr
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before, (
        "a refusal changes nothing"
    )

    (output / "record.json").write_text(json.dumps(record | {"metrics": {}}))
    evaluated = transfer(arguments(output, data, "eval.per_class=true", "--eval-only"))
    assert evaluated.returncode == 0, evaluated.stderr
    anew = read_record(output / "record.json")
    for key in ("metrics", "run_id", "settings_id", "backbone", "history"):
        assert anew[key] == record[key], key

    assert anew["images_per_second"] == record["images_per_second"], "what training cost is not lost"

    changed = transfer(arguments(output, data, "eval.per_class=true", "--resume", "optim.lr=3e-5"))
    assert changed.returncode == 2
    assert "optim.lr: 0.00016 -> 3e-05" in changed.stderr

    table = run(
        [
            sys.executable,
            str(TOOL.with_name("make_tables.py")),
            "--runs",
            str(tmp_path),
            "--output",
            str(tmp_path / "t.md"),
        ]
    )
    assert table.returncode == 0, table.stderr
    assert "AP box nano" in table.stdout


@pytest.mark.parametrize(("ranks", "kill_after_step"), [(1, 3), (2, 2)])
def test_kill_9_then_resume_is_bit_identical(tmp_path: Path, data: Path, ranks: int, kill_after_step: int) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    done = transfer(arguments(straight, data, *SIX_STEPS), ranks)
    assert done.returncode == 0, done.stderr
    kill_after(arguments(broken, data, *SIX_STEPS), broken, kill_after_step, total=6, ranks=ranks)
    resumed = transfer(arguments(broken, data, *SIX_STEPS, "--resume"), ranks)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(straight, broken)


def test_two_ranks_train_as_one_rank_does(tmp_path: Path, data: Path) -> None:
    """The same global batch on one process and on two: samples, losses, norms and anchors drawn are the same.

    The first step's losses and gradient agree to rounding; Adam then divides by gradients near zero, so weights are
    not compared.
    """
    options = ["schedule.steps=1", "schedule.warmup_steps=0", "backbone.drop_path=0", "train.global_batch=4"]
    first = []
    for ranks, micro in ((1, 4), (2, 2)):
        output = tmp_path / str(ranks)
        done = transfer(arguments(output, data, *options, f"train.micro_batch={micro}"), ranks)
        assert done.returncode == 0, done.stderr
        first.append(json.loads((output / "metrics.jsonl").read_text().splitlines()[0]))
    for name in ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"):
        assert first[0][name] == pytest.approx(first[1][name], rel=1e-5, abs=1e-7), name
    assert first[0]["grad_norm"] == pytest.approx(first[1]["grad_norm"], rel=1e-4)


def test_sigterm_saves_and_exits_3(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    long = arguments(output, data, "schedule.steps=5000", "train.checkpoint_every=5000")
    run = start(long)
    run.until_step(output, 1)
    run.ranks.processes[0].terminate()
    stopped = run.wait()
    assert stopped.returncode == 3, stopped.stderr
    assert "--resume goes on from it" in stopped.stderr
    early = transfer([*long, "--eval-only"])
    assert early.returncode == 2
    assert "of 5000; finish the training by --resume first" in early.stderr
    steps = len((output / "metrics.jsonl").read_text().splitlines())
    assert (output / "checkpoints" / f"step_{steps:08d}.pt").exists()


def test_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BASE[:4], "--print-config", "optim.lr=4e-5"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["optim"]["lr"] == 4e-5
    assert printed["schedule"]["epochs"] == 200


def break_data(data: Path, how: str) -> None:
    """Damage a copy of the data set in place."""
    path = data / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    if how == "not json":
        path.write_text("{")
    elif how == "not coco":
        path.write_text('{"images": []}')
    elif how == "category":
        content["annotations"][0]["category_id"] = 4321
        path.write_text(json.dumps(content))
    elif how == "area":
        box = next(a for a in content["annotations"] if not a["iscrowd"])
        box["bbox"][2] = 0
        path.write_text(json.dumps(content))
    elif how == "image":
        (data / "train2017" / content["images"][0]["file_name"]).unlink()
    elif how == "jpeg":
        for image in content["images"]:
            picture = data / "train2017" / image["file_name"]
            picture.write_bytes(picture.read_bytes()[:300])
    elif how == "folder":
        (data / "val2017").rename(data / "val2018")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("not json", "not valid JSON"),
        ("not coco", "instances_train2017.json"),
        ("category", "4321"),
        ("area", "area"),
        ("image", "1 of the 6 images"),
        ("jpeg", "truncated or corrupt image .*data.on_bad_image=skip"),
        ("folder", "expected is the COCO 2017 layout.*cocodataset.org"),
    ],
)
def test_bad_data_is_one_line_and_exit_2(
    tmp_path: Path, how: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_coco(tmp_path / "coco", train_images=6, val_images=2, size=(48, 64))
    break_data(root, how)
    code = main([*BASE, "--data", str(root), "--output", str(tmp_path / "run"), *TINY])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    assert_matches(errors[0], expected)
    if how != "jpeg":  # found by reading the images, so only once the run has begun
        assert not (tmp_path / "run").exists(), "nothing half-written"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "cocoo"], "did you mean coco"),
        (["--backbone", "mae_vit_bb"], "mae_vit_b"),
        (["--backbone", "timm:resnet50"], "not a plain ViT"),
        (["--data", "/nowhere/coco"], "/nowhere/coco.*expected is the COCO 2017 layout"),
        (["--backbone", "mae_vit_nano", "--checkpoint", "/nowhere/x.pth"], "/nowhere/x.pth: no such file"),
        (["--weights", "random", "--checkpoint", "x.pth"], "takes no checkpoint"),
        (["--backbone", "mae_vit_nano", "--weights", "pretrained"], "--checkpoint"),
        (["train.global_batch=0"], "train.global_batch"),
        (["schedule.warmup_steps=50"], "warm-up"),
        (["train.precision=fp16"], "train.precision=fp16 needs a CUDA device"),
        (["--resume"], "nothing to resume"),
        (["--eval-only"], "nothing to"),
        (["--engine", "detectron2"], "detectron2"),
        (["optim.lrr=1"], "did you mean optim.lr"),
        (["--subset", "0"], "'subset'"),
        (["preset=full"], "use --preset"),
        (["backbone.name=mae_vit_l"], "use --backbone"),
        (["schedule.epochs=.inf"], "schedule.epochs"),
        (["optim.betas=[2,3]"], "optim.betas"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(
    tmp_path: Path, data: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    code = main([*BASE, "--data", str(data), "--output", str(output), *TINY, *arguments])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    assert_matches(errors[0], expected)
    assert not output.exists(), "nothing half-written"


def test_a_batch_that_ranks_cannot_share_is_refused(tmp_path: Path, data: Path) -> None:
    done = transfer(arguments(tmp_path / "run", data, "train.global_batch=3"), ranks=2)
    assert done.returncode != 0
    assert "train.global_batch=3 cannot be reached with 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()


def assert_matches(line: str, pattern: str) -> None:

    assert re.search(pattern, line), line
