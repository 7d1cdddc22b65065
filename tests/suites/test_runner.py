"""A suite outlives the death of its runner and of any run, and ends with the table of one that ran through."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.command_line import environment
from support.paths import TOOLS
from support.suite_command import STEPS, SUITE, arguments, results, steps_of

from mae_transfer.cli.suite import main
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.engine.signals import REPEAT
from mae_transfer.errors import RunsFailed
from mae_transfer.run_folder.record import read_records
from mae_transfer.suites.api import run_suite

pytestmark = pytest.mark.process
TOOL = TOOLS / "run_suite.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classification(tmp_path_factory.mktemp("data") / "set", "folder", train_images=4, val_images=4)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def started(arguments: list[str]) -> "subprocess.Popen[str]":
    """The runner as a process of its own."""
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[str] | None" = None) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert process is None or process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    assert main([*arguments(folder, data), "--jobs", "2"]) == 0
    return folder / "out"


def test_killed_and_stopped_at_any_moment(
    reference: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command, output = arguments(tmp_path, data), tmp_path / "out"
    runner = started(command)
    wait_for(lambda: steps_of(output) >= 13, runner)
    children = psutil.Process(runner.pid).children(recursive=True)
    runner.kill()
    runner.communicate()
    assert children, "its child lives on"
    assert main([*command, "--status"]) == 0
    assert re.search(r"\| mae +\| 1 running", capfd.readouterr().out)
    for child in children:
        child.kill()
    psutil.wait_procs(children, timeout=30)
    assert main([*command, "--status"]) == 0
    assert re.search(r"\| mae +\| 1 stopped", capfd.readouterr().out)
    before = steps_of(output)
    assert before < STEPS

    runner = started(command)
    wait_for(lambda: steps_of(output) >= before + 5, runner)
    runner.send_signal(signal.SIGINT)
    _, said = runner.communicate(timeout=60)
    assert runner.returncode == 3, said
    assert "resume: mae pre-training seed 0" in said
    assert "3 runs are left; the same command goes on" in said
    (pretraining,) = output.glob("pretrain-*")
    saved = sorted((pretraining / "checkpoints").glob("step_*.pt"))[-1]
    assert saved.stem == f"step_{steps_of(output):08d}", "it saved the step that it was in"

    assert main([*command, "--jobs", "2"]) == 0
    assert results(output) == results(reference)
    done = capfd.readouterr()
    assert "all 3 runs are done" in done.out
    assert main(command) == 0
    assert "start" not in capfd.readouterr().err


def test_a_second_signal_kills_the_runs_at_once(data: Path, tmp_path: Path) -> None:
    runner = started(arguments(tmp_path, data, backbones=[], tasks=[]))
    wait_for(lambda: steps_of(tmp_path / "out") >= 1, runner)
    (child,) = psutil.Process(runner.pid).children()
    child.suspend()  # it cannot save: it is in a long step, say
    for pause in (2 * REPEAT, 0):
        runner.send_signal(signal.SIGINT)
        time.sleep(pause)
    _, said = runner.communicate(timeout=60)
    assert runner.returncode == 3, said
    assert said.splitlines()[-1].startswith("1 runs were killed by a second signal; the same command goes on")
    try:
        child.wait(timeout=10)
    finally:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def test_a_run_that_fails_leaves_the_others(
    reference: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"no weights")
    mine = {"name": "vit_nano_p8", "label": "mine", "checkpoint": str(weights)}
    command = arguments(tmp_path, data, pretrain=[], backbones=[mine, *SUITE["backbones"]])
    assert main([*command, "--jobs", "2"]) == 1
    told = capfd.readouterr()
    matrix = told.out.splitlines()
    assert re.search(r"\| mine +\| 1 failed", told.out)
    assert re.search(r"\| random_vit_nano +\| 1 done", told.out)
    (failed,) = (line for line in matrix if line.startswith("failed: "))
    assert re.match(rf"failed: mine folder knn seed 0: error: .*{weights}.* \(.*\.log\)$", failed)

    options: dict[str, Any] = {"data": {"folder": data}, "output": tmp_path / "out"}
    with pytest.raises(RunsFailed, match=rf"^mine folder knn seed 0: error: .*{weights}.* \(.*\.log\)$"):
        run_suite(command[0], **options)
    assert main(command) == 1, "not made again without --retry"
    told = capfd.readouterr()
    assert "start" not in told.err
    assert "--retry makes it again" in told.err
    (pretraining,) = reference.glob("pretrain-*")
    weights.write_bytes(sorted((pretraining / "checkpoints").glob("step_*.pt"))[-1].read_bytes())
    assert main([*command, "--retry"]) == 0
    told = capfd.readouterr()
    assert "2/2 done: mine folder knn seed 0" in told.err
    assert "random" not in "".join(line for line in told.err.splitlines() if " start: " in line)
    assert _of(tmp_path / "out", "MAE (this project)") == _of(reference, "MAE (this project)")
    records = run_suite(command[0], **options)
    assert [record["backbone"]["name"] for record in records] == ["vit_nano_p8", "random_vit_nano"]
    assert sorted(records, key=lambda record: record["run_id"]) == read_records(tmp_path / "out")[0]


def _of(output: Path, init: str) -> dict[str, float]:
    return next(
        r["metrics"] for r in read_records(output)[0] if r["task"] == "folder" and r["backbone"]["init"] == init
    )


def test_two_suites_in_one_folder_make_each_run_once(data: Path, tmp_path: Path) -> None:
    more = [*SUITE["tasks"], {"task": "folder", "protocol": "logreg"}]
    one = started([*arguments(tmp_path, data, "one", pretrain=[], seeds=[0, 1]), "--jobs", "1"])
    two = started([*arguments(tmp_path, data, "two", pretrain=[], tasks=more), "--jobs", "1"])
    said = [process.communicate(timeout=120)[1] for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], said
    starts = re.findall(r"\d start: (.*), ", "".join(said))
    assert sorted(starts) == [
        "random_vit_nano folder knn seed 0",
        "random_vit_nano folder knn seed 1",
        "random_vit_nano folder logreg seed 0",
    ]
    assert len(read_records(tmp_path / "out")[0]) == 3


def test_measured_steps_are_not_lost(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = arguments(tmp_path, data, backbones=[], tasks=[], seeds=[0, 1])
    assert main([*command, "--measure"]) == 0
    told = capfd.readouterr()
    assert told.err.count("measuring") == 1, "one run for each kind"
    assert re.search(r"\| mae \| 1 stopped, 1 missing \(\d+s, \d+\.\d GiB\) +\|", told.out)
    assert "2 of the other 2 take about" in told.out
    assert 7 <= steps_of(tmp_path / "out") < STEPS
