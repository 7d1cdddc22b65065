"""docs/extending/protocol.md, word by word: its files are written, its command is run, its row is in the table."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.paths import ROOT

from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.results.tables.build import make_tables
from mae_transfer.run_folder.record import find_records

PAGE = ROOT / "docs/extending/protocol.md"
SMALL = ("--preset", "smoke", "--device", "cpu", "data.image_size=32")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page, each named in the text before its block."""
    folder = tmp_path_factory.mktemp("page")
    for name, content in re.findall(r"`(\w+\.(?:py|yaml))`[^`]*```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (folder / name).write_text(content)
    return folder


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(folder), str(ROOT)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    script = [sys.executable, "run_class_means.py", "--task", "folder", "--backbone", "random_vit_nano", *SMALL]
    return subprocess.run(
        [*script, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_protocol_of_the_page_runs_and_has_its_row(files: Path, tmp_path: Path) -> None:
    assert {path.name for path in files.iterdir()} == {"class_means.py", "class_means.yaml", "run_class_means.py"}
    data = make_classification(tmp_path / "set", "folder", train_images=6, val_images=3)
    protocols = ("--data", str(data), "--output", str(tmp_path / "runs"), "--protocol", "class_means,knn")
    done = command(files, *protocols)
    assert done.returncode == 0, done.stderr
    records, left_out = find_records(tmp_path / "runs")
    assert not left_out
    (record,) = (record for record in records if record["row"]["name"] == "class_means")
    assert record["settings"]["recipe"] == "class_means"
    top1 = record["metrics"]["top1"]
    assert np.isfinite(top1)
    assert f"| class_means, random (frozen) | {top1:.1f} (n=1) |" in make_tables(records)
    again = command(files, *protocols, "--resume")
    assert again.returncode == 0, again.stderr
    assert "finished before" in again.stderr


def test_a_setting_that_it_does_not_read_is_one_line(files: Path, tmp_path: Path) -> None:
    done = command(files, "--output", str(tmp_path / "run"), "--protocol", "class_means", "probe.k=[5]")
    assert done.returncode == 2
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "probe.k: protocol=class_means never reads it (knn does)" in error
    assert not (tmp_path / "run").exists()
