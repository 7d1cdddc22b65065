"""examples/depth_task, installed by pip beside the project: runs, resumes, has its row, its direction and its plots."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from mae_transfer.run_folder.record import read_record

EXAMPLE = ROOT / "examples" / "depth_task"
RUN = ["transfer", "--task", "depth", "--preset", "smoke", "--device", "cpu"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package, for PYTHONPATH."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, str(target), str(EXAMPLE)], check=True, capture_output=True)
    assert (target / "depth_task" / "linear.yaml").is_file()
    return target


def command(installed: Path, folder: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
    """A process of its own: its imports are most of its time, so that several commands share one."""
    paths = os.pathsep.join([str(installed), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    code = "import json, sys\nfrom mae_transfer.cli.main import main\n"
    code += "for arguments in json.loads(sys.argv[1]):\n    if code := main(arguments):\n        sys.exit(code)"
    line = [sys.executable, "-c", code, json.dumps(commands)]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_task_runs_resumes_and_stands_in_tables_plots_and_report(installed: Path, tmp_path: Path) -> None:
    help_text = command(installed, tmp_path, ["transfer", "--help"]).stdout
    assert "  depth      per-pixel depth, a linear head on the frozen encoder (package depth_task)" in help_text
    folders = {name: tmp_path / "results" / "runs" / name for name in ("nano", "ti")}
    runs = [[*RUN, "--backbone", f"random_vit_{name}", "--output", str(folder)] for name, folder in folders.items()]
    done = command(installed, tmp_path, *runs)
    assert done.returncode == 0, done.stderr
    record = read_record(folders["nano"] / "record.json")
    assert record["reports"][0]["better"] == "lower"
    assert 0 < record["metrics"]["rmse"] < 9
    assert 0 <= record["metrics"]["delta1"] <= 100
    assert len(list((folders["nano"] / "pictures").glob("*.jpg"))) == 8

    (folders["nano"] / "record.json").unlink()
    for path in sorted((folders["nano"] / "checkpoints").iterdir())[1:]:
        path.unlink()
    after = command(installed, tmp_path, [*runs[0], "--resume"], ["tables"], ["plots"], ["report"])
    assert after.returncode == 0, after.stderr
    again = read_record(folders["nano"] / "record.json")
    assert (again["run_id"], again["metrics"]) == (record["run_id"], record["metrics"])

    assert "left out" not in after.stderr
    (head,) = (line for line in after.stdout.splitlines() if "RMSE nano" in line)
    assert "lower is better" in head
    assert f"{again['metrics']['rmse']:.1f} (n=1)" in after.stdout
    assert list((tmp_path / "results" / "plots").glob("*depth*.png"))
    assert "RMSE" in (tmp_path / "results" / "report" / "index.html").read_text()


def test_a_search_takes_the_lowest(installed: Path, tmp_path: Path) -> None:
    recipe = (EXAMPLE / "depth_task" / "linear.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(recipe + "\nsearch:\n  smoke:\n    optim.lr: [0.0001, 0.1]\n")
    options = ["--backbone", "random_vit_nano", "--output", "search", "--search", "recipe=mine.yaml"]
    done = command(installed, tmp_path, [*RUN, *options])
    assert done.returncode == 0, done.stderr
    found = {
        path.parent.name: json.loads(path.read_text())["metrics"]["rmse"] for path in tmp_path.rglob("record.json")
    }
    best = min(found, key=lambda name: found[name])
    assert f"best: {best} (RMSE" in done.stdout


def test_two_packages_with_one_name_are_an_error_that_names_both(installed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[mae_transfer.tasks]\ndepths = depth_task.card:CARD\n")
    both = Path(os.pathsep.join([str(installed), str(tmp_path)]))
    done = command(both, tmp_path, [*RUN, "--backbone", "random_vit_ti"])
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "two tasks have the name 'depth'" in line
    assert "package depth_task" in line
    assert "package other" in line
