"""The wheel, unpacked away from the checkout: a user's day from it, and what belongs in it."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from support.paths import ROOT


def shorten(suite: Path) -> None:
    """Leave of the demo's runs one pre-training of two steps and one probe of each row."""
    content = yaml.safe_load(suite.read_text())
    content["pretrain"][0]["seeds"] = [0]
    content["pretrain"][0]["overrides"] += ["schedule.steps=2", "schedule.warmup_steps=1"]
    content["data"] = {task["data"]: None for task in content["tasks"]}
    content["tasks"] = [task for task in content["tasks"] if task["task"] == "folder"]
    suite.write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(iter(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))))


def test_it_holds_what_a_user_needs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packaged = {name.removeprefix("mae_transfer/") for name in names}
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    wanted |= {
        str(path.relative_to(ROOT / "mae_transfer"))
        for path in (ROOT / "mae_transfer").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert wanted <= packaged
    inside = [name.split("/", 1)[1] for name in names if ".dist-info/" in name]
    assert {"licenses/LICENSE", "licenses/NOTICE", "entry_points.txt"} <= set(inside)


def test_a_day_with_it(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True)
    folder = tmp_path / "empty"
    folder.mkdir()
    shorten(site / "mae_transfer/configs/suites/demo.yaml")
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def command(*arguments: str) -> str:
        line = [str(site / "bin" / "mae-transfer"), *arguments]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    where = [sys.executable, "-c", "import mae_transfer; print(mae_transfer.__file__)"]
    assert str(site) in subprocess.check_output(where, cwd=folder, env=environment, text=True)
    demo = command("demo")
    assert re.search(r"^\| Classification: classification .*, linear: top-1 \| [\d.]+", demo, re.MULTILINE)
    assert "results/demo/report.html" in demo
    page = (folder / "results/demo/report.html").read_text()
    assert page.count("data:image/") > 4, "pictures"
    again = ["suite", str(site / "mae_transfer/configs/suites/demo.yaml"), "--output", "results/demo/runs", "--status"]
    sets = [f"{name}=results/demo/data/{name}" for name in ("unlabelled", "classification")]
    assert "all 3 runs are done" in command(*again, "--set", "device=cpu", "--data", *sets)
    assert "top-1" in command("tables", "--runs", "results/demo/runs")
    mine = ["--task", "folder", "--protocol", "knn", "--backbone", "random_vit_nano", "--preset", "smoke"]
    assert "top1" in command("transfer", *mine, "--device", "cpu", "--data", "results/demo/data/classification")
    assert "results/report/index.html" in command("report")
    assert "classification" in (folder / "results/report/index.html").read_text()
    assert "TFLOP an image" in command("plan", "--task", "imagenet", "--backbone", "vit_nano", "data.image_size=64")
    assert command("--version").startswith("mae-transfer ")
    weights = sorted((folder / "results").rglob("step_*.pt"))[-1]
    assert "layout: mae_transfer" in command("inspect", str(weights))
