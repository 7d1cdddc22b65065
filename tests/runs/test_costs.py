"""Planned memory and operations against those of real steps of the same models."""

import json
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mae_transfer.runs.costs as costs
from mae_transfer.backbones.flops import count_operations
from mae_transfer.backbones.positions.bias_attention import biased_attention
from mae_transfer.cli.main import main
from mae_transfer.engine.dry_run import DryRun, as_on_cuda
from mae_transfer.engine.optim import build_optimizer
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.tasks import make_task, task_card

SMALL = ["train.precision=fp32", "data.workers=0", "schedule.steps=100", "schedule.warmup_steps=0"]
RUNS = {
    "coco": (
        *("coco", "vit_nano_p8", None),
        [
            "data.image_size=192",
            "model.fpn_channels=32",
            "model.head_channels=32",
            "model.box_fc=64",
            "model.mask_convs=1",
        ],
    ),
    "ade20k": ("ade20k", "vit_nano_p8", None, ["data.image_size=96", "eval.stride=64", "model.head_channels=64"]),
    "finetune": ("imagenet", "vit_ti", None, ["data.image_size=96"]),
    "linear": ("imagenet", "vit_ti", "linear", ["data.image_size=96"]),
    "mae": ("pretrain", "vit_ti", "mae", ["data.image_size=96"]),
}


WEIGHTS = {"pretrain": None}
"""A pre-training has new ones."""


