"""Runs of the command line as processes of their own, and what is compared of them."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from support.paths import TOOLS

from mae_transfer.run_folder.record import read_record

TOOL = TOOLS / "run_transfer.py"
ADE20K = ["--task", "ade20k", "--backbone", "random_vit_nano", "--preset", "smoke", "--device", "cpu"]
TINY_ADE20K = [
    *("data.image_size=32", "data.short_side=32", "data.long_side=128", "eval.stride=24"),
    *("model.head_channels=32", "model.aux_channels=16"),
]
SIX_STEPS = ["schedule.steps=6", "train.checkpoint_every=2", "train.keep_checkpoints=10"]


def launched(arguments: list[str], ranks: int = 1) -> list[str]:
    """The command of run_transfer.py with these arguments, on several gloo ranks if asked."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*launcher, str(TOOL), *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment())


def kill_after(command: list[str], output: Path, step: int, total: int) -> None:
    """Start a run and kill -9 all of it as soon as a step is in metrics.jsonl, whatever it is doing then."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment())
    metrics = output / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < step:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.005)
    # each by itself: torchrun gives its workers sessions of their own, so that they outlive the kill of its group
    for member in [*psutil.Process(process.pid).children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.communicate()
    assert len((output / "metrics.jsonl").read_text().splitlines()) < total, "it was over before it was killed"
    assert not (output / "record.json").exists()


def weights(output: Path) -> dict[str, torch.Tensor]:
    newest = sorted((output / "checkpoints").glob("step_*.pt"))[-1]
    return torch.load(newest, weights_only=True)["model"]


def assert_same_run(a: Path, b: Path) -> None:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} tensors differ: {different[:3]}"
    assert read_record(a / "record.json")["metrics"] == read_record(b / "record.json")["metrics"]
