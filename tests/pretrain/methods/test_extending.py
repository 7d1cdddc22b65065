"""docs/extending/pretraining_method.md as it stands: its method trains, and its encoder transfers."""

import json
import os
import re
import subprocess
import sys

import torch
from support.paths import ROOT

from mae_transfer.run_folder.checkpoints import list_checkpoints, load_checkpoint
from mae_transfer.run_folder.folder import read_metrics


def test_the_page_runs(tmp_path) -> None:
    page = (ROOT / "docs" / "extending" / "pretraining_method.md").read_text()
    method, recipe, script = (text for _, text in re.findall(r"```(python|yaml)\n(.*?)```", page, re.DOTALL))
    for name, text in (("simmim.py", method), ("simmim.yaml", recipe), ("script.py", script)):
        (tmp_path / name).write_text(text)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"SimMIM \(example\) \d+(\.\d+)?\n", done.stdout)

    runs = tmp_path / "runs"
    record = json.loads((runs / "simmim" / "record.json").read_text())
    losses = [line["loss_simmim"] for line in read_metrics(runs / "simmim") if "loss" in line]
    assert len(losses) == record["steps"] == 3
    # L1 of pixels of unit deviation, of a head that has learned almost nothing
    assert 0.3 < record["metrics"]["val_loss"] < 2
    pretrained = load_checkpoint(list_checkpoints(runs / "simmim" / "checkpoints")[-1])["model"]
    assert torch.linalg.vector_norm(pretrained["mask_token"]) > 0  # it began at zero, so it has learned
    transferred = json.loads((runs / "simmim_folder" / "record.json").read_text())
    assert transferred["backbone"]["init"] == "SimMIM (example)"
    assert transferred["backbone"]["fingerprint"] is not None
