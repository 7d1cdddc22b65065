"""The one training loop of all tasks.

A step: this rank's micro-batches forward and backward, each loss weighted by its share of the images, so that the
gradient is that of the mean over the global batch however it is cut; one small all-reduce of losses and flags, and one
wait for the device; stop if anything is not finite; clip; update. Then, in this order: metrics line, checkpoint
if due or asked for by a signal, evaluation if due.

To resume: load the newest checkpoint, cut metrics.jsonl to its step, make up for an evaluation that was due there and
was not done, go on. The sample stream and the random state are functions of the step (sampler.py, rng.py), so nothing
else has to be restored. On CPU the result is that of an uninterrupted run bit for bit.
"""

import importlib.util
import logging
import math
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.distributed import all_reduce, eval_precision, gather_objects, on_rank_zero, share_buffers
from mae_transfer.engine.ema import make_ema
from mae_transfer.engine.optim import build_optimizer, set_lr
from mae_transfer.engine.progress import Progress
from mae_transfer.engine.rng import seed_for_micro_batch
from mae_transfer.engine.sampler import StreamSampler, load_batches
from mae_transfer.engine.schedule import Schedule, make_schedule
from mae_transfer.engine.signals import StopRequest
from mae_transfer.engine.task import BaseTask
from mae_transfer.errors import DivergedError, StoppedBySignal, UserError
from mae_transfer.run_folder.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from mae_transfer.run_folder.folder import RunFolder
from mae_transfer.run_folder.metrics import epoch_history, read_metrics

_LOG = logging.getLogger(__name__)
MUST_AGREE = {"norm_batch": "batch norm over images:", "data_fingerprint": "data of fingerprint"}
"""Entries of a run's origin that a resume cannot change without changing the result, and how a message names them."""
_LOWEST_SCALE = 1e-4  # of fp16 gradients; below it no step is taken any more (the limit of fairseq's scaler)


@dataclass(frozen=True)
class TrainResult:
    """What a finished training gives back."""

    model: nn.Module
    """Bare and in eval mode, the averaged weights if there is an EMA: what to evaluate."""
    steps: int
    history: list[dict[str, Any]]
    """See `run_folder.epoch_history`; empty on ranks other than 0."""
    seconds: float
    """Wall time up to here, evaluations and checkpoints included, over all resumes of the run."""
    peak_memory: int | None
    """Bytes, the largest of any rank: allocated CUDA memory, or the resident set of the process on CPU."""
    images_per_second: float | None
    """Over all ranks, time of training steps only, of this process's own steps; None if it made none."""
    origin: dict[str, Any] | None
    """As given to `train`, or from the checkpoint that was resumed."""


def check_plan(config: RunConfig, num_images: int, world_size: int) -> Schedule:
    """The schedule in steps; UserError if the global batch cannot be reached or the schedule cannot be.

    `train` checks this itself; a caller can check before anything is written.
    """
    _sampler(config, num_images, world_size)
    if config.train.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("train.tensorboard=true needs the tensorboard package: pip install tensorboard")
    return make_schedule(config.schedule, num_images, config.train.global_batch)


def micro_batch_sizes(config: RunConfig, world_size: int) -> set[int]:
    """The numbers of images that a device may get in one forward pass."""
    return {len(positions) for positions in _sampler(config, 1, world_size).micro_batches(0)}


