"""SLURM through submitit: its local executor makes a real suite; of SLURM itself, what is asked of sbatch."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from support.suite_command import STEPS, SUITE, arguments, results, steps_of

from mae_transfer.cli.suite import main
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.errors import EXIT_DONE, UserError
from mae_transfer.suites.cluster import ClusterLauncher
from mae_transfer.suites.plan import plan_suite
from mae_transfer.suites.state import take_claim

pytest.importorskip("submitit")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.process
def test_preempted_in_the_queue_and_out_of_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = make_classification(tmp_path / "set", "folder", train_images=4, val_images=4)
    command = arguments(tmp_path, data, backbones=[])
    output, (pretraining, *_) = plan_suite(Path(command[0]), output=tmp_path / "out", data={"folder": str(data)})
    options = {"timeout_min": 1440, "tasks_per_node": 1, "gpus_per_node": 0}
    launcher = ClusterLauncher("local", output / "suite", jobs=1, options=options)
    claim = take_claim(pretraining.place)
    assert claim is not None
    (job,) = launcher.start([(pretraining, claim)])
    assert launcher.room() == 0
    deadline = time.monotonic() + 120
    while steps_of(output) < 12:
        assert job.poll() is None, job.reason()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    controller = job._job._process.pid  # type: ignore[attr-defined]
    for task in psutil.Process(controller).children():
        task.send_signal(signal.SIGUSR2)  # as SLURM warns the tasks of a job
    while (code := job.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert code == EXIT_DONE
    os.close(claim)
    log = pretraining.place.log.read_text()
    assert "stopped by a signal after step" in log
    assert "resuming after step" in log, "put back into the queue, and gone on"
    assert f"step {STEPS}/{STEPS}" in log

    # the runner through the same launcher: what is done is passed over, the transfer is made
    assert main([*command, "--launcher", "submitit-local"]) == 0
    told = capfd.readouterr()
    assert "all 2 runs are done" in told.out
    assert told.err.count(" start: ") == 1
    assert len(results(output)[1]) == 2


def test_what_slurm_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for SLURM's commands: sbatch keeps the script and names a job."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"sbatch": f'cp "$1" {tmp_path}/script; echo Submitted batch job 7', "srun": "exit 1"}.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    _, runs = plan_suite(Path(arguments(tmp_path, tmp_path, pretrain=[], seeds=[0, 1])[0]), output=tmp_path / "out")
    options = {"timeout_min": 60, "nodes": 2, "tasks_per_node": 8, "gpus_per_node": 8, "slurm_partition": "big"}
    launcher = ClusterLauncher("slurm", tmp_path / "out" / "suite", jobs=1, options=options)
    launcher.start([(run, 0) for run in runs])
    script = (tmp_path / "script").read_text().splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH ")}
    assert {"--array=0-1%1", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=big"} <= asked
    assert {"--time=60", "--signal=USR2@90"} <= asked
    assert len(SUITE["tasks"]) * 2 == len(runs)


def test_a_runner_started_anew_finds_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stand-ins for SLURM's commands: jobs get numbers, and squeue says what the test has written."""
    commands, count, answer = tmp_path / "bin", tmp_path / "count", tmp_path / "squeue"
    commands.mkdir()
    texts = {
        "sbatch": f"echo >> {count}; echo Submitted batch job 7$(wc -l < {count})",
        "squeue": f'test "$2" = --jobs=71_0 -o "$2" = --jobs=71_1 || exit 9; . {answer}',
        "srun": "exit 1",
    }
    for name, text in texts.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    _, runs = plan_suite(Path(arguments(tmp_path, tmp_path, pretrain=[], seeds=[0, 1])[0]), output=tmp_path / "out")

    def start() -> tuple[list[str], int]:
        options = {"timeout_min": 60, "nodes": 1, "tasks_per_node": 2, "gpus_per_node": 2}
        launcher = ClusterLauncher("slurm", tmp_path / "out" / "suite", jobs=None, options=options)
        jobs = launcher.start([(run, 0) for run in runs])
        return [job._job.job_id for job in jobs], len(count.read_text())  # type: ignore[attr-defined]

    assert start() == (["71_0", "71_1"], 1)
    answer.write_text("echo PENDING")
    assert start() == (["71_0", "71_1"], 1), "nothing is submitted twice"
    assert capsys.readouterr().err.count("is in the queue as job 71_") == 2
    answer.write_text("echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1")
    with pytest.raises(UserError, match=r"squeue of job 71_0: .*Unable to contact.*; try again, or scancel it"):
        start()
    assert len(count.read_text()) == 1
    answer.write_text("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1")
    assert start() == (["72_0", "72_1"], 2), "the jobs have gone"
