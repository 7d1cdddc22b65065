"""Trained classifiers through the command line: a file and val images are enough; bad input is one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support.trained import CLASSES, SOURCES, Source, write_val
from timm.data import create_transform, resolve_model_data_config

from mae_transfer.cli.transfer import main
from mae_transfer.results.tables.build import make_tables
from mae_transfer.run_folder.record import read_record
from mae_transfer.run_folder.validation import validate
from mae_transfer.runs.tasks import descriptions

EACH = 3
MORE = ["--device", "cpu", "data.workers=0", "eval.pictures=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_val(tmp_path_factory.mktemp("data"), EACH)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return SOURCES["timm, class token"](tmp_path_factory.mktemp("model"))


def evaluate(source: Source, data: Path, output: Path, *more: str) -> int:
    options = ["--backbone", source.backbone, "--checkpoint", str(source.path)]
    return main(
        ["--task", "folder", "--eval-only", *options, "--data", str(data), "--output", str(output), *MORE, *more]
    )


def own_decisions(source: Source, data: Path) -> list[int]:
    """timm's own model and transform, image by image."""
    model = timm.create_model(source.backbone.removeprefix("timm:"))
    model.load_state_dict(torch.load(source.path, weights_only=True)["model"])
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    files = sorted((data / "val").rglob("*.jpg"))
    with torch.no_grad():
        return [int(model.eval()(transform(Image.open(file).convert("RGB"))[None]).argmax()) for file in files]


def test_a_file_of_timm_decides_as_timm_does(
    source: Source, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(source, data, tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert "from the file: classifier of 7 classes on: token" in said
    assert "7 outputs taken as the class folders in sorted order, class0 to class6" in said
    record = read_record(tmp_path / "run" / "record.json")
    labels = [label for label in range(CLASSES) for _ in range(EACH)]
    right = [a == b for a, b in zip(own_decisions(source, data), labels, strict=True)]
    assert record["metrics"]["top1"] == pytest.approx(100 * np.mean(right))
    correct = np.load(tmp_path / "run" / "per_image.npz")
    assert sorted(correct.files)
    assert (record["row"]["name"], record["steps"], record["data"]["train_images"]) == ("trained", 0, 0)
    assert record["settings"]["eval.crop_pct"] == 0.9
    assert validate(tmp_path) == (1, [])
    table = make_tables([record], descriptions=descriptions())
    assert "| trained, timm:vit_verify_token | " in table
    assert evaluate(source, data, tmp_path / "run") == 0, "the same again, in the same folder"
    again = read_record(tmp_path / "run" / "record.json")
    assert again["metrics"] == record["metrics"]
    assert list((tmp_path / "run" / "pictures").iterdir())


def test_the_backbone_is_found_by_the_file(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mae = SOURCES["MAE fine-tuned"](tmp_path)
    options = ["--task", "folder", "--eval-only", "--checkpoint", str(mae.path), "--data", str(data), *MORE]
    assert main([*options, "--output", str(tmp_path / "run"), "data.image_size=64"]) == 0
    assert "backbone mae_vit_nano, by the shapes in" in capsys.readouterr().err
    assert main(["--task", "folder", "--checkpoint", str(mae.path), "--data", str(data)]) == 2
    assert "--backbone is missing" in capsys.readouterr().err


def test_a_run_is_evaluated_at_its_own_size(data: Path, tmp_path: Path) -> None:
    """Size and crop of a run of this project stand in its checkpoint; the recipe's are 224 pixels."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        shutil.copytree(data / "val", root / split)
    options = ["--task", "folder", "--data", str(root), "--device", "cpu", "data.workers=0", "eval.pictures=0"]
    sizes = ["data.image_size=32", "eval.crop_pct=0.7", "optim.lr=0.05"]
    run = [*options, "--preset", "smoke", "--backbone", "random_vit_nano", "subset=null", *sizes]
    assert main([*run, "--output", str(tmp_path / "run")]) == 0
    file = max((tmp_path / "run" / "checkpoints").glob("step_*.pt"))
    assert main([*options, "--eval-only", "--checkpoint", str(file), "--output", str(tmp_path / "again")]) == 0
    record, again = (read_record(tmp_path / name / "record.json") for name in ("run", "again"))
    assert again["metrics"] == record["metrics"]
    assert (again["settings"]["data.image_size"], again["settings"]["eval.crop_pct"]) == (32, 0.7)


def test_bad_input_is_one_line_and_leaves_no_folder(
    source: Source, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(text: str, *more: str, of: Source = source, where: Path = data) -> None:
        assert evaluate(of, where, tmp_path / "run", *more) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert text in lines[0]
        assert not (tmp_path / "run").exists()

    fewer = tmp_path / "fewer"
    shutil.copytree(data, fewer)
    shutil.rmtree(fewer / "val" / "class0")
    refused("has 7 outputs; the 6 class folders, such as class1, are not as many", where=fewer)
    (fewer / "train" / "class0").mkdir(parents=True)
    refused("class1 is no class of the training set", where=fewer)
    state = torch.load(source.path, weights_only=True)["model"]
    bare = tmp_path / "bare.pth"
    torch.save({key: tensor for key, tensor in state.items() if not key.startswith("head.")}, bare)
    refused("has no classifier that is read here", of=Source(bare, source.backbone, source.scores))
    refused("optim.lr", "optim.lr=3")
    refused("data.fraction (--fraction) chooses training images, and the protocol trained", "--fraction", "10")
    refused("data.shots (--shots) chooses training images", "--shots", "2", "--draws", "3")
    refused("no such file", f"model.classifier={tmp_path / 'none.pth'}")
    options = ["--task", "folder", "--backbone", "mae_vit_nano", "--data", str(data), "--eval-only"]
    assert main([*options, "--output", str(tmp_path / "none")]) == 2
    assert "folder train/" in capsys.readouterr().err, "without a checkpoint it is a run to evaluate again"
