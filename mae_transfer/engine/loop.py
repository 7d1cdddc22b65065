"""The one training loop of all tasks.

A step (`step.py`), then, in this order: metrics line, checkpoint if due or asked for by a signal, evaluation if due.

To resume: load the newest checkpoint, cut metrics.jsonl to its step, make up for an evaluation that was due there and
was not done, go on. The sample stream and the random state are functions of the step (sampler.py, rng.py), so nothing
else has to be restored. On CPU the result is that of an uninterrupted run bit for bit.
"""

import importlib.util
import logging
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from mae_transfer.config.schedule import Schedule, make_schedule
from mae_transfer.config.sections import RunConfig, Workers
from mae_transfer.engine.checkpoint_writer import CheckpointWriter
from mae_transfer.engine.distributed import all_reduce, eval_precision, on_rank_zero
from mae_transfer.engine.ema import make_ema
from mae_transfer.engine.fast import takes_fused_optimizer, training_arithmetic
from mae_transfer.engine.loader import loader_processes
from mae_transfer.engine.noise import SampleNoise
from mae_transfer.engine.optim import build_optimizer
from mae_transfer.engine.progress import Progress
from mae_transfer.engine.resume import restore
from mae_transfer.engine.sampler import StreamSampler, load_batches
from mae_transfer.engine.shard import gathered, is_sharded, with_weights, without_weights
from mae_transfer.engine.signals import StopRequest
from mae_transfer.engine.step import Step, StepResult
from mae_transfer.engine.task import BaseTask
from mae_transfer.errors import StoppedBySignal, UserError
from mae_transfer.run_folder.folder import RunFolder
from mae_transfer.run_folder.metrics import Epoch, lines_after

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a finished training gives back."""

    model: nn.Module
    """Bare and in eval mode, the averaged weights if there is an EMA: what to evaluate."""
    steps: int
    history: list[dict[str, Any]]
    """See `run_folder.metrics.EpochHistory.entries`; empty on ranks other than 0."""
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
    workers: Workers,
    resume: bool = False,
    origin: dict[str, Any] | None = None,
) -> TrainResult:
    """Train the model, which `task.build_model` made, to the end of the schedule.

    folder: the open run folder on rank 0, None on the other ranks (`run_folder.open_run_folder`).
    workers: loader processes per rank, or `auto`; 0 loads in this process.
    resume: go on from the newest checkpoint in the folder (from the start if there is none yet).
    origin: plain values that name the run and its backbone, kept in every checkpoint; a resumed run keeps its first.
    Raises UserError, DivergedError (a loss or the gradient is not finite; no update is made with it) and
    StoppedBySignal (after a checkpoint); on every rank, except a UserError of one rank's data.
    """
    images, global_batch = len(task.train_dataset), config.train.global_batch
    schedule = check_plan(config, images, fabric.world_size)
    wrapped, optimizer, wrapped_optimizer, ema, evaluated = _set_up(fabric, model, config)
    precision: Any = fabric.strategy.precision

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
            "history": folder.history.epochs if folder else [],
            "seconds": seconds_before + time.perf_counter() - started,
        }

    start, seconds_before, step_seconds, started = 0, 0.0, 0.0, time.perf_counter()
    past: Sequence[Epoch] | None = ()
    if resume:
        state = restore(fabric, folder, model, optimizer, ema, precision, images, origin)
        if state is not None:
            start, seconds_before, origin, past = state["step"], state["seconds"], state["origin"], state.get("history")
        del state  # its file may be deleted during the training, and would stay mapped
    if folder:
        folder.start_metrics(start, past)
    if _evaluation_due(config, start, images, schedule.total) and not _evaluated(fabric, folder, start):
        _evaluate(fabric, task, evaluated(), config, folder, start)

    sampler = _sampler(config, images, fabric.world_size, fabric.global_rank, start, schedule.total)
    batches = load_batches(
        task.train_dataset,
        sampler,
        workers=loader_processes(workers, fabric.device),
        rank=fabric.global_rank,
        pin_memory=fabric.device.type == "cuda",
    )
    with ExitStack() as stack:
        stack.enter_context(closing(batches))
        stop = stack.enter_context(StopRequest())
        stack.enter_context(training_arithmetic(fabric.device, config.train, fixed_sizes=task.fixed_sizes))
        progress: Progress | None = None
        tensorboard: Any = None
        writer: CheckpointWriter | None = None
        if folder:
            keep, beside = config.train.keep_checkpoints, fabric.device.type == "cuda"  # a CPU's steps would be slower
            beside = beside and not is_sharded(fabric)  # what was gathered is a copy already
            writer = stack.enter_context(CheckpointWriter(folder.checkpoints, keep, beside=beside))
            progress = stack.enter_context(
                Progress(start=start, total=schedule.total, log_every=config.train.log_every)
            )
            tensorboard = stack.enter_context(_tensorboard(folder, start)) if config.train.tensorboard else None

        make_step = Step(
            *(fabric, task, config, folder, schedule, sampler, batches),
            *(model, wrapped, optimizer, wrapped_optimizer, ema, SampleNoise(model), start + 1),
        )
        for step in range(start + 1, schedule.total + 1):  # counted from 1: the state after it is that of `step` steps
            step_started = time.perf_counter()
            done = make_step(step, stop=lambda: stop.received is not None)
            elapsed = time.perf_counter() - step_started
            step_seconds += elapsed
            if folder and progress:
                seconds = seconds_before + time.perf_counter() - started
                line = _metrics_line(step, done, global_batch, images, elapsed, seconds, _peak_memory(fabric))
                folder.append_metrics(line)
                progress.show(line, step_seconds / (step - start))
                for name, value in line.items() if tensorboard else ():
                    tensorboard.add_scalar(name, value, step)

            if step % config.train.checkpoint_every == 0 or step == schedule.total or done.stop:
                path = on_rank_zero(fabric, partial(_save, folder, writer, gathered(fabric, state_after(step)), step))
            evaluation = _evaluation_due(config, step, images, schedule.total)
            if done.stop or evaluation or step == schedule.total:
                on_rank_zero(fabric, lambda: writer.wait() if writer else None)
            if done.stop:
                raise StoppedBySignal(
                    f"stopped by a signal after step {step}, saved in {path}; --resume goes on from it"
                )
            if evaluation:  # after the checkpoint: it may fail or be stopped
                _evaluate(fabric, task, evaluated(), config, folder, step)

    return TrainResult(
        model=evaluated().eval(),
        steps=schedule.total,
        history=folder.history.entries() if folder else [],
        seconds=seconds_before + time.perf_counter() - started,
        peak_memory=peak_memory(fabric),
        images_per_second=(schedule.total - start) * global_batch / step_seconds if step_seconds else None,
        origin=origin,
    )


def _set_up(
    fabric: Fabric, model: nn.Module, config: RunConfig
) -> tuple[nn.Module, Optimizer, object, AveragedModel | None, Callable[[], nn.Module]]:
    """The model as Fabric wraps it, the optimizer, the same wrapped, the average, and what gives the model to evaluate:
    bare and whole."""
    bare = without_weights(model) if is_sharded(fabric) else None
    if bare is None:  # a sharded model goes to the device block by block
        fabric.to_device(model)
    ema = make_ema(model, config.optim.ema) if config.optim.ema else None
    if config.train.compile:
        model.encoder.compile()  # type: ignore[union-attr]  # in place, so that the keys of the state dict stay
    wrapped = fabric.setup_module(model, move_to_device=bare is None)
    if ema and bare is not None:
        fabric.strategy.setup_module(ema.module)
    optimizer = build_optimizer(model, config.optim, fused=takes_fused_optimizer(fabric.device, config.train))
    trained = ema.module if ema else model

    def evaluated() -> nn.Module:
        return trained if bare is None else with_weights(bare, trained, fabric.device)

    return wrapped, optimizer, fabric.setup_optimizers(optimizer), ema, evaluated


def _evaluate(
    fabric: Fabric, task: BaseTask, model: nn.Module, config: RunConfig, folder: RunFolder | None, step: int
) -> None:
    """Evaluate after a step and write what came out as a line of metrics.jsonl."""
    with eval_precision(fabric, config):
        metrics = task.evaluate(model.eval(), fabric, fabric.is_global_zero).metrics
    if folder:
        epoch = step * config.train.global_batch / len(task.train_dataset)
        folder.append_metrics({"step": step, "epoch": epoch, "eval": metrics})
        shown = [f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name]  # not per class
        _LOG.info("step %d: %s", step, "  ".join(shown))


def _evaluated(fabric: Fabric, folder: RunFolder | None, step: int) -> bool:
    """Whether metrics.jsonl has the evaluation after a step."""

    def found() -> bool:
        lines = lines_after(folder.path, step - 1)[1] if folder else []
        return any(line["step"] == step and "eval" in line for line in lines)

    return on_rank_zero(fabric, found)


def _metrics_line(
    step: int, done: StepResult, global_batch: int, images: int, elapsed: float, seconds: float, memory: int
) -> dict[str, float]:
    """A line of metrics.jsonl. elapsed: of the step; seconds: of the run."""
    return {
        "step": step,
        "epoch": step * global_batch / images,
        "lr": done.lr,
        "loss": sum(done.losses.values()),
        **done.losses,
        "grad_norm": done.grad_norm,
        "images_per_second": global_batch / elapsed,
        "data_wait": done.waited / elapsed,
        "memory": memory,
        "seconds": seconds,
    }


def _sampler(
    config: RunConfig, images: int, world_size: int, rank: int = 0, start: int = 0, total: int = 0
) -> StreamSampler:
    return StreamSampler(
        num_images=images,
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch_size,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        start=start,
        total=total,
    )


def _save(
    folder: RunFolder | None,
    writer: CheckpointWriter | None,
    state: dict[str, object],
    step: int,
) -> Path:
    assert folder is not None, "only rank 0 saves"
    assert writer is not None
    folder.flush_metrics()
    return writer.save(step, state)


def _evaluation_due(config: RunConfig, step: int, images: int, total: int) -> bool:
    """Whether an evaluation falls after `step` steps; the one after the last step is the caller's."""
    every = config.train.eval_every_epochs
    if every is None or not 0 < step < total:
        return False
    per_step = config.train.global_batch / (images * every)
    return int(step * per_step) > int((step - 1) * per_step)


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
