"""Partial fine-tuning of ADE20K: which parameters learn, and that frozen blocks stay as they were."""

import re
from pathlib import Path

import pytest
import torch
from support.command_line import ADE20K, TINY_ADE20K, weights

from mae_transfer.backbones.load import load_backbone
from mae_transfer.cli.transfer import main
from mae_transfer.run_folder.record import read_record


def test_runs_train_the_last_blocks_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    before = load_backbone("random_vit_nano").vit.state_dict()
    norm = {"norm.weight": torch.ones(64), "norm.bias": torch.zeros(64)}  # UperNet has none, the file does
    torch.save({"model": before | norm}, tmp_path / "encoder.pt")
    options = ["mae_vit_nano" if word == "random_vit_nano" else word for word in ADE20K]
    options += ["--checkpoint", str(tmp_path / "encoder.pt"), "--subset", "4", "eval.pictures=0", *TINY_ADE20K]
    options += ["schedule.steps=2", "schedule.warmup_steps=0", "optim.lr=0.01", "--output", str(tmp_path / "runs")]
    assert main([*options, "--protocol", "partial", "--blocks", "0,2"]) == 0
    names = {path.name: path for path in (tmp_path / "runs").iterdir() if path.is_dir()}
    assert set(names) == {"partial-0blocks", "partial-2blocks"}
    assert (tmp_path / "runs" / "partial_curve.csv").exists()
    for name, first in (("partial-0blocks", 8), ("partial-2blocks", 6)):
        record, after = read_record(names[name] / "record.json"), weights(names[name])
        assert record["row"]["name"] == "partial"
        assert not record["row"]["frozen"]
        for key, value in before.items():
            block = re.match(r"blocks\.(\d+)\.", key)
            if block:
                same = torch.equal(after[f"encoder.vit.{key}"], value)
                assert same == (int(block[1]) < first), key


def test_blocks_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ADE20K, "--output", str(tmp_path / "run"), "--protocol", "partial"]) == 2
    assert "--protocol partial needs --blocks" in capsys.readouterr().err
