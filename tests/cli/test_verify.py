"""`mae-transfer verify`: a number that comes out, one that does not, a part, and what is said of wrong input."""

import hashlib
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support import tiny_models
from support.command_line import run
from support.trained import SOURCES, Source, write_val

import mae_transfer as mt
from mae_transfer.cli.verify import main
from mae_transfer.data.synthetic.ade20k import make_ade20k
from mae_transfer.results.comparable_runs import comparable_runs
from mae_transfer.results.long_table import long_table
from mae_transfer.results.published_models import read_published_models
from mae_transfer.run_folder.record import read_record, read_records
from mae_transfer.run_folder.validation import validate

EACH = 4
MORE = ["--device", "cpu", "data.workers=0", "eval.pictures=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_val(tmp_path_factory.mktemp("data"), EACH)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return SOURCES["MAE fine-tuned"](tmp_path_factory.mktemp("model"))


@pytest.fixture
def expecting(source: Source, data: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The arguments for a list with one model, of which this top-1 is expected."""

    def arguments(top1: float, **more: object) -> list[str]:
        model = {
            "task": "folder",
            "backbone": source.backbone,
            "file": source.path.name,
            "metrics": {"top1": top1},
            "tolerance": 0.05,
            "settings": {"data.image_size": 64},
            "source": "this test",
            **more,
        }
        (tmp_path / "list.yaml").write_text(yaml.safe_dump({"tiny": model}))
        return ["tiny", "--models", str(tmp_path / "list.yaml"), "--data", str(data), *MORE]

    return arguments


def measured(output: Path) -> float:
    value = read_record(output / "record.json")["metrics"]["top1"]
    assert value is not None
    return value


def test_a_number_that_comes_out_and_one_that_does_not(
    expecting: Callable[..., list[str]], source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "run")]
    main([*expecting(0.0), "--checkpoint", str(source.path), *output])
    top1 = measured(tmp_path / "run")
    capsys.readouterr()
    assert main([*expecting(top1), "--checkpoint", str(source.path.parent), *output]) == 0, "the folder that has it"
    said = capsys.readouterr().out
    assert f"tiny: folder, top1 {top1:g} expected, by this test" in said
    assert f"top1: measured {top1:.3f}, expected {top1:.3f}, difference +0.000: agrees (tolerance 0.05)" in said
    wrong = [*expecting(top1 - 0.3, digest="md5 000000"), "--checkpoint", str(source.path), *output]
    assert main(wrong) == 4
    printed = capsys.readouterr()
    assert f"measured {top1:.3f}, expected {top1 - 0.3:.3f}, difference +0.300: DIFFERS" in printed.out
    assert "is not the published file: its md5 is" in printed.err
    record = read_record(tmp_path / "run" / "record.json")
    assert record["published_model"]["name"] == "tiny"  # type: ignore[typeddict-item]
    assert record["published_model"]["published_file"] is False  # type: ignore[typeddict-item]
    assert record["published_model"]["agrees"] is False  # type: ignore[typeddict-item]
    assert validate(tmp_path) == (1, [])


def test_a_part_has_its_interval_and_never_shares_a_cell_with_a_training(
    expecting: Callable[..., list[str]],
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mae_transfer.cli.transfer import main as transfer

    monkeypatch.chdir(tmp_path)
    assert main([*expecting(97.0, task="imagenet"), "--checkpoint", str(source.path), "--images", "12"]) == 4
    said = capsys.readouterr().out
    assert "95 % interval of the whole" in said
    assert "DIFFERS" in said
    run = Path("results/runs/verify-tiny-12images")
    at_home = measured(run)
    assert main([*expecting(at_home, task="imagenet"), "--checkpoint", str(source.path), "--images", "12"]) == 0
    data = Path(expecting(0)[4])
    shutil.copytree(data / "val", tmp_path / "whole" / "train")
    shutil.copytree(data / "val", tmp_path / "whole" / "val")
    training = ["--task", "imagenet", "--backbone", "mae_vit_nano", "--weights", "random", "--preset", "smoke"]
    assert transfer([*training, "--data", str(tmp_path / "whole"), "--device", "cpu", "data.image_size=64"]) == 0
    records, left_out = read_records(tmp_path)
    assert (len(records), left_out) == (2, [])
    groups = comparable_runs(long_table(records))
    assert [group.protocol for group in groups].count("trained") == 1
    assert len(groups) == 2


@pytest.mark.process
def test_a_part_has_an_interval_for_miou(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(tiny_models.FITTED) as layers:
        torch.save({"state_dict": tiny_models.fitted_segmentor(layers)}, tmp_path / "model.pth")
    data = make_ade20k(tmp_path / "ade", train_images=1, val_images=120, size=(64, 80))
    backbone = {"backbone": "mae_vit_nano", "overrides": {"data.workers": 0}}
    whole = mt.evaluate(tmp_path / "model.pth", data, task="ade20k", device="cpu", **backbone)

    def verdict(**changes: float) -> tuple[int, str]:
        numbers = {key: round(whole[key], 3) for key in ("mIoU", "mAcc")} | changes
        model = {"task": "ade20k", "backbone": "mae_vit_nano", "images": 120, "metrics": numbers, "tolerance": 0.01}
        (tmp_path / "list.yaml").write_text(yaml.safe_dump({"tiny": {**model, "source": "this test"}}))
        command = ["tiny", "--models", str(tmp_path / "list.yaml"), "--checkpoint", str(tmp_path / "model.pth")]
        code = main([*command, "--data", str(data), "--images", "100", "--output", str(tmp_path / "run"), *MORE])
        return code, capsys.readouterr().out

    code, said = verdict(mAcc=1.0)
    assert (code, said.count("95 % interval of the whole"), said.count("agrees")) == (0, 1, 1)
    assert "mAcc: measured" in said
    assert "NO VERDICT on a part of 100 images" in said, "and it decides nothing"
    assert verdict(mIoU=whole["mIoU"] + 15)[0] == 4

    # two processes on disks of their own: the first one has the run folder, and compares
    command = ["tiny", "--models", str(tmp_path / "list.yaml"), "--checkpoint", str(tmp_path / "model.pth")]
    command += ["--data", str(data), "--images", "100", "--output", "run", *MORE]
    apart = f'mkdir "{tmp_path}/disk$RANK" && cd "{tmp_path}/disk$RANK" && exec "$@"'
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python", "sh", "-c", apart]
    done = run([sys.executable, *launcher, "sh", sys.executable, "-m", "mae_transfer", "verify", *command])
    assert (done.stdout.count("mIoU: measured"), done.stdout.count("DIFFERS")) == (1, 1)
    assert re.findall(r"exitcode +: (\d)", done.stderr) == ["4"], "of the first; the other one has nothing to say"
    assert sorted(path.name for path in tmp_path.glob("disk*/*")) == ["run"]


def test_all_models_in_a_folder_by_name_and_by_hash(
    source: Source, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, models = tmp_path / "weights", tmp_path / "list.yaml"
    (weights / "more").mkdir(parents=True)
    shutil.copy(source.path, weights / "more" / source.path.name)
    shutil.copy(source.path, weights / "renamed.pth")
    model = {"task": "folder", "backbone": source.backbone, "tolerance": 0.05, "source": "this test"}
    model |= {"settings": {"data.image_size": 64}}
    digest = f"sha256 {hashlib.sha256(source.path.read_bytes()).hexdigest()[:8]}"
    listed = {
        "named": {**model, "file": source.path.name, "metrics": {"top1": 0.0}},
        "hashed": {**model, "file": "other.pth", "digest": digest, "metrics": {"top1": 0.0}},
        "absent": {**model, "file": "absent.pth", "metrics": {"top1": 0.0}},
    }

    def verify_all(*more: str, at: str = "runs") -> tuple[int, str, str]:
        models.write_text(yaml.safe_dump(listed, sort_keys=False))
        command = ["--all", "--models", str(models), "--checkpoint", str(weights), "--output", str(tmp_path / at)]
        code = main([*command, *MORE, *more])
        said = capsys.readouterr()
        return code, said.out, said.err

    assert verify_all("--data", str(data))[0] == 4
    top1 = measured(tmp_path / "runs" / "named")
    listed["named"]["metrics"] = listed["hashed"]["metrics"] = {"top1": top1}
    code, printed, said = verify_all("--data", f"folder={data}")
    assert code == 0
    assert "renamed.pth is hashed, by its sha256" in said
    table = printed[printed.index("model ") :].splitlines()
    assert [line.split() for line in table[1:]] == [
        [name, "top1", f"{top1:.3f}", f"{top1:.3f}", "+0.000", "agrees"] for name in ("named", "hashed")
    ]
    listed["named"]["metrics"] = {"AP": 3.0}
    code, printed, _ = verify_all("--data", str(data))
    assert code == 2, "what is refused is no difference, and stops none of the others"
    assert "refused: folder measures no AP" in printed
    assert printed.rstrip().endswith("agrees")
    for more, text in (
        (("--data", f"foldre={data}"), "no model of the list is of the task 'foldre', did you mean folder?; the list"),
        (("--data", f"folder={data}", "--data", f"imagenet={data}"), "of the task 'imagenet'; the list has folder"),
        (("--data", f"folder={data}", "--data", str(data)), "--all takes TASK=FOLDER, with a task of folder"),
        (("--data", f"folder={data}", "--data", "folder=/other"), f"folder has a folder already, {data}"),
        ((), "models of folder: give --data folder=DIR"),
        (("--data", str(data), "tiny"), "leave out tiny"),
        (("--data", str(data), "--download"), "without --download"),
    ):
        code, _, said = verify_all(*more, at="none")
        assert (code, said.count("error: ")) == (2, 1)
        assert text in said
        assert not (tmp_path / "none").exists()
    shutil.rmtree(weights / "more")
    (weights / "renamed.pth").write_bytes(b"0")
    assert "none of its 1 weights files is a published model's" in verify_all("--data", str(data))[2]


def test_the_list_and_bad_input(
    expecting: Callable[..., list[str]], source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    for name, model in read_published_models().items():
        metric, value = next(iter(model.metrics.items()))
        assert f"{name}: {metric} {value:g}" in said
        assert model.source in said
    assert "mae-transfer verify mae_vit_b_finetuned --checkpoint mae_finetuned_vit_base.pth" in said

    def refused(text: str, arguments: list[str]) -> None:
        assert main(arguments) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert text in lines[0]

    refused("name a published model", [])
    refused("no published model 'mae_vit_b_finetune', did you mean mae_vit_b_finetuned", ["mae_vit_b_finetune"])
    refused("or --download; nothing is fetched unasked", expecting(50.0))
    away = {"url": "http://127.0.0.1:9/away.pth", "file": f"{tmp_path.name}.pth"}
    refused("away.pth cannot be fetched (", [*expecting(50.0, **away), "--download"])
    refused("no such file", [*expecting(50.0), "--checkpoint", str(tmp_path / "none.pth")])
    refused("tiny: tolerance: Input should be greater than 0", expecting(50.0, tolerance=0))
    with_other = [*expecting(50.0, metrics={"AP": 3.0}), "--checkpoint", str(source.path)]
    refused("folder measures no AP", [*with_other, "--output", str(tmp_path / "run")])
    fewer = [*expecting(50.0, images=3), "--checkpoint", str(source.path)]
    refused("and the published number is of 3: another set", [*fewer, "--output", str(tmp_path / "fewer")])