def train(
    fabric: Fabric,
    task: BaseTask,
    model: nn.Module,
    config: RunConfig,
    folder: RunFolder | None,
    *,
    workers: int,
    resume: bool = False,
    origin: dict[str, Any] | None = None,
) -> TrainResult:
    """Train the model, which `task.build_model` made, to the end of the schedule.

    folder: the open run folder on rank 0, None on the other ranks (`run_folder.open_run_folder`).
    workers: loader processes per rank; 0 loads in this process.
    resume: go on from the newest checkpoint in the folder (from the start if there is none yet).
    origin: plain values that name the run and its backbone, kept in every checkpoint; a resumed run keeps its first.
    Raises UserError, DivergedError (a loss or the gradient is not finite; no update is made with it) and
    StoppedBySignal (after a checkpoint); on every rank, except a UserError of one rank's data.
    """
    images, global_batch = len(task.train_dataset), config.train.global_batch
    schedule = check_plan(config, images, fabric.world_size)

    fabric.to_device(model)
    ema = make_ema(model, config.optim.ema) if config.optim.ema else None
    if config.train.compile:
        encoder: Any = model.encoder
        encoder.compile()  # in place, so that the keys of the state dict stay
    optimizer = build_optimizer(model, config.optim)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    precision: Any = fabric.strategy.precision
    scaler = getattr(precision, "scaler", None)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def state_after(step: int) -> dict[str, Any]:
        return {
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": {"total": schedule.total, "warmup": schedule.warmup},
            "scaler": precision.state_dict(),
            "ema": ema.state_dict() if ema else None,
            "rng": {"seed": config.seed, "position": step * global_batch},
            "sampler": {"images": images, "global_batch": global_batch, "position": step * global_batch},
            "config": config.model_dump(mode="json"),
            "origin": origin,
            "seconds": seconds_before + time.perf_counter() - started,
        }

    def evaluate(step: int) -> None:
        target = (ema.module if ema else model).eval()
        with eval_precision(fabric, config):
            metrics = task.evaluate(target, fabric, fabric.is_global_zero).metrics
        if folder:
            folder.append_metrics({"step": step, "epoch": step * global_batch / images, "eval": metrics})
            shown = [f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name]  # not per class
            _LOG.info("step %d: %s", step, "  ".join(shown))

    start, seconds_before, started = 0, 0.0, time.perf_counter()
    if resume:
        state = _restore(fabric, folder, model, optimizer, ema, precision, images, origin)
        if state is not None:
            start, seconds_before, origin = state["step"], state["seconds"], state["origin"]
        del state
    if folder:
        folder.start_metrics(start)
    if _evaluation_due(config, start, images, schedule.total) and not on_rank_zero(
        fabric,
        lambda: folder is not None and any(m["step"] == start and "eval" in m for m in read_metrics(folder.path)),
    ):
        evaluate(start)

    sampler = _sampler(config, images, fabric.world_size, fabric.global_rank, start, schedule.total)
    batches = load_batches(
        task.train_dataset,
        sampler,
        workers=workers,
        rank=fabric.global_rank,
        pin_memory=fabric.device.type == "cuda",
    )
    step_seconds = 0.0
    with ExitStack() as stack:
        stack.enter_context(closing(batches))
        stop = stack.enter_context(StopRequest())
        progress = tensorboard = None
        if folder:
            progress = stack.enter_context(
                Progress(start=start, total=schedule.total, log_every=config.train.log_every)
            )
            tensorboard = stack.enter_context(_tensorboard(folder, start)) if config.train.tensorboard else None

        for step in range(start + 1, schedule.total + 1):  # counted from 1: the state after it is that of `step` steps
            step_started, waited = time.perf_counter(), 0.0
            lr = config.optim.lr * schedule.factor(step - 1)
            set_lr(optimizer, lr)
            wrapped.train()
            optimizer.zero_grad()

            micro_batches = sampler.micro_batches(step - 1)
            names: list[str] = []
            samples: list[list[str]] = []
            micro_losses: list[Tensor] = []  # per micro-batch, a vector in the order of names, weighted
            for index, positions in enumerate(micro_batches):
                wait_started = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - wait_started
                samples.append([str(name) for name in task.sample_names(batch)])
                batch = fabric.to_device(batch)
                if fabric.world_size > 1 and step == start + 1 and index == 0:
                    _settle_buckets(fabric, wrapped, model, batch)
                seed_for_micro_batch(config.seed, positions.start)
                with fabric.no_backward_sync(wrapped, enabled=index < len(micro_batches) - 1):
                    losses: dict[str, Tensor] = wrapped(batch)
                    weighted = {name: loss * (len(positions) / sampler.per_rank) for name, loss in losses.items()}
                    fabric.backward(torch.stack(list(weighted.values())).sum())
                names = list(weighted)
                micro_losses.append(torch.stack([loss.detach().double() for loss in weighted.values()]))
                del batch, losses, weighted  # not to be held while the next one is computed

            if step == start + 1:
                _check_all_used(model)
            precision.unscale_gradients(optimizer)
            grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            local = torch.stack(micro_losses)
            flags = torch.tensor([float(stop.received is not None)], dtype=torch.float64, device=local.device)
            mean = all_reduce(fabric, torch.cat([local.sum(0), grad_norm.double()[None], flags]), "mean")
            *loss_values, norm_value, stop_value = mean.tolist()

            bad = [name for name, value in zip(names, loss_values, strict=True) if not math.isfinite(value)]
            if not math.isfinite(norm_value) and (scaler is None or scaler.get_scale() < _LOWEST_SCALE):
                bad.append("the gradient norm")
            if bad:
                raise DivergedError(_diverged_message(fabric, folder, step, bad, local, samples))
            if config.optim.clip_grad is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, config.optim.clip_grad, grad_norm)
            wrapped_optimizer.step()
            share_buffers(fabric, model)
            if ema:
                ema.update_parameters(model)

            elapsed = time.perf_counter() - step_started
            step_seconds += elapsed
            if folder and progress:
                line = {
                    "step": step,
                    "epoch": step * global_batch / images,
                    "lr": lr,
                    "loss": sum(loss_values),
                    **dict(zip(names, loss_values, strict=True)),
                    "grad_norm": norm_value,
                    "images_per_second": global_batch / elapsed,
                    "data_wait": waited / elapsed,
                    "memory": _peak_memory(fabric),
                    "seconds": seconds_before + time.perf_counter() - started,
                }
                folder.append_metrics(line)
                progress.show(line, step_seconds / (step - start))
                if tensorboard:
                    for name, value in line.items():
                        tensorboard.add_scalar(name, value, step)

            stopping = stop_value > 0
            if step % config.train.checkpoint_every == 0 or step == schedule.total or stopping:
                path = on_rank_zero(fabric, partial(_save, folder, config, state_after, step))
            if stopping:
                raise StoppedBySignal(
                    f"stopped by a signal after step {step}, saved in {path}; --resume goes on from it"
                )
            if _evaluation_due(config, step, images, schedule.total):  # after the checkpoint: it may fail or be stopped
                evaluate(step)

    return TrainResult(
        model=(ema.module if ema else model).eval(),
        steps=schedule.total,
        history=epoch_history(read_metrics(folder.path)) if folder else [],
        seconds=seconds_before + time.perf_counter() - started,
        peak_memory=peak_memory(fabric),
        images_per_second=(schedule.total - start) * global_batch / step_seconds if step_seconds else None,
        origin=origin,
    )


