"""docs/extending/launcher.md, word by word: its files are written, and a suite is made through its launcher."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT
from support.suite_command import arguments, results

from mae_transfer.cli.suite import main
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.errors import UserError
from mae_transfer.suites.launcher import LAUNCHERS, register_launcher

PAGE = ROOT / "docs/extending/launcher.md"


@pytest.mark.process
def test_the_launcher_of_the_page_makes_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    files = re.findall(r"`(\w+\.py)`[^`]*```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [name for name, _ in files] == ["background.py", "run_in_background.py"]
    for name, content in files:
        (tmp_path / name).write_text(content)
    data = make_classification(tmp_path / "set", "folder", train_images=4, val_images=4)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"no weights")
    bad = {"name": "vit_nano_p8", "label": "bad", "checkpoint": str(weights)}
    suite = {"pretrain": [], "backbones": [{"name": "random_vit_nano"}, bad]}
    command = arguments(tmp_path, data, **suite)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "run_in_background.py", *command, "--launcher", "background"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"\| random_vit_nano +\| 1 done", done.stdout)
    assert re.search(rf"^failed: bad folder knn seed 0: error: .*{weights}", done.stdout, re.MULTILINE)
    assert main(arguments(tmp_path, data, output="local", pretrain=[])) == 0
    assert results(tmp_path / "out") == results(tmp_path / "local")


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(UserError, match="the launcher 'local' is there already"):
        register_launcher(LAUNCHERS[0])
