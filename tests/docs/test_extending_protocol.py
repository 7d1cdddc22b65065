"""docs/extending/protocol.md, word by word: its files are written, its command is run, its row is in the table."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.paths import ROOT

from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.errors import UserError
from mae_transfer.results.tables.build import make_tables
from mae_transfer.run_folder.record import read_records
from mae_transfer.runs.tasks import register_protocols, task_card
from mae_transfer.tasks.card import Protocol

PAGE = ROOT / "docs/extending/protocol.md"
SMALL = ("--preset", "smoke", "--device", "cpu", "data.image_size=32")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page, each named in the text before its block."""
    folder = tmp_path_factory.mktemp("page")
    for name, content in re.findall(r"`(\w+\.(?:py|yaml))`[^`]*```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (folder / name).write_text(content)
    return folder


def command(
    folder: Path, *arguments: str, cwd: Path | None = None, start: tuple[str, ...] = ("run_class_means.py",)
) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(folder), str(ROOT)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    script = [sys.executable, *start, "--task", "folder", "--backbone", "random_vit_nano", *SMALL]
    return subprocess.run(
        [*script, *arguments], cwd=cwd or folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_protocol_of_the_page_runs_and_has_its_row(files: Path, tmp_path: Path) -> None:
    assert {path.name for path in files.iterdir()} == {"class_means.py", "class_means.yaml", "run_class_means.py"}
    data = make_classification(tmp_path / "set", "folder", train_images=6, val_images=3)
    protocols = ("--data", str(data), "--output", str(tmp_path / "runs"), "--protocol", "class_means,knn")
    done = command(files, *protocols)
    assert done.returncode == 0, done.stderr
    records, left_out = read_records(tmp_path / "runs")
    assert not left_out
    (record,) = (record for record in records if record["row"]["name"] == "class_means")
    assert record["settings"]["recipe"] == "class_means"
    top1 = record["metrics"]["top1"]
    assert np.isfinite(top1)
    assert f"| class_means, random (frozen) | {top1:.1f} (n=1) |" in make_tables(records)
    (tmp_path / "installed").mkdir()
    info = files / "class_means-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: class-means\nVersion: 1.0\n")
    entry = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    (info / "entry_points.txt").write_text(entry.replace('project.entry-points."', "").replace('"', ""))
    again = command(files, *protocols, "--resume", cwd=tmp_path / "installed", start=("-m", "mae_transfer", "transfer"))
    shutil.rmtree(info)
    assert again.returncode == 0, again.stderr
    assert "finished before" in again.stderr


def test_a_setting_that_it_does_not_read_is_one_line(files: Path, tmp_path: Path) -> None:
    done = command(files, "--output", str(tmp_path / "run"), "--protocol", "class_means", "probe.k=[5]")
    assert done.returncode == 2
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "probe.k: protocol=class_means never reads it (knn does)" in error
    assert not (tmp_path / "run").exists()


def test_a_clash_and_an_unknown_task_are_one_line() -> None:
    knn = Protocol("knn", recipe="knn", code="a:B")
    with pytest.raises(UserError, match="the task folder has a protocol 'knn' already; give it another name"):
        register_protocols({"folder": knn})
    with pytest.raises(UserError, match="unknown task 'foldr', did you mean"):
        register_protocols({"foldr": knn})
    register_protocols({"folder": task_card("folder").protocols[0]})
    assert task_card("folder").protocols == task_card("imagenet").protocols
