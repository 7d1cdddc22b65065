"""Whole runs on a pretended GPU: devices never mix, values are the CPU's, and waits for the device are few.

In float32 losses, gradient and metrics are those of the CPU; in bf16, under CUDA's autocast, losses are near them.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning_fabric import Fabric
from support.coco_command import TINY as TINY_COCO
from support.pretended_cuda import CudaFabric, pretended_cuda
from torch import Tensor

from mae_transfer.backbones.grid import Grid
from mae_transfer.engine.distributed import make_fabric
from mae_transfer.engine.step import Step
from mae_transfer.run_folder.metrics import read_metrics
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.run import run_task
from mae_transfer.runs.tasks import make_task

STEP = ("schedule.steps=1", "schedule.warmup_steps=0", "train.global_batch=4", "train.micro_batch=2")
COCO = (*TINY_COCO, "backbone.drop_path=0")
ADE20K = ("data.image_size=32", "data.short_side=32", "data.long_side=64", "eval.stride=24")
UPERNET = ("model.head_channels=16", "model.aux_channels=8")
SMALL = ("data.image_size=32",)
DECODER = (*SMALL, "model.decoder_depth=1", "model.decoder_width=32")


@dataclass(frozen=True)
class Case:
    task: str
    protocol: str | None
    overrides: tuple[str, ...]
    step: int | None
    """The most waits for the device of a step of 4 images in 2 micro-batches; None without a training loop."""
    evaluation: int
    """The most in the evaluation of 4 images (of pre-training: 8)."""


CASES = {
    "coco": Case("coco", None, COCO, 45, 24),
    "coco, frozen": Case("coco", "frozen", COCO, 45, 24),
    "coco, cascade": Case("coco", None, (*COCO, "recipe=vitdet_cascade"), 73, 28),
    "ade20k": Case("ade20k", None, (*ADE20K, *UPERNET), 1, 15),
    "ade20k, linear": Case("ade20k", "linear", ADE20K, 1, 15),
    "ade20k, finetune_linear": Case("ade20k", "finetune_linear", ADE20K, 1, 15),
    "ade20k, knn": Case("ade20k", "knn", SMALL, None, 23),
    "ade20k, logreg": Case("ade20k", "logreg", SMALL, None, 17),
    "ade20k, in context": Case("ade20k", "in_context", SMALL, None, 31),
    "finetune": Case("folder", "finetune", SMALL, 1, 4),
    "partial": Case("folder", "partial", (*SMALL, "model.blocks=1"), 1, 4),
    "linear": Case("folder", "linear", SMALL, 1, 4),
    "linear, cached": Case("folder", "linear", (*SMALL, "data.crop=center", "data.flip=0"), 1, 4),
    "linear, sweep": Case("folder", "linear", (*SMALL, "recipe=linear_sweep"), 1, 7),
    "attentive": Case("folder", "attentive", SMALL, 1, 4),
    "knn": Case("folder", "knn", SMALL, None, 7),
    "logreg": Case("folder", "logreg", SMALL, None, 4),
    "mae": Case("pretrain", "mae", DECODER, 1, 1),
    "mae, tokens": Case("pretrain", "mae", (*DECODER, "model.target=token", "tokenizer.kind=kmeans"), 3, 1),
    "mae, mask tokens": Case("pretrain", "mae", (*DECODER, "model.mask_token=encoder", "model.target=pca"), 1, 1),
    "beit": Case("pretrain", "beit", (*SMALL, "mask.min_patches=4"), 5, 2),
    "dvae": Case("pretrain", "dvae", SMALL, 1, 1),
    "supervised": Case("pretrain", "supervised", SMALL, 1, 1),
    "mocov3": Case("pretrain", "mocov3", (*SMALL, "train.micro_batch=4"), 1, 1),
}


@dataclass
class Outcome:
    metrics: dict[str, float]
    losses: dict[str, float]
    """Of the step, and its gradient norm."""
    step: list[str]
    """Its waits."""
    evaluation: list[str]


def run(case: Case, fabric: Fabric, output: Path, precision: str, waits: list[str]) -> Outcome:
    config = resolve_config(
        case.task,
        "vit_nano_p8" if case.task == "pretrain" else "random_vit_nano",
        protocol=case.protocol,
        preset="smoke",
        subset=8,
        data="synthetic",
        overrides=[*(STEP if case.step else ()), f"train.precision={precision}", "eval.pictures=1", *case.overrides],
    )
    task = make_task(config)
    found: dict[str, list[str]] = {"step": [], "evaluation": []}

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before = len(waits)
            result = function(*args, **kwargs)
            found[name] = waits[before:]
            return result

        return call

    with (
        patch.object(Step, "__call__", counted("step", Step.__call__)),
        patch.object(task, "evaluate", counted("evaluation", task.evaluate)),
    ):
        record = run_task(fabric, task, output, resume=False, eval_only=False, progress=False)
    steps = [line for line in read_metrics(output) if "loss" in line]
    losses = {name: value for name, value in steps[0].items() if name.startswith(("loss", "grad"))} if steps else {}
    return Outcome(record["metrics"], losses, **found)


@pytest.mark.parametrize("name", list(CASES))
def test_a_run_is_that_of_the_cpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    cpu = run(case, make_fabric("cpu", "fp32"), tmp_path / "cpu", "fp32", [])
    with pretended_cuda() as cuda:
        gpu = run(case, CudaFabric("fp32"), tmp_path / "fp32", "fp32", cuda.waits)
    with pretended_cuda() as cuda:
        half = run(case, CudaFabric("bf16"), tmp_path / "bf16", "bf16", cuda.waits)
    assert gpu.losses == pytest.approx(cpu.losses, rel=1e-5)
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
