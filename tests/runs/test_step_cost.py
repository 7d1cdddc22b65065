"""What a run says of its steps at its start: the plan's own numbers, and nothing of the run is changed by it."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import mae_transfer.runs.costs as costs
import mae_transfer.runs.step_cost as step_cost
from mae_transfer.engine.distributed import make_fabric
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.run import run_task
from mae_transfer.runs.step_cost import GIB, StepCost, measure_step
from mae_transfer.runs.tasks import make_task

SMALL = ["data.image_size=96", "data.workers=0", "schedule.warmup_steps=0"]
RUNS: dict[str, tuple[str, str, str | None, list[str]]] = {
    "mae": ("pretrain", "vit_nano_p8", "mae", ["optim.ema=0.9", "model.decoder_depth=1"]),
    "ade20k": ("ade20k", "vit_nano_p8", None, ["eval.stride=64", "model.head_channels=64"]),
}


def make(name: str, *overrides: str, preset: str = "full") -> Any:
    task, backbone, protocol, more = RUNS[name]
    options: dict[str, Any] = {"data": "synthetic", "weights": None if task == "pretrain" else "random", "subset": 8}
    config = resolve_config(
        task, backbone, protocol=protocol, preset=preset, overrides=[*SMALL, *more, *overrides], **options
    )
    return config, make_task(config)


@pytest.mark.parametrize("name", RUNS)
def test_it_is_what_the_plan_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_cost, "SECONDS", 120)
    config, task = make(name, "schedule.steps=10")
    model = task.build_model(task.build_encoder())
    before, drawn = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    found = measure_step(task, model, 2, on_gpu=True)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert found is not None
    monkeypatch.setattr(costs, "make_task", lambda config: task)  # the plan of a benchmark would have its classes
    planned = costs.plan_run(config.model_copy(update={"preset": "smoke"}), gpus=2, gpu_memory=80)
    assert found.train_flops == planned.train_flops
    for micro_batch in (2, 16):
        # the plan also has what the update needs for a moment, where that is more
        held = planned.fixed_bytes + micro_batch * planned.image_bytes
        assert found.fixed_bytes + micro_batch * found.image_bytes == pytest.approx(held, rel=0.02)
    assert found.batch_norm == planned.batch_norm


def test_lines_in_closed_form() -> None:
    config = make("mae", "train.global_batch=64", "train.micro_batch=8", "train.precision=bf16")[0]
    cost = StepCost(fixed_bytes=10 * GIB, image_bytes=GIB, train_flops=0.35e15, batch_norm=True, ranks=2)
    first, second = cost.lines(config, 7200, "NVIDIA H100 80GB HBM3", 80 * GIB)
    assert first == (
        "a step holds 18 GiB at train.micro_batch=8, of the GPU's 80: 32 would fit (another recipe: batch norm)"
    )
    hours = 7200 * 64 / (989e12 / 1e15) / 3600 / 2
    assert second.startswith("350 TFLOP an image, 161 EFLOP in 7,200 steps: ")
    assert f"{hours:.3g} h at 35% of the peak of 2 NVIDIA H100" in second
    assert "too much; 4 would fit" in cost.lines(config, 7200, "T4", 16 * GIB)[0]
    assert "backbone.grad_checkpointing" in cost.lines(config, 7200, "T4", 8 * GIB)[0]
    assert cost.lines(config, 7200, "T4", 8 * GIB)[1].endswith("in 7,200 steps"), "no peak is known of it"
    assert cost.lines(config, 7200)[0] == "a step holds 18 GiB at train.micro_batch=8"


def test_a_run_says_it_and_goes_on_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "mae_transfer")
    fabric = make_fabric("cpu", "fp32")
    found = []
    for seconds in (120.0, 0.0):
        monkeypatch.setattr(step_cost, "SECONDS", seconds)
        caplog.clear()
        few = ("schedule.steps=1", "train.global_batch=4", "train.micro_batch=4", "eval.pictures=0", "optim.ema=null")
        task = make("mae", *few)[1]
        record = run_task(fabric, task, tmp_path / str(seconds), resume=False, eval_only=False, progress=False)
        found.append(record["metrics"])
        assert ("a step holds " in caplog.text) == (" an image, " in caplog.text) == (seconds > 0)
    assert found[0] == found[1]
