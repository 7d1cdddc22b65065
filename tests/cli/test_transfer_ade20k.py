"""The command line on ADE20K, as a user runs it: generated images, tiny sizes, and data that is wrong in every way."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.command_line import ADE20K, TINY_ADE20K, assert_same_run, kill_after, launched, run, transfer

from mae_transfer.cli.tables import main as make_tables
from mae_transfer.cli.transfer import main
from mae_transfer.data.synthetic.ade20k import make_ade20k
from mae_transfer.run_folder.record import read_record
from mae_transfer.run_folder.validation import validate

LONGER = ["schedule.steps=10", "train.checkpoint_every=3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ade20k(tmp_path_factory.mktemp("data") / "ade", train_images=6, val_images=3, size=(40, 64))


def arguments(output: Path, data: Path, *more: str) -> list[str]:
    return [*ADE20K, "--data", str(data), "--output", str(output), *TINY_ADE20K, *more]


def test_a_run_from_command_to_table(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    done = run(launched(arguments(output, data, "eval.per_class=true", "data.workers=1")))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for foreign in ("Warning", "mmengine", "mmseg", "mmcv", "OneDL"):
        assert foreign not in done.stderr
    told = [line for line in done.stderr.splitlines() if line.split()[-6::2] == ["mIoU", "mAcc", "aAcc"]]
    assert len(told) == 1, done.stderr
    record = read_record(output / "record.json")
    assert record["steps"] == 3
    assert {"mIoU", "mAcc", "aAcc", "IoU/wall", "Acc/wall", "IoU/flag"} <= record["metrics"].keys()
    assert sum(name.startswith("IoU/") for name in record["metrics"]) == 150
    assert 0 <= record["metrics"]["mIoU"] <= 100
    assert "onedl-mmsegmentation" in record["versions"]
    assert record["settings"]["eval.mode"] == "slide"
    assert record["data"]["name"] == "ade (150 classes, 6 train, 3 val images)"
    assert record["per_image"]["images"] == 3
    assert validate(output) == (1, []), "the counts of single images give the record's mIoU"

    (output / "record.json").write_text(json.dumps(record | {"metrics": {}}))
    assert main(arguments(output, data, "eval.per_class=true", "--eval-only")) == 0
    again = read_record(output / "record.json")
    for key in ("metrics", "run_id", "settings_id", "backbone", "history", "images_per_second"):
        assert again[key] == record[key], key
    # the same weights evaluated in another way are another protocol
    multi = ["eval.ratios=[0.5,1.0]", "eval.flip=true", "eval.mode=whole"]
    assert main(arguments(output, data, "--eval-only", *multi)) == 0
    other = read_record(output / "record.json")
    assert other["run_id"] == record["run_id"]
    assert other["settings"]["eval.mode"] == "whole"
    assert other["settings_id"] != record["settings_id"]

    # the run's file is a trained model too, by the configuration that it holds
    alone = shutil.copy(output / "checkpoints" / "step_00000003.pt", tmp_path / "alone.pt")
    trained = ["--task", "ade20k", "--eval-only", "--device", "cpu", "--data", str(data), "data.workers=0"]
    assert main([*trained, "--checkpoint", str(alone), "--output", str(tmp_path / "trained")]) == 0
    found = read_record(tmp_path / "trained" / "record.json")
    assert found["metrics"]["mIoU"] == pytest.approx(record["metrics"]["mIoU"])
    assert (found["row"]["name"], found["settings"]["data.image_size"]) == ("trained", 32)
    shutil.rmtree(tmp_path / "trained")

    capsys.readouterr()
    assert make_tables(["--runs", str(tmp_path), "--output", str(tmp_path / "t.md")]) == 0
    printed = capsys.readouterr().out
    assert "| initialisation | mIoU nano |" in printed
    assert "MAE, published (MAE (arXiv 2111.06377) Table 5) | 48.1 | 53.6" in printed


@pytest.mark.parametrize(("ranks", "step"), [(1, 5), (2, 4)])
def test_kill_9_then_resume_is_bit_identical(tmp_path: Path, data: Path, ranks: int, step: int) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    done = transfer(arguments(straight, data, *LONGER), ranks)
    assert done.returncode == 0, done.stderr
    kill_after(arguments(broken, data, *LONGER), broken, step, total=10, ranks=ranks)
    resumed = transfer(arguments(broken, data, *LONGER, "--resume"), ranks)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(straight, broken)


def test_images_of_any_shape_two_classes_and_half_precision(tmp_path: Path) -> None:
    """Smaller than the crop, 1:5 and 5:1, a pixel wide; masks of 1 bit; a run that is stopped by nothing of it."""
    rng = np.random.default_rng(0)
    overrides = ["data.num_classes=2", "data.reduce_zero_label=false", "train.precision=bf16", "eval.batch_size=3"]
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            folder = tmp_path / split / kind
            folder.mkdir(parents=True)
            overrides.append(f"data.{split}_{kind}={folder}")
        for number, (height, width) in enumerate([(20, 17), (30, 150), (150, 30), (1, 90), (64, 64)]):
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{number}.jpg")
            Image.fromarray(image[..., 0] > 128).save(tmp_path / split / "masks" / f"{number}.png")
    output = tmp_path / "run"
    assert (
        main(
            [*ADE20K, "--output", str(output), *TINY_ADE20K, *overrides, "train.micro_batch=1", "train.global_batch=2"]
        )
        == 2
    )
    assert not output.exists()
    assert main([*ADE20K, "--output", str(output), *TINY_ADE20K, *overrides]) == 0
    record = read_record(output / "record.json")
    assert 0 < record["metrics"]["mIoU"] < 100
    assert record["data"]["train_images"] == 5


def test_more_than_255_classes(tmp_path: Path, data: Path) -> None:
    root = tmp_path / "ade"
    shutil.copytree(data, root)
    for path in root.glob("annotations/*/*.png"):
        values = np.asarray(Image.open(path)).astype(np.uint16)
        Image.fromarray(np.where(values == 150, 300, values)).save(path)
    names = tmp_path / "names.txt"
    names.write_text("".join(f"thing {i}\n" for i in range(300)))
    output = tmp_path / "run"
    more = ["data.num_classes=300", f"data.class_names={names}", "eval.per_class=true", "--subset", "4"]
    assert main(arguments(output, root, *more)) == 2, "255 is a class now"
    assert not output.exists()
    assert main(arguments(output, root, *more, "data.ignore_value=65535")) == 0
    record = read_record(output / "record.json")
    assert record["metrics"]["Acc/thing 299"] is not None, "the highest class is in the ground truth"
    assert (record["data"]["train_images"], record["data"]["val_images"]) == (4, 3)


def edit_mask(root: Path, split: str, index: int, change: Any) -> Path:
    """Rewrite the mask at a place in order of name; its path."""
    path = sorted((root / "annotations" / split).iterdir())[index]
    change(np.asarray(Image.open(path))).save(path)
    return path


def set_value(value: int) -> Any:
    def change(values: np.ndarray) -> Image.Image:
        values = values.copy()
        values[7, 5] = value
        return Image.fromarray(values)

    return change


def break_data(root: Path, how: str) -> None:
    if how == "value":
        edit_mask(root, "validation", 2, set_value(177))
    elif how == "colours":
        edit_mask(root, "training", 1, lambda values: Image.fromarray(np.stack([values] * 3, 2)))
    elif how == "0 and 255":
        for index in range(6):
            edit_mask(root, "training", index, lambda values: Image.fromarray(np.uint8(255 * (values == 3))))
    elif how == "size":
        edit_mask(root, "training", 5, lambda values: Image.fromarray(values[:-1]))
    elif how == "no mask":
        (root / "annotations/validation/ADE_val_00000002.png").unlink()
    elif how == "no folder":
        (root / "annotations/validation").rename(root / "annotations/val")
    elif how == "no image":
        path = root / "images/training/ADE_train_00000003.jpg"
        path.write_bytes(b"<html>not found</html>")
    elif how == "mask":
        path = root / "annotations/training/ADE_train_00000003.png"
        path.write_bytes(path.read_bytes()[:90])
    elif how == "jpeg":
        for path in (root / "images/training").iterdir():
            path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("value", r"ADE_val_00000003\.png: value 177 at row 7, column 5; values must be 1\.\.150 or ignored"),
        ("colours", r"ADE_train_00000002\.png: a mask of mode RGB.*ADEChallengeData2016\.zip"),
        ("0 and 255", "annotations/training: of 6 masks read no pixel has a class.*data.reduce_zero_label"),
        ("size", r"ADE_train_00000006\.png: the mask is \d+x\d+ pixels and .*ADE_train_00000006\.jpg is \d+x\d+"),
        ("no mask", r"1 of 3 images have no mask in .*: ADE_val_00000002"),
        ("no folder", "validation .*is not there; expected is ADE20K's layout.*sceneparsing"),
        ("no image", r"ADE_train_00000003\.jpg: not a readable image"),
        ("mask", r"ADE_train_00000003\.png: truncated or corrupt mask"),
        ("jpeg", r"ADE_train_0000000\d\.jpg: truncated or corrupt image .*data\.on_bad_image=skip"),
    ],
)
def test_bad_data_is_one_line_and_exit_2(
    tmp_path: Path, data: Path, how: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "ade"
    shutil.copytree(data, root)
    break_data(root, how)
    code = main(arguments(tmp_path / "run", root))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    assert re.search(expected, errors[0]), errors[0]
    if how != "jpeg":  # found by decoding the images, so only once the run has begun
        assert not (tmp_path / "run").exists(), "nothing half-written"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["train.global_batch=1"], "train.micro_batch to 2 or more"),
        (
            ["data.image_size=40", "data.short_side=40"],
            "data.image_size=40 is no multiple of the patch 16 of random_vit_nano, at least 2 of them; use 32 or 48",
        ),
        (["data.image_size=64"], "short_side 32 is below image_size 64"),
        (["eval.stride=33"], "above data.image_size 32: windows leave gaps"),
        (["data.num_classes=1"], "data.num_classes"),
        (["data.ratio_min=3"], "ratio_min 3.0 is above ratio_max 2.0"),
        (["model.taps=[1,2,3]"], "model.taps"),
        (["model.taps=[1,2,3,8]"], "taps"),
        (["data.class_names=nowhere.txt"], "nowhere.txt .data.class_names. cannot be read"),
        (["data.image_suffix=.webp"], "no file ends in '.webp' .it holds .jpg"),
        (["data.scale_min=1"], "unknown config key 'data.scale_min'"),
        (["train.micro_batch=1", "train.global_batch=3"], "train.micro_batch to 2 or more"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(
    tmp_path: Path, data: Path, more: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "run", data, *more)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(expected, errors[0]), errors[0]
    assert not (tmp_path / "run").exists(), "nothing half-written"


def test_a_value_in_hour_six_is_named_and_bad_files_can_be_skipped(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad value that the look at the start has missed, met by a loader process; then the same file truncated."""
    monkeypatch.setattr("mae_transfer.tasks.ade20k.values.SAMPLED", 1)
    root = tmp_path / "ade"
    shutil.copytree(data, root)
    path = edit_mask(root, "training", 3, set_value(200))
    steps = ["schedule.steps=4", "data.workers=1"]
    assert main(arguments(tmp_path / "run", root, *steps)) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert "ADE_train_00000004.png: value 200 at row 7, column 5" in errors[0]
    assert "Traceback" not in "".join(errors)

    path.write_bytes(path.read_bytes()[:80])
    assert main(arguments(tmp_path / "skip", root, *steps, "data.on_bad_image=skip")) == 0
    assert read_record(tmp_path / "skip" / "record.json")["data"]["skipped_files"] == ["ADE_train_00000004.jpg"]
    assert main(arguments(tmp_path / "skip", data, *steps, "--resume", "data.on_bad_image=skip")) == 2
    assert "is a run on other data: the training images, or what belongs to them, are not the same" in (
        capfd.readouterr().err
    )


def test_files_of_no_pair_are_said(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "ade"
    shutil.copytree(data, root)
    (root / "images/training/more.JPEG").write_bytes(b"")
    (root / "annotations/validation/ADE_val_00000009.png").write_bytes(b"")
    assert main(arguments(tmp_path / "run", root, "schedule.steps=2")) == 0
    told = capsys.readouterr().err
    assert "images/training: 1 files belong to no pair and are not used" in told
    assert "annotations/validation: 1 files belong to no pair" in told
    assert "ADE_val_00000009.png" in told


def test_missing_opencv_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As on a server without libGL, where importing it fails."""
    ours = [name for name in sys.modules if name.startswith("mae_transfer.tasks.ade20k")]
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main([*ADE20K, *TINY_ADE20K]) == 2
    assert "error: OpenCV cannot be loaded" in capsys.readouterr().err
