"""The demo: its runs are what the suite's file says and its data allow; slow: all of it, and what it shows."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mae_transfer.cli.demo import SETS
from mae_transfer.config.recipe import config_folder
from mae_transfer.data.synthetic.shapes import make_shapes
from mae_transfer.suites.plan import check_runs, plan_suite


def test_its_suite_is_read_with_the_data_that_it_draws(tmp_path: Path) -> None:
    root = make_shapes(tmp_path / "data", train_images=16, val_images=4, per_class=(10, 2), unlabelled=64)
    data = {name: str(root / name) for name in SETS}
    _, runs = plan_suite(config_folder() / "suites" / "demo.yaml", output=tmp_path / "runs", data=data)
    assert {(run.row, run.column) for run in runs} == {
        ("mae", "pre-training"),
        *((row, f"{name}") for row in ("mae", "random") for name in ("classification linear", "detection")),
        *((row, "segmentation linear") for row in ("mae", "random")),
    }
    assert len(runs) == 13
    steps = check_runs(runs, 1)
    assert {run.column: steps[run.place.path] for run in runs} == {
        "pre-training": 120,
        "classification linear": 20,
        "segmentation linear": 150,
        "detection": 80,
    }


@pytest.mark.slow
def test_all_of_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mae_transfer", "demo"]
    started = time.monotonic()
    first = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    rows = dict(re.findall(r"^\| (\S[^|]*) \| ([\d.]+)", first.stdout, re.MULTILINE))
    assert [row.split(": ")[-1] for row in rows] == ["mIoU", "AP box", "AP mask", "top-1"]
    assert min(float(value) for value in rows.values()) > 1, "well above zero"
    assert first.stdout.count(" [") >= 4, "each difference has an interval"
    page = (tmp_path / "results/demo/report.html").read_text()
    assert page.count("data:image/") > 20
    took, started = time.monotonic() - started, time.monotonic()
    again = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert re.findall(r"^\|.*", again.stdout, re.MULTILINE) == re.findall(r"^\|.*", first.stdout, re.MULTILINE)
    assert time.monotonic() - started < took / 2, "nothing is made twice"


@pytest.mark.slow
def test_the_line_it_ends_with_at_its_real_size(tmp_path: Path) -> None:
    """mae_vit_l to COCO: its smoke preset takes the same way, with random weights and generated images."""
    start = [sys.executable, "-m", "mae_transfer"]
    run = [*start, "transfer", "--task", "coco", "--backbone", "mae_vit_l", "--preset", "smoke", "--device", "cpu"]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tables = subprocess.run([*start, "tables"], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert re.search(r"^\| random \| [\d.]+ \(n=1\) \|", tables.split("COCO, smoke")[1], re.MULTILINE)
