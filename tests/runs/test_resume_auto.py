"""`--resume auto`: one command for the start and for every restart, whatever the folder holds."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import command_line

from mae_transfer.cli.main import main
from mae_transfer.errors import UserError
from mae_transfer.runs import series
from mae_transfer.runs.api import run_pretrain, run_transfer

STEPS = 3
SMALL = ["eval.pictures=0", "data.image_size=32", f"schedule.steps={STEPS}", "train.checkpoint_every=1"]
OPTIONS: dict[str, Any] = {"protocol": "finetune", "preset": "smoke", "data": "synthetic", "device": "cpu"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    run(output)
    return output


def run(output: Path, *overrides: str) -> dict[str, Any]:
    options = {**OPTIONS, "overrides": [*SMALL, *overrides]}
    return run_transfer("folder", "random_vit_nano", output=output, resume="auto", **options)


def weights(output: Path) -> dict[str, torch.Tensor]:
    (newest,) = (output / "checkpoints").glob(f"*{STEPS}.pt*")
    return torch.load(newest, weights_only=True)["model"]


def stopped_after(finished: Path, output: Path, step: int) -> None:
    """The folder as a killed process leaves it after a step."""
    shutil.copytree(finished, output)
    (output / "record.json").unlink()
    for path in (output / "checkpoints").iterdir():
        if int("".join(filter(str.isdigit, path.stem))) > step:
            path.unlink()
    metrics = output / "metrics.jsonl"
    lines = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= step]
    metrics.write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("state", ["lock alone", "configuration alone", "step 1", "step 3"])
def test_a_run_ends_the_same_from_every_state(state: str, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    if state.startswith("step"):
        stopped_after(finished, output, int(state[-1]))
    else:
        (output / "checkpoints").mkdir(parents=True)
    if state == "lock alone":
        (output / "run.lock").touch()
    if state == "configuration alone":
        shutil.copy(finished / "config.yaml", output)
    record = run(output)
    expected = json.loads((finished / "record.json").read_text())
    assert record["metrics"] == expected["metrics"]
    assert all(torch.equal(weights(output)[name], value) for name, value in weights(finished).items())


def test_a_run_that_is_done_is_left_alone(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (finished / "record.json").read_bytes()
    monkeypatch.setattr(series, "run_task", None)
    assert run(finished)["run_id"] == json.loads(before)["run_id"]
    command = [*("transfer", "--task", "folder", "--backbone", "random_vit_nano", "--output", str(finished))]
    command += [f"--{name}={value}" for name, value in OPTIONS.items()]
    assert main([*command, "--resume", "auto", *SMALL]) == 0
    assert main([*command, "--resume=auto", *SMALL]) == 0
    assert (finished / "record.json").read_bytes() == before


@pytest.mark.parametrize("resume", [["--resume"], ["--resume", "auto"]])
def test_an_evaluation_is_not_resumed(
    resume: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "error: --resume and --eval-only: give one of them; "
    options = ["--data", "synthetic", "--preset", "smoke", "--device", "cpu", "--eval-only", *resume]
    transfer = ["transfer", "--task", "folder", "--backbone", "random_vit_nano", "--protocol", "finetune"]
    pretrain = ["pretrain", "--method", "mae", "--backbone", "vit_nano"]
    for command, output in ((transfer, finished), (transfer, tmp_path / "none"), (pretrain, tmp_path / "none")):
        assert main([*command, *options, "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(said)
        assert error.count("\n") == 1


def test_a_run_that_was_evaluated_otherwise_is_left_alone_with_a_word(
    finished: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "run_task", None)
    with caplog.at_level("WARNING"):
        run(finished)
        assert not caplog.messages
        record = run(finished, "eval.precision=bf16")
    assert record["settings"]["eval.precision"] == "fp32"
    assert caplog.messages == [
        f"{finished}: its numbers are of another evaluation (eval.precision fp32 -> bf16); --eval-only makes it"
    ]


def test_another_recipe_or_a_run_without_configuration_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another recipe than that of the run.*optim.lr"):
        run(finished, "optim.lr=1")
    stopped_after(finished, tmp_path / "run", 2)
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"parts of a run but no config.yaml; restore that file, or give another"):
        run(tmp_path / "run")


def test_a_run_that_was_refused_before_its_first_step_is_no_run(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    shutil.copy(finished / "config.yaml", tmp_path / "run")
    assert run(tmp_path / "run", "optim.lr=1e-5")["settings"]["optim.lr"] == 1e-5


def test_a_pre_training_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {
        **{"preset": "smoke", "data": "synthetic", "device": "cpu", "output": tmp_path / "run", "resume": "auto"},
        "overrides": ["data.image_size=32", "model.decoder_depth=1", "schedule.steps=1", "schedule.warmup_steps=0"],
    }
    first = run_pretrain("mae", "vit_nano_p8", **options)
    monkeypatch.setattr(series, "run_task", None)
    assert run_pretrain("mae", "vit_nano_p8", **options)["run_id"] == first["run_id"]


RANK = """
import os, signal, sys
from torch.optim.optimizer import register_optimizer_step_pre_hook
from mae_transfer.cli.main import main

restart, updates = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), []

def kill(*_):
    updates.append(0)
    if restart < 2 and len(updates) == 2 - restart and os.environ["RANK"] == str(restart):
        os.kill(os.getpid(), signal.SIGKILL)

register_optimizer_step_pre_hook(kill)
sys.exit(main(sys.argv[1:]))
"""


def test_torchrun_restarts_a_run_that_is_killed_twice(tmp_path: Path) -> None:
    """Each rank once, before its process has made a second and a first step."""
    (tmp_path / "rank.py").write_text(RANK)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    launch += ["--max-restarts=3", str(tmp_path / "rank.py"), "transfer"]

    def arguments(output: Path) -> list[str]:
        options = [*(f"--{name}={value}" for name, value in OPTIONS.items()), *SMALL, "train.global_batch=4"]
        return ["--task=folder", "--backbone=random_vit_nano", f"--output={output}", "--resume", "auto", *options]

    for done in (
        command_line.run([sys.executable, *launch, *arguments(tmp_path / "broken")]),
        command_line.transfer(arguments(tmp_path / "whole"), ranks=2),
    ):
        assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming after step 1" in (tmp_path / "broken" / "log.txt").read_text()
    records = [json.loads((tmp_path / name / "record.json").read_text()) for name in ("whole", "broken")]
    assert records[0]["metrics"] == records[1]["metrics"]
    assert all(torch.equal(weights(tmp_path / "broken")[k], v) for k, v in weights(tmp_path / "whole").items())
