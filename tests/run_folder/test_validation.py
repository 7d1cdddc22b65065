"""Every file of a finished run's folder that is damaged is one line of `validate`, and of what reads it."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.paths import GOLDENS

from mae_transfer.cli.validate import main
from mae_transfer.run_folder.checkpoints import save_checkpoint
from mae_transfer.run_folder.validation import validate

Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "garbled": lambda content: bytes((i * 37 + 11) % 256 for i in range(len(content))),
    "end lost": lambda content: content[:-7],
}
FILES = ("config.yaml", "metrics.jsonl", "record.json", "per_image.npz", "checkpoints/step_00000007.pt")
UNSEEN = ("config.yaml", "end lost")
"""The value of a key that is no setting."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of an earlier version, and a checkpoint as this one writes it."""
    folder = Path(shutil.copytree(GOLDENS / "earlier_run" / "finished", tmp_path / "run"))
    state: dict[str, object] = {"step": 6, "model": {"weight": torch.arange(4000.0)}, "optimizer": {}}
    (folder / "checkpoints").mkdir()
    save_checkpoint(folder / "checkpoints", 7, state, keep=9)
    assert validate(tmp_path) == (1, [])
    return folder


@pytest.mark.parametrize(("name", "damage"), [(name, d) for name in FILES for d in DAMAGES if (name, d) != UNSEEN])
def test_a_damaged_file_is_one_line(run: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert main([str(run)]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert str(path) in line


def test_a_flipped_bit_of_a_checkpoint_fails_its_checksum(run: Path) -> None:
    path = run / "checkpoints/step_00000007.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (line,) = validate(run)[1]
    assert f"checkpoint {path}: archive/data/0 fails its checksum" in line


def test_a_history_that_ends_early_and_another_runs_configuration(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:4]))
    config = run / "config.yaml"
    config.write_text(re.sub(r"\n  lr: \S+", r"\n  lr: 0.5", config.read_text()))
    one, other = validate(run)[1]
    assert re.match(rf"{config} is not the configuration of the record beside it: 1 of \d+ settings differ", one)
    assert "such as optim.lr" in one
    assert other == f"{run}/metrics.jsonl ends after step 4 of 6: restore it or delete it"
