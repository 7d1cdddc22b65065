"""Failures of loader processes and second signals end a run, in one line."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import torch
from support.command_line import Started, start
from support.paths import TOOLS

from mae_transfer.engine.loader import loader_processes
from mae_transfer.engine.signals import REPEAT

RUN = [
    *(sys.executable, str(TOOLS / "run_transfer.py"), "--task", "folder", "--backbone", "random_vit_nano"),
    *("--preset", "smoke", "--device", "cpu", "--protocol", "finetune", "data.workers=2", "eval.pictures=0"),
]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def one_line(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words), line


def test_shared_memory_that_is_too_small(tmp_path: Path) -> None:
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    command = [*mount, *RUN, "--output", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=ENVIRONMENT)
    one_line(done, "No space left on device", "/dev/shm has 0.0625 MB", "--shm-size", "data.workers=0")


LOADER = """
    import os, signal, sys, time, torch
    from torch.utils.data import DataLoader
    from mae_transfer.engine.loader import allow_open_files, init_worker, loader_failures
    from mae_transfer.engine.signals import StopRequest
    from mae_transfer.errors import StoppedBySignal, UserError

    class Samples(torch.utils.data.Dataset):
        def __len__(self): return 64
        def __getitem__(self, i): return {sample}

    try:
        with loader_failures(), StopRequest() as stop:
            batches = []
            for batch in DataLoader(Samples(), num_workers=2, worker_init_fn=init_worker, collate_fn=lambda b: b):
                batches.append(batch)
                print("batch", flush=True)
                {body}
    except (UserError, StoppedBySignal) as error:
        print("said", type(error).__name__, error, flush=True)
"""


def loader(folder: Path, sample: str, body: str = "pass") -> Started:
    script = folder / "loader.py"
    script.write_text(textwrap.dedent(LOADER).replace("{sample}", sample).replace("{body}", body))
    return start([], tool=script)


def last_line(run: Started) -> str:
    done = run.wait()
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_what_cannot_be_sent_is_said(tmp_path: Path) -> None:
    said = last_line(loader(tmp_path, "lambda: 0"))
    assert "said UserError a loader process could not send a batch (" in said
    assert "pickle" in said


def test_too_few_files(tmp_path: Path) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
    said = last_line(loader(tmp_path, "torch.zeros(3)", f"exec({code!r}) if len(batches) == 1 else None"))
    assert said.startswith("said UserError")
    assert "ulimit -n" in said


def test_a_killed_process_is_said(tmp_path: Path) -> None:
    run = loader(tmp_path, "torch.zeros(3)", "time.sleep(0.1)")
    run.until_said("batch")
    for child in psutil.Process(run.ranks.processes[0].pid).children():
        child.kill()
    assert "said UserError a loader process" in last_line(run)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_wait(second: signal.Signals, tmp_path: Path) -> None:
    """The wait is longer than `last_line` has patience."""
    wait = "while not stop.received: time.sleep(0.01)", "print('first', flush=True)", "time.sleep(600)"
    run = loader(tmp_path, "torch.zeros(3)", f"exec({chr(10).join(wait)!r})")
    process = psutil.Process(run.ranks.processes[0].pid)
    run.until_said("batch")
    process.send_signal(signal.SIGTERM)
    run.until_said("first")
    time.sleep(2 * REPEAT)
    process.send_signal(second)
    assert "said StoppedBySignal stopped at once by a second signal" in last_line(run)


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({}, 16),
        ({"LOCAL_WORLD_SIZE": "8"}, 8),
        ({"LOCAL_WORLD_SIZE": "8", "SLURM_CPUS_PER_TASK": "64"}, 8),
        ({"SLURM_CPUS_PER_TASK": "12", "SLURM_STEP_NUM_TASKS": "4"}, 12),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS_PER_NODE": "8"}, 8),
        ({"MAE_TRANSFER_CORES": "16", "LOCAL_WORLD_SIZE": "2"}, 8),
        ({"LOCAL_WORLD_SIZE": "100"}, 1),
    ],
)
def test_loader_processes_are_a_share_of_the_cores(
    environment: dict[str, str], processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name in ("LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert loader_processes("auto", torch.device("cuda")) == processes
    assert loader_processes("auto", torch.device("cpu")) == 2
    assert loader_processes(0, torch.device("cuda")) == 0
