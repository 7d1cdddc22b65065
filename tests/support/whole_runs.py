"""Whole runs of every task and protocol at their smallest: one step and an evaluation of generated images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lightning_fabric import Fabric
from support.coco_command import TINY as TINY_COCO

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
    norm: float = 1e-5
    """Relative tolerance of the gradient's norm. Batch norm over few values magnifies rounding: without AVX-512 a
    second thread moves the norm of `ade20k` by 5e-5, attention by its formula that of `mocov3` by 1.1e-5."""


CASES = {
    "coco": Case("coco", None, COCO, 37, 22),
    "coco, frozen": Case("coco", "frozen", COCO, 37, 22),
    "coco, cascade": Case("coco", None, (*COCO, "recipe=vitdet_cascade"), 41, 22),
    "ade20k": Case("ade20k", None, (*ADE20K, *UPERNET), 1, 15, 2e-4),
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
    "mocov3": Case("pretrain", "mocov3", (*SMALL, "train.micro_batch=4"), 1, 1, 5e-5),
}


@dataclass
class Outcome:
    metrics: dict[str, float]
    losses: dict[str, float]
    """Of the step, and its gradient norm."""
    step: list[str]
    """Its waits."""
    evaluation: list[str]


def run(case: Case, fabric: Fabric, output: Path, precision: str, waits: list[str], *overrides: str) -> Outcome:
    """waits: of a pretended GPU, to which the run adds."""
    config = resolve_config(
        case.task,
        "vit_nano_p8" if case.task == "pretrain" else "random_vit_nano",
        protocol=case.protocol,
        preset="smoke",
        subset=8,
        data="synthetic",
        overrides=[
            *(STEP if case.step else ()),
            f"train.precision={precision}",
            "eval.pictures=1",
            *case.overrides,
            *overrides,
        ],
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
