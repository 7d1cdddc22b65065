"""Checkpoints written beside the training hold the state of their step, and a failed one is told."""

import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mae_transfer.engine.checkpoint_writer import CheckpointWriter
from mae_transfer.errors import UserError
from mae_transfer.run_folder.checkpoints import list_checkpoints, load_checkpoint


def state(step: int, weights: torch.Tensor) -> dict[str, object]:
    moments = {"state": {0: {"exp_avg": weights, "step": torch.tensor(float(step))}}, "betas": (0.9, 0.95)}
    return {"step": step, "model": OrderedDict(weight=weights), "optimizer": moments, "ema": None}


def test_what_changes_after_a_save_is_not_in_it(tmp_path: Path) -> None:
    """Large enough that the file cannot be written before the weights change."""
    weights = torch.zeros(8_000_000)
    with CheckpointWriter(tmp_path, 2, beside=True) as writer:
        for step in (1, 2, 3):
            weights.fill_(step)
            writer.save(step, state(step, weights))
            weights.fill_(-1.0)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000002.pt", "step_00000003.pt"]
    for path, step in zip(list_checkpoints(tmp_path), (2, 3), strict=True):
        saved = load_checkpoint(path)
        assert saved["step"] == step
        assert saved["model"]["weight"].unique().tolist() == [step]
        assert saved["optimizer"]["state"][0]["exp_avg"].unique().tolist() == [step]
        assert saved["optimizer"]["betas"] == (0.9, 0.95)


def test_the_same_file_either_way(tmp_path: Path) -> None:
    model = torch.nn.BatchNorm1d(3)
    written = []
    for beside in (False, True):
        with CheckpointWriter(tmp_path / f"{beside}", 2, beside=beside) as writer:
            (tmp_path / f"{beside}").mkdir()
            path = writer.save(7, state(7, torch.ones(2)) | {"model": model.state_dict()})
            writer.wait()
            assert path.is_file()
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_a_failed_write_is_told_at_the_next_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with CheckpointWriter(tmp_path / "gone", 2, beside=True) as writer:
        writer.save(1, state(1, torch.ones(2)))
        with suppress(UserError):
            writer.wait()
        writer.wait()
        writer.save(2, state(2, torch.ones(2)))
        while not writer._written.done():
            time.sleep(0.01)
        (tmp_path / "gone").mkdir()
        with pytest.raises(UserError, match=r"cannot write checkpoint .*step_00000002.pt: No such file or directory"):
            writer.save(3, state(3, torch.ones(2)))
        writer.wait()
        assert [path.name for path in list_checkpoints(tmp_path / "gone")] == ["step_00000003.pt"]
        (tmp_path / "gone" / "step_00000003.pt").unlink()
        (tmp_path / "gone").rmdir()
        writer.save(4, state(4, torch.ones(2)))
    assert "step_00000004.pt: No such file or directory" in caplog.text
