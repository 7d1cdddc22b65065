"""One step of training: micro-batches forward and backward, what the ranks agree on, the update.

Each loss is weighted by its micro-batch's share of the images, so that the gradient is that of the mean over the global
batch however it is cut. One small all-reduce of losses and flags is one wait for the device.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mae_transfer.config.schedule import Schedule
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.distributed import all_reduce, gather_objects, on_rank_zero, share_buffers
from mae_transfer.engine.noise import SampleNoise
from mae_transfer.engine.optim import set_lr
from mae_transfer.engine.rng import seed_for_micro_batch
from mae_transfer.engine.sampler import StreamSampler
from mae_transfer.engine.shard import is_sharded, whole
from mae_transfer.engine.task import BaseTask
from mae_transfer.errors import DivergedError
from mae_transfer.run_folder.checkpoints import list_checkpoints
from mae_transfer.run_folder.folder import RunFolder

LOWEST_SCALE = 1e-4
"""Of fp16 gradients; below it no step is taken any more (the limit of fairseq's scaler)."""


@dataclass(frozen=True)
class StepResult:
    """What a step did, the same on every rank but for `waited`."""

    lr: float
    losses: dict[str, float]
    grad_norm: float
    waited: float
    """Seconds that this rank waited for data."""
    stop: bool
    """Whether any rank was asked to stop."""


@dataclass(frozen=True)
class Step:
    """The step of a run, to be called with its number, counted from 1."""

    fabric: Fabric
    task: BaseTask
    config: RunConfig
    folder: RunFolder | None
    schedule: Schedule
    sampler: StreamSampler
    batches: Iterator[Any]
    model: nn.Module
    """Bare."""
    wrapped: Any
    """As Fabric set it up."""
    optimizer: torch.optim.Optimizer
    wrapped_optimizer: Any
    ema: AveragedModel | None
    noise: SampleNoise
    first: int
    """The first step of this process, in which unused parameters are looked for."""

    def __call__(self, step: int, *, stop: Callable[[], bool]) -> StepResult:
        """Make the step.

        Args:
            stop: whether this rank has been asked to stop; called after the backward passes.

        Raises:
            DivergedError: a loss or the gradient is not finite, on every rank; no update was made.
        """
        lr = self.config.optim.lr * self.schedule.factor(step - 1)
        set_lr(self.optimizer, lr)
        self.wrapped.train()
        self.optimizer.zero_grad()
        names, samples, local, waited = self._accumulate(step)
        if step == self.first:
            _check_all_used(self.model)

        precision: Any = self.fabric.strategy.precision
        precision.unscale_gradients(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        grad_norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        flags = torch.tensor([float(stop())], dtype=torch.float64).to(local.device, non_blocking=True)
        mean = all_reduce(self.fabric, torch.cat([local.sum(0), grad_norm.double()[None], flags]), "mean")
        *loss_values, norm_value, stop_value = mean.tolist()

        bad = [name for name, value in zip(names, loss_values, strict=True) if not math.isfinite(value)]
        scaler = getattr(precision, "scaler", None)
        if not math.isfinite(norm_value) and (scaler is None or scaler.get_scale() < LOWEST_SCALE):
            bad.append("the gradient norm")
        if bad:
            raise DivergedError(_diverged_message(self.fabric, self.folder, step, bad, local, samples))
        if self.config.optim.clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip_grad, grad_norm)
        self.wrapped_optimizer.step()
        share_buffers(self.fabric, self.model)
        if self.ema:
            self.ema.update_parameters(self.model)
        losses = dict(zip(names, loss_values, strict=True))
        return StepResult(lr, losses, norm_value, waited, stop_value > 0)

    def _accumulate(self, step: int) -> tuple[list[str], list[list[str]], Tensor, float]:
        """Forward and backward of this rank's micro-batches.

        Returns:
            The names of the losses, the names of the images by micro-batch, the weighted losses (micro-batches, losses)
            in float64, and the seconds waited for data.
        """
        micro_batches = self.sampler.micro_batches(step - 1)
        names: list[str] = []
        samples: list[list[str]] = []
        found: list[Tensor] = []
        waited = 0.0
        for index, positions in enumerate(micro_batches):
            started = time.perf_counter()
            batch = next(self.batches)
            waited += time.perf_counter() - started
            samples.append([str(name) for name in self.task.sample_names(batch)])
            batch = self.fabric.to_device(batch)
            if self.fabric.world_size > 1 and step == self.first and index == 0:
                share_buffers(self.fabric, self.model)
                if not is_sharded(self.fabric):
                    _settle_buckets(self.fabric, self.wrapped, self.model, batch)
            seed_for_micro_batch(self.config.seed, positions.start)
            self.noise.draw(self.config.seed, positions, self.fabric.device)
            # Sharded, gradients are cut after each micro-batch: whole ones would not fit.
            sums_first = index < len(micro_batches) - 1 and not is_sharded(self.fabric)
            with self.fabric.no_backward_sync(self.wrapped, enabled=sums_first):
                losses: dict[str, Tensor] = self.wrapped(batch)
                share = len(positions) / self.sampler.per_rank
                weighted = {name: loss * share for name, loss in losses.items()}
                self.fabric.backward(torch.stack(list(weighted.values())).sum())
            names = list(weighted)
            found.append(torch.stack([loss.detach().double() for loss in weighted.values()]))
            del batch, losses, weighted  # not to be held while the next one is computed
        return names, samples, torch.stack(found), waited


def _settle_buckets(fabric: Fabric, wrapped: nn.Module, model: nn.Module, batch: object) -> None:
    """One backward pass that is thrown away.

    DDP lays out its buckets anew by the order of its first backward pass. That changes the order in which the gradients
    of more than two ranks are summed; so it has to happen before the first step, or a resumed run differs in that step.
    What a forward pass may change is put back: buffers, and weights that are not trained (a momentum encoder's).
    """
    kept = [tensor for tensor in (*model.buffers(), *model.parameters()) if not tensor.requires_grad]
    befores = [tensor.to("cpu", copy=True) for tensor in kept]
    fabric.backward(torch.stack(list(wrapped(batch).values())).sum())
    _check_all_used(model)
    model.zero_grad()
    with torch.no_grad():
        for tensor, before in zip(kept, befores, strict=True):
            tensor.copy_(before)


def _check_all_used(model: nn.Module) -> None:
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        raise RuntimeError(f"no loss depends on {', '.join(unused)}: freeze them or let them take part in every batch")


def _diverged_message(
    fabric: Fabric, folder: RunFolder | None, step: int, bad: list[str], local: Tensor, samples: list[list[str]]
) -> str:
    """One line; names the images of those micro-batches, on any rank, whose losses are not finite, else of all."""
    finite = local.isfinite().all(1).tolist()
    guilty = [name for ok, names in zip(finite, samples, strict=True) if not ok for name in names]
    everyone = gather_objects(fabric, (guilty, [name for names in samples for name in names]))
    names = [name for part, _ in everyone for name in part] or [name for _, part in everyone for name in part]
    shown = ", ".join(names[:32]) + (f" and {len(names) - 32} more" if len(names) > 32 else "")
    good = on_rank_zero(fabric, lambda: [path.name for path in list_checkpoints(folder.checkpoints)] if folder else [])
    kept = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
    return f"step {step}: {', '.join(bad)} not finite; images: {shown}; {kept}"
