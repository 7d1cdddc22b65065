"""Runs of the command line as processes of their own, and what is compared of them.

`transfer` forks them from a server that has imported the package; `run(launched(...))` starts them as a shell does.
"""

import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from support import processes
from support.paths import TOOLS

from mae_transfer.run_folder.record import read_record

TOOL = TOOLS / "run_transfer.py"
PRINTED = ("stdout", "stderr")
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


class Started(NamedTuple):
    """A command that runs, and the files of what its ranks print."""

    arguments: list[str]
    ranks: processes.Ranks
    printed: tempfile.TemporaryDirectory[str]

    def until(self, seen: Callable[[], bool]) -> None:
        """Wait for something of a process that goes on."""
        deadline = time.monotonic() + 120
        while not seen():
            assert all(process.is_alive() for process in self.ranks.processes), self.wait().stderr
            assert time.monotonic() < deadline, "the run made no progress"
            time.sleep(0.005)

    def until_step(self, output: Path, step: int) -> None:
        """Wait until a step is in metrics.jsonl."""
        metrics = output / "metrics.jsonl"
        self.until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= step)

    def until_said(self, line: str) -> None:
        """Wait for a line on standard output."""
        self.until(lambda: f"{line}\n" in Path(self.printed.name, "stdout").read_text())

    def wait(self) -> subprocess.CompletedProcess[str]:
        """What became of it; the exit code is 0, or of the first rank with another one."""
        codes = self.ranks.wait(timeout=300, grace=10)
        printed = [Path(self.printed.name, name).read_text() for name in PRINTED]
        self.printed.cleanup()
        return subprocess.CompletedProcess(self.arguments, next((c for c in codes if c), 0), *printed)


def start(arguments: list[str], ranks: int = 1, tool: Path = TOOL) -> Started:
    """Start a file, of tools/ or another, with these arguments, on several gloo ranks if asked."""
    printed = tempfile.TemporaryDirectory()
    for name in PRINTED:
        Path(printed.name, name).touch()
    return Started(arguments, processes.start(_main, str(tool), arguments, printed.name, ranks=ranks), printed)


def transfer(arguments: list[str], ranks: int = 1) -> subprocess.CompletedProcess[str]:
    return start(arguments, ranks).wait()


def pretrain(arguments: list[str], ranks: int = 1) -> subprocess.CompletedProcess[str]:
    return start(arguments, ranks, TOOLS / "run_pretrain.py").wait()


def _main(rank: int, tool: str, arguments: list[str], printed: str) -> None:
    for descriptor, name in enumerate(PRINTED, 1):
        os.dup2(os.open(Path(printed, name), os.O_WRONLY | os.O_APPEND), descriptor)
    sys.argv = [tool, *arguments]
    runpy.run_path(tool, run_name="__main__")


def kill_after(arguments: list[str], output: Path, step: int, total: int, ranks: int = 1) -> None:
    """Start a run and kill -9 all of it as soon as a step is in metrics.jsonl, whatever it is doing then."""
    run = start(arguments, ranks)
    run.until_step(output, step)
    for rank in run.ranks.processes:
        for process in (*psutil.Process(rank.pid).children(recursive=True), rank):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    run.wait()
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