def _sampler(
    config: RunConfig, images: int, world_size: int, rank: int = 0, start: int = 0, total: int = 0
) -> StreamSampler:
    return StreamSampler(
        num_images=images,
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        start=start,
        total=total,
    )


def _restore(
    fabric: Fabric,
    folder: RunFolder | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: AveragedModel | None,
    precision: Any,
    images: int,
    origin: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Load the newest checkpoint on every rank; its content, or None if there is none yet."""
    paths = on_rank_zero(fabric, lambda: list_checkpoints(folder.checkpoints) if folder else [])
    if not paths:
        _LOG.info("no checkpoint yet: starting from step 0")
        return None
    path = paths[-1]
    state = load_checkpoint(path)
    for key in MUST_AGREE:
        before, now = (state["origin"] or {}).get(key), (origin or {}).get(key)
        if before != now:
            raise UserError(
                f"checkpoint {path} is of a run with {MUST_AGREE[key]} {before}, now it is {now}; resume with the same"
            )
    if state["sampler"]["images"] != images:
        raise UserError(
            f"checkpoint {path} was trained on {state['sampler']['images']} images, the training set now has {images}; "
            "resume with the same data"
        )
    names = [group["names"] for group in optimizer.param_groups]
    if [group["names"] for group in state["optimizer"]["param_groups"]] != names:
        raise UserError(
            f"checkpoint {path} has other parameter groups than this model; resume with the code it is from"
        )
    try:
        model.load_state_dict(state["model"])
        if ema:
            ema.load_state_dict(state["ema"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint {path} does not fit this model: {reason}") from error
    optimizer.load_state_dict(state["optimizer"])
    precision.load_state_dict(state["scaler"])
    _LOG.info("resuming after step %d from %s", state["step"], path)
    return state


def _save(folder: RunFolder | None, config: RunConfig, state_after: Callable[[int], dict[str, Any]], step: int) -> Path:
    assert folder is not None, "only rank 0 saves"
    folder.flush_metrics()
    return save_checkpoint(folder.checkpoints, step, state_after(step), config.train.keep_checkpoints)


def _settle_buckets(fabric: Fabric, wrapped: nn.Module, model: nn.Module, batch: Any) -> None:
    """One backward pass that is thrown away.

    DDP lays out its buckets anew by the order of its first backward pass. That changes the order in which the gradients
    of more than two ranks are summed; so it has to happen before the first step, or a resumed run differs in that step.
    """
    buffers = [buffer.clone() for buffer in model.buffers()]
    fabric.backward(torch.stack(list(wrapped(batch).values())).sum())
    _check_all_used(model)
    model.zero_grad()
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _check_all_used(model: nn.Module) -> None:
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        raise RuntimeError(f"no loss depends on {', '.join(unused)}: freeze them or let them take part in every batch")


def _evaluation_due(config: RunConfig, step: int, images: int, total: int) -> bool:
    """Whether an evaluation falls after `step` steps; the one after the last step is the caller's."""
    every = config.train.eval_every_epochs
    if every is None or not 0 < step < total:
        return False
    per_step = config.train.global_batch / (images * every)
    return int(step * per_step) > int((step - 1) * per_step)


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


def peak_memory(fabric: Fabric) -> int:
    """Bytes, the largest of any rank; to be called on all of them."""
    memory = torch.tensor(_peak_memory(fabric), dtype=torch.float64, device=fabric.device)
    return int(all_reduce(fabric, memory, "max").item())


def _peak_memory(fabric: Fabric) -> int:
    if fabric.device.type == "cuda":
        return torch.cuda.max_memory_allocated(fabric.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _tensorboard(folder: RunFolder, start: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder.path / "tensorboard", purge_step=start + 1)  # drops what a killed run did after `start`
