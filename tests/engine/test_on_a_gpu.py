"""Whole runs on a pretended GPU: devices never mix, values are the CPU's, and waits for the device are few.

In float32 losses, gradient and metrics are those of the CPU; in bf16, under CUDA's autocast, losses are near them.
"""

import math
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from support.pretended_cuda import CudaFabric, pretended_cuda
from support.whole_runs import CASES, run
from torch import Tensor

from mae_transfer.backbones.grid import Grid
from mae_transfer.engine.distributed import make_fabric


@pytest.mark.parametrize("name", list(CASES))
def test_a_run_is_that_of_the_cpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    cpu = run(case, make_fabric("cpu", "fp32"), tmp_path / "cpu", "fp32", [])
    with pretended_cuda() as cuda:
        gpu = run(case, CudaFabric("fp32"), tmp_path / "fp32", "fp32", cuda.waits)
    with pretended_cuda() as cuda:
        half = run(case, CudaFabric("bf16"), tmp_path / "bf16", "bf16", cuda.waits)
    norms = [outcome.losses.pop("grad_norm", 0.0) for outcome in (gpu, cpu)]
    assert gpu.losses == pytest.approx(cpu.losses, rel=1e-5)
    assert norms[0] == pytest.approx(norms[1], rel=case.norm)
    # 1e-5 of a percent, and of the similarity of MoCo v3's views, which is near 0 here
    assert gpu.metrics == pytest.approx(cpu.metrics, rel=1e-4, abs=1e-5, nan_ok=True)
    # of the sum: single losses of a detector hang on which proposals are drawn
    if case.step is not None:
        assert half.losses["loss"] == pytest.approx(cpu.losses["loss"], rel=0.05)
    for waits, most in ((half.step, case.step), (gpu.evaluation, case.evaluation)):
        assert len(waits) <= (most or 0), Counter(waits).most_common()


def test_half_precision_with_a_scaler(tmp_path: Path) -> None:
    with pretended_cuda() as cuda:
        half = run(CASES["finetune"], CudaFabric("fp16"), tmp_path / "fp16", "fp16", cuda.waits)
    assert all(map(math.isfinite, half.losses.values()))
    assert len(half.step) <= 2, "one more for the scaler"


def test_a_table_summed_in_half_precision_is_found(tmp_path: Path) -> None:
    """The bias gathered by an index, whose gradient is then added up by it in bf16."""

    def gathered(table: Tensor, grid: Grid, prefix: int, dtype: torch.dtype) -> Tensor:
        at = torch.arange(grid[0] * grid[1], device=table.device)
        rows = (at[:, None] + at) % len(table)
        return table.to(dtype).T.contiguous().index_select(1, rows.flatten()).view(-1, len(at), len(at))

    with (
        pretended_cuda() as cuda,
        patch("mae_transfer.backbones.positions.shared.bias_mask", gathered),
        pytest.raises(RuntimeError, match=r"index_add adds in torch.bfloat16"),
    ):
        run(CASES["coco"], CudaFabric("bf16"), tmp_path / "run", "bf16", cuda.waits)


def test_the_pretended_gpu_has_a_gpus_rules() -> None:
    with pretended_cuda() as cuda:
        there, here = torch.arange(4.0).to("cuda", non_blocking=True), torch.ones(4)
        assert not cuda.waits
        assert there.device == torch.device("cuda", 0)
        assert torch.zeros(3, device=there.device).device == there.device
        assert (there * 2.0 + torch.tensor(1.0)).tolist() == [1, 3, 5, 7]
        with pytest.raises(RuntimeError, match="add.*on cuda:0 and on the cpu"):
            there + here
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        before = len(cuda.waits)
        for waits in (
            *(lambda: there.cpu(), lambda: there.sum().item(), lambda: bool(there.any()), lambda: there.nonzero()),
            *(lambda: there[there > 1], lambda: here.to("cuda"), lambda: torch.tensor([1.0], device="cuda")),
        ):
            waits()
            before += 1
            assert len(cuda.waits) == before
        with torch.autocast("cuda", torch.bfloat16):
            assert (there[None] @ there[:, None]).dtype == torch.bfloat16
            assert there.bfloat16().softmax(0).dtype == torch.float32
