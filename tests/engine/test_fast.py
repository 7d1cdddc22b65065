"""`train.fast`: where it changes what, and that a run may go on with or without it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.engine_toy import make_config, run_toy
from torch.backends import cudnn

import mae_transfer.engine.loop as loop
from mae_transfer.engine.fast import takes_fused_optimizer, training_arithmetic, whole_products
from mae_transfer.run_folder.checkpoints import list_checkpoints, load_checkpoint

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
FAST, EXACT = make_config().train, make_config(train__fast=False).train


def flags() -> tuple[str, bool, bool, bool]:
    return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic


def test_arithmetic_of_training_and_of_evaluation() -> None:
    before = flags()
    with training_arithmetic(GPU, FAST, fixed_sizes=True):
        assert flags() == ("high", True, True, False)
        with whole_products():
            assert flags() == ("highest", True, False, False)
        assert flags() == ("high", True, True, False)
    with training_arithmetic(GPU, FAST, fixed_sizes=False):
        assert flags() == ("high", True, False, False)
    with training_arithmetic(GPU, EXACT, fixed_sizes=True):
        assert flags() == ("highest", False, False, True)
    with training_arithmetic(CPU, FAST, fixed_sizes=True):
        assert flags() == before
    assert flags() == before


@pytest.mark.parametrize(
    ("device", "precision", "fast", "fused"),
    [(GPU, "bf16", True, True), (GPU, "fp16", True, False), (GPU, "fp32", False, False), (CPU, "fp32", True, False)],
)
def test_where_the_optimizer_is_fused(device: torch.device, precision: str, fast: bool, fused: bool) -> None:
    config = make_config(train__precision=precision, train__fast=fast)
    assert takes_fused_optimizer(device, config.train) is fused


def test_a_run_goes_on_with_the_other_kind_of_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There and back, on the CPU, which has a fused AdamW too."""
    folder = tmp_path / "run"
    whole = {name: value.clone() for name, value in run_toy(folder).model.state_dict().items()}
    for fused in (True, False):
        monkeypatch.setattr(loop, "takes_fused_optimizer", lambda *_, fused=fused: fused)
        list_checkpoints(folder / "checkpoints")[-1].unlink()
        found: dict[str, Any] = dict(run_toy(folder, resume=True).model.state_dict())
        groups = load_checkpoint(list_checkpoints(folder / "checkpoints")[-1])["optimizer"]["param_groups"]
        assert {bool(group["fused"]) for group in groups} == {fused}
        for name, value in whole.items():
            assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-6), name
