"""Stops and resumes change nothing: killed, signalled, with any number of workers, alone or under DDP."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from support.engine_toy import STEPS, outcome, run_ranks, start
from support.paths import ROOT

from mae_transfer.run_folder.checkpoints import list_checkpoints, load_checkpoint
from mae_transfer.run_folder.metrics import history_of, read_metrics

TIMES = ("seconds", "images_per_second", "data_wait", "memory")
CHANGES: dict[int, dict[str, Any]] = {
    1: {},
    2: {"train__micro_batch": 1},
    3: {"train__global_batch": 6, "train__micro_batch": 1, "train__eval_every_epochs": None},
}


def history(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read_metrics(folder)]


def assert_same_run(folder: Path, reference: Path, ranks: int = 1) -> None:
    for rank in range(ranks):
        got, want = (torch.load(f.parent / f"{f.name}.rank{rank}.pt") for f in (folder, reference))
        assert got.keys() == want.keys()
        assert all(torch.equal(got[key], want[key]) for key in want)
    got, want = (load_checkpoint(list_checkpoints(f / "checkpoints")[-1]) for f in (folder, reference))
    for part in ("model", "ema"):
        assert all(torch.equal(got[part][key], want[part][key]) for key in want[part])
    moments = [state["optimizer"]["state"] for state in (got, want)]
    assert all(torch.equal(moments[0][i][k], moments[1][i][k]) for i in moments[1] for k in moments[1][i])
    assert history(folder) == history(reference)
    assert got["history"] == want["history"] == history_of(folder, None).epochs, "also by epoch, bit for bit"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folder of the uninterrupted run of 1, 2 and 3 ranks."""
    folders = {}
    for ranks, changes in CHANGES.items():
        folders[ranks] = tmp_path_factory.mktemp(f"ranks{ranks}") / "run"
        assert run_ranks(folders[ranks], ranks, changes=changes) == [0] * ranks
    lines = history(folders[1])
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "eval" in line] == [3, 5, 8, 10]
    return folders


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 2), (3, 0)])
def test_kill_and_resume_is_bit_identical(
    ranks: int, workers: int, uninterrupted: dict[int, Path], tmp_path: Path
) -> None:
    """Checkpoints are due after steps 4, 8, 12. Killed in step 3 (nothing saved yet), in the middle of writing step 8
    (goes on from 4), in step 9 right after it was written, in the middle of writing the last."""
    folder, last = tmp_path / "run", ranks - 1
    options: dict[str, Any] = {"workers": workers, "changes": CHANGES[ranks]}
    faults = [{"kill_update": 3, "rank": last}, {"kill_write": 2}, {"kill_update": 5, "rank": last}, {"kill_write": 1}]
    saved: list[list[int]] = [[], [4], [4, 8], [4, 8]]
    for attempt, (fault, steps) in enumerate(zip(faults, saved, strict=True)):
        codes = run_ranks(folder, ranks, fault=fault, resume=attempt > 0, **options)
        assert codes[fault.get("rank", 0)] == -signal.SIGKILL
        assert [int(path.stem.split("_")[1]) for path in list_checkpoints(folder / "checkpoints")] == steps
        assert len(list((folder / "checkpoints").glob("*.tmp"))) == ("kill_write" in fault)
    assert run_ranks(folder, ranks, resume=True, **options) == [0] * ranks
    assert not list((folder / "checkpoints").glob("*.tmp"))
    assert_same_run(folder, uninterrupted[ranks], ranks)

    # Resuming a finished run trains nothing and gives the same weights.
    before = history(folder)
    assert run_ranks(folder, ranks, resume=True, **options) == [0] * ranks
    assert_same_run(folder, uninterrupted[ranks], ranks)
    assert history(folder) == before


@pytest.mark.parametrize(
    ("ranks", "workers", "number"), [(1, 2, signal.SIGTERM), (2, 0, signal.SIGUSR1)], ids=["one-sigterm", "two-sigusr1"]
)
def test_signal_saves_and_resume_is_bit_identical(
    ranks: int, workers: int, number: signal.Signals, uninterrupted: dict[int, Path], tmp_path: Path
) -> None:
    """One process gets the signal together with its loader processes, as from a scheduler; of two ranks only rank 1."""
    folder = tmp_path / "run"
    options: dict[str, Any] = {"workers": workers, "changes": CHANGES[ranks]}
    run = start(folder, ranks, task={"pause": 0.05}, **options)
    deadline = time.monotonic() + 60
    while len(history(folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    target = psutil.Process(run.processes[-1].pid)
    for process in [*target.children(recursive=True), target]:
        process.send_signal(number)
    assert run.wait() == [3] * ranks
    stopped = outcome(folder)
    step = max(line["step"] for line in history(folder))
    assert 2 <= step < STEPS
    assert stopped["error"] == "StoppedBySignal"
    assert f"after step {step}, saved in" in stopped["message"]
    assert list_checkpoints(folder / "checkpoints")[-1].name == f"step_{step:08d}.pt"
    assert run_ranks(folder, ranks, resume=True, **options) == [0] * ranks
    assert_same_run(folder, uninterrupted[ranks], ranks)


def test_launchers(uninterrupted: dict[int, Path], tmp_path: Path) -> None:
    """The real torchrun, and what srun sets, both give the run of two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    arguments = [
        str(ROOT / "tests" / "support" / "engine_toy.py"),
        str(tmp_path / "torchrun"),
        json.dumps({"changes": CHANGES[2]}),
    ]
    torchrun = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run_ranks(tmp_path / "srun", 2, launcher="slurm", changes=CHANGES[2]) == [0, 0]
    output, _ = torchrun.communicate(timeout=120)
    assert torchrun.returncode == 0, output
    assert "distributed_backend" not in output  # Fabric keeps quiet
    assert "deprecated" not in output, "of DDP's options"
    assert_same_run(tmp_path / "srun", uninterrupted[2], 2)
    assert_same_run(tmp_path / "torchrun", uninterrupted[2], 2)