class Alive(TorchDispatchMode):
    """Bytes of the storages that operations made and somebody still holds, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage.data_ptr() not in self.sizes:
                    self.sizes[storage.data_ptr()] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage.data_ptr(), None)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return out


def real_steps(task: Any, size: int) -> tuple[int, int]:
    """Bytes at the peak of the second of two real steps of `size` images, and the operations of it."""
    torch.manual_seed(0)
    with Alive() as memory, count_operations() as counter:
        model = task.build_model(task.build_encoder())
        optimizer = build_optimizer(model, task.config.optim)
        model.train()
        for _ in range(2):
            batch = task.train_dataset.collate([task.train_dataset[(0, i)] for i in range(size)])
            optimizer.zero_grad(set_to_none=False)  # as the later micro-batches of a step find it
            memory.peak, before = 0, counter.get_total_flops()
            losses = model(batch)
            torch.stack(list(losses.values())).sum().backward()
            done = counter.get_total_flops() - before
            optimizer.step()
            del losses, batch
    return memory.peak, done


@pytest.mark.parametrize("name", RUNS)
def test_memory_and_operations_are_those_of_real_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "as_on_cuda", nullcontext)  # the real steps are the CPU's
    task, backbone, protocol, overrides = RUNS[name]
    options: dict[str, Any] = {"data": "synthetic", "weights": WEIGHTS.get(task, "random"), "subset": 8}
    config = resolve_config(task, backbone, protocol=protocol, overrides=SMALL + overrides, **options)
    planned = costs.plan_run(config, gpus=1, gpu_memory=80)
    real, benchmark = make_task(config), task_card(task).benchmark
    if benchmark is not None:
        real.with_classes(benchmark.classes)
    found, operations = real_steps(real, 4)
    assert planned.memory(4) == pytest.approx(found, rel=0.35 if task == "coco" else 0.10)  # it has fewer objects
    assert planned.train_flops * 4 == pytest.approx(operations, rel=0.25 if task == "coco" else 1e-6)


def test_dense_results_are_not_computed_and_all_else_is() -> None:
    with DryRun() as memory:
        hollow = torch.ones(1000, 1000) @ torch.ones(1000, 1000)
        assert float((hollow + 1).sum()) != 1000.0 * 1001 * 1000, "nothing was multiplied"
        order = torch.tensor([3.0, 1.0, 2.0]).argsort()
        assert order.tolist() == [1, 2, 0]
        assert memory.peak >= 3 * 4 * 10**6 > memory.now - hollow.nbytes
        del hollow
    assert memory.now < 10**6


def test_a_position_bias_costs_what_it_does_on_a_gpu() -> None:
    """Kept are q, k, v, the output, its log-sums and one mask; gone backward, a gradient of the mask for each image."""
    heads, grid, width = 4, (24, 24), 16
    tokens = grid[0] * grid[1]
    with DryRun() as memory, as_on_cuda(), count_operations() as counter:
        table = torch.zeros((2 * grid[0] - 1) * (2 * grid[1] - 1), heads, requires_grad=True)
        peaks = []
        for batch in (4, 8):
            inputs = [torch.zeros(batch, heads, tokens, width, requires_grad=True) for _ in range(3)]
            before, memory.peak = counter.get_total_flops(), memory.now
            out = biased_attention(*inputs, table, grid, 0)
            kept = memory.now - sum(x.nbytes for x in (*inputs, table))
            forward = counter.get_total_flops() - before
            out.sum().backward()
            peaks.append(memory.peak)
            del inputs, out
    mask, one = 4 * heads * tokens**2, 4 * heads * tokens * width
    assert kept == pytest.approx(mask + 8 * (one + 4 * heads * tokens), rel=0.02)
    assert forward == 8 * 2 * 2 * heads * tokens**2 * width
    assert peaks[1] - peaks[0] == pytest.approx(4 * (mask + 7 * one), rel=0.02), "three inputs, their gradients, output"


def test_hours_and_the_largest_micro_batch_in_closed_form() -> None:
    base = dict.fromkeys(("parameters", "trained_parameters", "forward_flops", "checkpoint_bytes"), 1)
    plan = costs.Plan(
        title="", images=1000, steps=10, global_batch=64, gpus=2, train_flops=7e12, fixed_bytes=3, image_bytes=2,
        update_bytes=8, micro_batch=4, gpu_memory=80, largest=9, batch_norm=False, **base,
    )  # fmt: skip
    assert plan.hours(1000, share=0.5) == pytest.approx(10 * 64 * 7 / (1000 * 0.5 * 2) / 3600)
    assert [plan.memory(m) for m in (1, 2, 3, 4)] == [8, 8, 9, 11]


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["plan", "--task", "imagenet", "--backbone", "vit_nano", "--gpu-memory", "2", "data.image_size=64"]
    assert main([*small, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    free = 2 * 2**30 * 0.9 - found["fixed_bytes"]
    assert found["largest"] == min(1024, int(free // found["image_bytes"]))
    assert (found["images"], found["steps"], found["micro_batch"]) == (1281167, 125113, 32)
    assert found["hours"]["H100"] == pytest.approx(125113 * 1024 * found["train_flops"] / (989e12 * 0.35) / 3600)
    few = [*small[:5], "--protocol", "logreg", "--json", "data.image_size=64", "data.shots=20"]
    assert main(few) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 20 * 1000 + 50000
    assert main([*small[:5], "--subset", "5000", "--json", "data.image_size=64", "data.fraction=1"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 5000
    assert main([*small[:5], "--protocol", "knn", "data.image_size=64"]) == 0
    out = capsys.readouterr().out
    assert "1,331,167 images" in out
    assert "steps" not in out
    assert "10% kept free: eval.batch_size=64 fits\n" in out


@pytest.mark.parametrize(
    ("steps", "per_gpu", "largest", "said"),
    [
        (9, 8, 8, "8 fits, all of a GPU's part of the global batch; train.micro_batch=4 is set"),
        (9, 8, 5, "5 is the largest that fits; train.micro_batch=4 is set"),
        (9, 8, 0, "not even 1 fits; train.micro_batch=4 is set"),
        (0, 4, 4, "eval.batch_size=4 fits"),
        (0, 4, 3, "3 is the largest that fits; eval.batch_size=4 is set"),
    ],
)
def test_what_fits_is_told_as_it_was_looked_for(steps: int, per_gpu: int, largest: int, said: str) -> None:
    plan = costs.Plan(
        title="", parameters=1, trained_parameters=1, images=9, steps=steps, global_batch=per_gpu if steps else 0,
        gpus=1, forward_flops=1, train_flops=1, fixed_bytes=1, image_bytes=1, update_bytes=1, micro_batch=4,
        gpu_memory=80, largest=largest, checkpoint_bytes=1, batch_norm=False,
    )  # fmt: skip
    assert f"80 GiB a GPU, 10% kept free: {said}" in [line.strip() for line in plan.lines()]


def test_what_does_not_fit_and_what_train_shard_makes_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """The number of GPUs that the plan names is the smallest on which its own plan with `train.shard` fits."""
    options: dict[str, Any] = {"method": "mae", "gpu_memory": 0.2}
    of_one = ["data.image_size=32", "model.decoder_depth=1", "model.decoder_width=32", "train.precision=fp32"]
    alone = costs.plan("pretrain", "vit_ti", gpus=1, overrides=of_one, **options)
    cut = {
        n: costs.plan("pretrain", "vit_ti", gpus=n, overrides=[*of_one, "train.shard=true"], **options) for n in (2, 4)
    }
    states = 16 * alone.trained_parameters  # weight, gradient, two moments; positions are not trained
    assert cut[2].fixed_bytes - cut[4].fixed_bytes == pytest.approx(states / 4, rel=0.01)
    options["gpu_memory"] = (cut[4].memory(1) + cut[2].memory(1)) / 2 / 2**30 / 0.9
    assert cut[4].memory(1) < cut[2].memory(1) < alone.memory(1)
    told = costs.plan("pretrain", "vit_ti", gpus=1, overrides=of_one, **options)
    assert (told.largest, told.shard_gpus, told.shard_bytes) == (0, 4, cut[4].memory(1))
    assert f"{cut[4].memory(1) / 2**30:.1f} GiB on each of 4 GPUs with a micro-batch of 1" in str(told)
    fits = costs.plan("pretrain", "vit_ti", gpus=4, overrides=[*of_one, "train.shard=true"], **options)
    assert fits.largest >= 1
    assert fits.shard_gpus is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--task folder --backbone vit_nano", "its number of images is unknown; give --data"),
        ("--task coco --backbone vit_nano --gpus 0", "--gpus 0"),
        ("--task coco --backbone vit_nano --gpu-memory nan", "--gpu-memory nan"),
        ("--task coco --backbone vit_nano --gpus 2 train.shard=true", "train.shard=true: coco has not been compared"),
        ("--task imagenet --backbone timm:convnext_atto --gpus 2 train.shard=true", "is no plain ViT"),
        ("--task coco --backbone vit_nano --gpus 7", "cannot be reached with 7 processes"),
        ("--task coco --backbone mae_vit_bb", "mae_vit_b"),
        (
            "--task ade20k --backbone vit_nano --protocol knn,logreg",
            "plan takes one protocol at a time; give knn alone",
        ),
        ("--task coco --backbone vit_nano --method mae", "--method is for --task pretrain"),
        ("--task pretrain --backbone vit_nano --method beit", "--tokenizer kmeans"),
    ],
)
def test_bad_input_is_one_line(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_attention_takes_its_arguments_by_keyword_or_by_place() -> None:
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    mask = torch.randn(5, 5)
    with as_on_cuda(), DryRun():
        for args, kwargs in (
            ((q, k, v), {"attn_mask": mask}),
            ((q, k, v, mask), {}),
            ((q,), {"key": k, "value": v, "attn_mask": mask}),
            ((), {"query": q, "key": k, "value": v, "attn_mask": mask}),
            ((), {"query": q, "key": k, "value": v}),
        ):
            with count_operations() as counter:
                out = F.scaled_dot_product_attention(*args, **kwargs)
            assert out.shape == q.shape
            assert counter.get_total_flops() == 2 * 2 * 2 * 3 * 5 * 5 * 8
