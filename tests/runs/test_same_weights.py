"""A weights file that was exchanged under a run: mean, std and eps of the encoder, or the weights of a probe."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import GOLDENS

from mae_transfer.backbones.checkpoints.own import facts_of
from mae_transfer.backbones.load import load_backbone
from mae_transfer.errors import UserError
from mae_transfer.runs.same_weights import check_same_weights


@pytest.mark.parametrize("change", [{"mean": (0.1, 0.2, 0.3)}, {"std": (0.5, 0.5, 0.5)}, {"eps": 0.1}], ids=str)
def test_a_training_keeps_what_its_first_weights_said(tmp_path: Path, change: dict[str, Any]) -> None:
    encoder = load_backbone("random_vit_nano")
    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    content = {"step": 1, "model": {}, "optimizer": {}, "ema": None, "origin": {"encoder": facts_of(encoder)}}
    torch.save(content, folder / "step_00000001.pt")
    check_same_weights(encoder, tmp_path / "run")
    encoder.spec = dataclasses.replace(encoder.spec, **change)
    content["origin"] = {"encoder": facts_of(encoder)}
    torch.save(content, folder / "step_00000002.pt")
    check_same_weights(encoder, tmp_path / "run")
    ((part, value),) = change.items()
    encoder.spec = dataclasses.replace(encoder.spec, **{part: 0.2 if part == "eps" else (0.4, 0.4, 0.4)})
    with pytest.raises(UserError, match=f"run is a run of an encoder with {part} .*{value if part == 'eps' else ''}"):
        check_same_weights(encoder, tmp_path / "run")


def test_a_probe_without_checkpoints_is_of_its_very_weights(tmp_path: Path) -> None:
    record = json.loads((GOLDENS / "earlier_run/finished/record.json").read_text())
    record["backbone"]["fingerprint"] = "a" * 64
    (tmp_path / "record.json").write_text(json.dumps(record))
    encoder = load_backbone("random_vit_nano")
    check_same_weights(encoder, tmp_path)  # random ones have no fingerprint
    encoder.load_report.fingerprint = "a" * 64
    check_same_weights(encoder, tmp_path)
    encoder.load_report.fingerprint = "b" * 64
    with pytest.raises(UserError, match="other weights: they had the sha256 a{16}, .* have b{16}; give it the file"):
        check_same_weights(encoder, tmp_path)
