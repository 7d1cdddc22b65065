"""What a step of a run that begins will hold and compute: two lines at its start, soon found or left out.

The run's own model makes a step of two sizes under `engine/dry_run.py`, of its own first images. The optimizer is not
run: its states are as large as what is trained, once or twice. `mae-transfer plan` knows the update too, and more.
"""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.dry_run import DryRun, as_on_cuda
from mae_transfer.engine.task import BaseTask
from mae_transfer.errors import UserError

_LOG = logging.getLogger(__name__)

CARDS: Mapping[str, float] = {"V100": 125, "RTX 4090": 165, "A100": 312, "L40S": 362, "H100": 989, "B200": 2250}
"""TFLOP/s of dense matrix products in bf16 (V100: fp16) with sums in fp32, as NVIDIA states them; from memory of its
data sheets, which could not be read here."""
SHARE = 0.35
"""Of that peak, that a training is taken to reach: an assumption [ours], measured on no GPU."""
RESERVE = 0.10
"""Of a card's memory, for what is no tensor: CUDA context, workspaces, fragments [ours]."""
RESERVE_OF_VARYING = 0.25
"""The same where a step's sizes vary: a detector's steps hold up to a fifth more than its first images, untrained, tell
(docs/plan.md)."""
GIB = 2**30
SECONDS = 3.0
"""A run waits no longer for its two lines; a ViT-B takes one on an idle core, a ViT-L or a detector two."""
STATES = {"adamw": 2, "sgd": 1, "lars": 1}
"""Numbers that an optimizer keeps of each trained one."""


@dataclass(frozen=True)
class StepCost:
    """Of one rank's step. Bytes of tensors; operations, a multiplication and an addition being two."""

    fixed_bytes: int
    """Weights, gradients, optimizer, EMA, buckets."""
    image_bytes: int
    """What each image of a micro-batch adds to them."""
    train_flops: float
    """Of one image, forward and backward."""
    batch_norm: bool
    """Whether statistics are taken over a micro-batch."""
    ranks: int
    reserve: float = RESERVE
    """Of a GPU's memory, that is kept free."""

    def lines(self, config: RunConfig, steps: int, card: str = "", memory: int = 0) -> list[str]:
        """Memory, and operations with hours where the card is known.

        Args:
            card, memory: name and bytes of each rank's GPU; none on a CPU.
        """
        train = config.train
        batch = train.global_batch
        micro = min(train.micro_batch_size, batch // self.ranks)
        holds = self.fixed_bytes + micro * self.image_bytes
        free = int(memory * (1 - self.reserve)) - self.fixed_bytes
        largest = max(0, min(free // max(1, self.image_bytes), batch // self.ranks))
        first = f"a step holds {holds / GIB:.3g} GiB at train.micro_batch={micro}"
        if memory:
            first += f", of the GPU's {memory / GIB:.3g}: "
            if largest < micro:
                first += f"too much; {largest} would fit" if largest else "too much; backbone.grad_checkpointing=true?"
            else:
                other = " (another recipe: batch norm)" if self.batch_norm else ""
                first += f"{largest} would fit{other}" if largest > micro else "as many as fit"
        second = f"{_amount(self.train_flops)} an image, {_amount(self.train_flops * steps * batch)} in {steps:,} steps"
        peak = next((tflops for name, tflops in CARDS.items() if name in card), None)
        if peak is not None and train.precision != "fp32":
            hours = steps * batch * self.train_flops / (peak * 1e12 * SHARE * self.ranks) / 3600
            second += f": {duration(hours)} at {SHARE:.0%} of the peak of {self.ranks} {card}"
        return [first, second]


def measure_step(task: BaseTask, model: nn.Module, ranks: int, *, on_gpu: bool) -> StepCost | None:
    """What a step of the model will cost; None if that cannot be told in time. Neither model nor random state change.

    on_gpu: count attention as GPUs compute it.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            return _measure(task, model, ranks, on_gpu)
        except Exception as error:  # noqa: BLE001 - an encoder that cannot be copied, say: no run is to fail by advice
            _LOG.debug("no costs of a step: %r", error)
            return None


def _measure(task: BaseTask, model: nn.Module, ranks: int, on_gpu: bool) -> StepCost:
    config = task.config
    small = smallest_micro_batch(task)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.precision)
    peaks, flops = [], 0.0
    with DryRun(SECONDS) as memory, as_on_cuda() if on_gpu else nullcontext():
        copied = memory.copy_of(model).train()
        for size in (small, 2 * small):
            batch = first_batch(task, size)
            memory.peak, before = memory.now, memory.flops
            with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                losses = copied(batch)
            torch.stack(list(losses.values())).sum().backward()
            flops = (memory.flops - before) / size
            peaks.append(memory.peak)
            del losses, batch
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    weights = sum(x.nbytes for x in model.state_dict().values())
    beside = trained * (STATES[config.optim.kind] + (ranks > 1)) + weights * (config.optim.ema is not None)
    image = max(0, (peaks[1] - peaks[0]) // small)
    return StepCost(peaks[0] - small * image + beside, image, flops, takes_batch_norm(copied), ranks, reserve(task))


def reserve(task: BaseTask) -> float:
    """Share of a GPU's memory that is kept free."""
    return RESERVE if task.fixed_sizes else RESERVE_OF_VARYING


def first_batch(task: BaseTask, size: int) -> object:
    """Of the first training images, over again where they are fewer."""
    images = task.train_dataset
    return images.collate([images[(0, i % len(images))] for i in range(size)])


def smallest_micro_batch(task: BaseTask) -> int:
    """What the task can train on: 1, 2 or 4 images."""
    for size in (1, 2):
        try:
            task.check_batches({size})
        except UserError:
            continue
        return size
    return 4


def takes_batch_norm(model: nn.Module) -> bool:
    """Whether a model in training mode takes statistics of its micro-batches."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules())


def duration(hours: float) -> str:
    """In the unit that people use."""
    return f"{hours * 60:.2g} min" if hours < 1 else f"{hours:,.3g} h"


def _amount(operations: float) -> str:
    power = next((power for power in (9, 12, 15) if operations < 10 ** (power + 3)), 18)
    return f"{operations / 10**power:.3g} {'GTPE'[power // 3 - 3]}FLOP"
