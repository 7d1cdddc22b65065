"""One run, from a task to its record: encoder -> model -> training -> evaluation -> record -> pictures.

Everything that can be wrong with the input is found before the run folder is made.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from mae_transfer.backbones.checkpoints.own import resampling_of_run
from mae_transfer.backbones.encoder import Encoder
from mae_transfer.backbones.positions.resampling import RULES
from mae_transfer.config.schedule import Schedule
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.distributed import (
    check_eval_precision,
    eval_precision,
    first_on_each_node,
    gather_objects,
    on_rank_zero,
)
from mae_transfer.engine.loader import loader_failures
from mae_transfer.engine.loop import TrainResult, check_plan, micro_batch_sizes, peak_memory, train
from mae_transfer.engine.rng import seed_for_model
from mae_transfer.engine.shard import check_blocks, check_shard
from mae_transfer.engine.signals import stop_at_once
from mae_transfer.engine.task import BaseTask, Evaluation
from mae_transfer.errors import UserError
from mae_transfer.run_folder.checkpoints import evaluated_weights, list_checkpoints, load_checkpoint, read_origin
from mae_transfer.run_folder.folder import RunFolder, check_begun
from mae_transfer.run_folder.metrics import history_of, up_to
from mae_transfer.run_folder.pictures import FOLDER, write_pictures
from mae_transfer.run_folder.schema import RunRecord
from mae_transfer.runs.micro_batch import settled
from mae_transfer.runs.record import describe_surroundings, make_origin, norm_batch, write_record
from mae_transfer.runs.same_data import check_same_data
from mae_transfer.runs.same_weights import check_same_weights
from mae_transfer.runs.step_cost import measure_step, takes_batch_norm
from mae_transfer.runs.tasks import task_card

_LOG = logging.getLogger(__name__)


def run_task(fabric: Fabric, task: BaseTask, path: Path, *, resume: bool, eval_only: bool, progress: bool) -> RunRecord:
    """Make one run in the folder `path`; its record."""
    surroundings = describe_surroundings(fabric)
    if eval_only:
        on_rank_zero(fabric, lambda: check_begun(path))
    check_run(fabric, task.config, task, eval_only=eval_only)  # before a plan blames the memory
    task = settled(fabric, task, path, begun=resume or eval_only)
    config: RunConfig = task.config
    schedule = check_run(fabric, config, task, eval_only=eval_only)
    if resume or eval_only:
        task.warnings = [
            *task.warnings,
            *on_rank_zero(fabric, lambda: check_same_data(task, path, eval_only=eval_only)),
        ]
    seed_for_model(config.seed)
    # Also for --eval-only: what the weights file says beside its tensors (mean, std, norm eps) is part of the encoder.
    encoder = first_on_each_node(fabric, task.build_encoder)
    if resume or eval_only:
        _keep_rules(encoder, on_rank_zero(fabric, lambda: read_origin(path / "checkpoints")))
    check_blocks(config, encoder)
    model = task.build_model(encoder)
    if resume or eval_only:
        on_rank_zero(fabric, lambda: check_same_weights(encoder, path))
    with open_run_folder(fabric, path, config, resume=resume or eval_only) as folder, loader_failures():
        if fabric.is_global_zero:
            _announce(task, encoder, path, restored=eval_only and schedule is not None)
            if config.train.micro_batch_auto and schedule is not None:
                _announce_micro_batch(config, model, fabric.world_size)
        started = time.perf_counter()
        with stop_at_once("stopped by a signal before training; --resume keeps the features that are there"):
            task.prepare(model, fabric, folder, progress)
        prepared = time.perf_counter() - started
        if eval_only and schedule is not None:
            result = _trained(fabric, model, folder, schedule.total)
        elif schedule is None:
            result = _untrained(fabric, model, make_origin(task, encoder, fabric.world_size))
        else:
            origin = make_origin(task, encoder, fabric.world_size)
            workers = config.data.workers
            if fabric.world_size == 1 and config.preset != "smoke":  # a model of several ranks may wait for the others
                _announce_step(fabric, task, model, schedule.total)
            result = train(fabric, task, model, config, folder, workers=workers, resume=resume, origin=origin)
        result = dataclasses.replace(result, seconds=result.seconds + (0 if eval_only and schedule else prepared))
        with (
            stop_at_once("stopped by a signal in the last evaluation; --resume or --eval-only does it again"),
            eval_precision(fabric, config),
        ):
            evaluation = task.evaluate(result.model, fabric, progress)
        skipped = gather_objects(fabric, task.data_summary["skipped_files"])
        record = on_rank_zero(
            fabric, lambda: write_record(task, encoder, result, evaluation, skipped, surroundings, path)
        )
        if config.eval.pictures:
            with stop_at_once("stopped by a signal while drawing pictures, after the record; --eval-only draws them"):
                on_rank_zero(fabric, lambda: _leave_pictures(task, result.model, fabric, evaluation, path))
        return record


def _keep_rules(encoder: Encoder, origin: dict[str, object] | None) -> None:
    """Resample positions as the run did that goes on: its version may have had another rule for these weights.

    UserError for a run that padded its maps to windows by another rule, of which the code is gone.
    """
    told = (origin or {}).get("encoder")
    padding = encoder.spec.window_padding
    if padding and origin and not (isinstance(told, Mapping) and told.get("window_padding") == padding):
        raise UserError(
            f"the run was begun by a version that padded the maps of {encoder.name} as timm does, and this one pads "
            "them as Swin's authors do; begin anew in another --output"
        )
    rule = resampling_of_run(origin or {}) or encoder.spec.pos_resampling
    if rule != encoder.spec.pos_resampling:
        encoder.spec = dataclasses.replace(encoder.spec, pos_resampling=rule)
        encoder.load_report.warnings.append(f"positions are resampled {RULES[rule]}, as in the run that goes on")


@contextmanager
def open_run_folder(
    fabric: Fabric, path: str | Path, config: RunConfig, *, resume: bool = False
) -> Iterator[RunFolder | None]:
    """A RunFolder on rank 0 and None on the others; if it cannot be had, all ranks raise the same UserError."""
    opened: list[RunFolder] = []
    on_rank_zero(fabric, lambda: opened.append(RunFolder(path, config, resume=resume)))
    try:
        yield opened[0] if opened else None
    finally:
        for folder in opened:
            folder.close()


def check_run(fabric: Fabric, config: RunConfig, task: BaseTask, *, eval_only: bool) -> Schedule | None:
    """The schedule of a run, None if it has no training; UserError for lengths and batches that cannot be.

    task: of the run, or of one that reads the same data.
    """
    check_eval_precision(fabric, config)
    task.check_images()
    if not eval_only:
        name = getattr(config, task_card(config.task).option, None)
        check_shard(config, fabric.world_size, task.shards, " ".join(filter(None, (config.task, name))))
    if not task.trains:
        return None
    world_size = 1 if eval_only else fabric.world_size
    schedule = check_plan(config, len(task.train_dataset), world_size)
    if not eval_only and config.train.micro_batch != "auto":  # which is chosen among those that the task takes
        task.check_batches(micro_batch_sizes(config, world_size))
    return schedule


def _trained(fabric: Fabric, model: nn.Module, folder: RunFolder | None, steps: int) -> TrainResult:
    """What the last checkpoint of a finished training holds, loaded into the model."""
    paths = on_rank_zero(fabric, lambda: list_checkpoints(folder.checkpoints) if folder else [])
    if not paths:
        raise UserError("--eval-only: the run folder has no checkpoint yet; leave out --eval-only to train")
    state = load_checkpoint(paths[-1])
    if state["step"] != steps:
        raise UserError(
            f"--eval-only: {paths[-1]} is after step {state['step']} of {steps}; finish the training by --resume first"
        )
    try:
        model.load_state_dict(evaluated_weights(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint {paths[-1]} does not fit this model: {reason}") from error
    _LOG.info("evaluating %s, after step %d", paths[-1], state["step"])
    fabric.to_device(model)
    on_rank_zero(fabric, lambda: up_to(folder.path, steps) if folder else None)
    return TrainResult(
        model=model.eval(),
        steps=state["step"],
        history=history_of(folder.path, state.get("history")).entries() if folder else [],
        seconds=state["seconds"],
        peak_memory=None,
        images_per_second=None,
        origin=state["origin"],
    )


def _untrained(fabric: Fabric, model: nn.Module, origin: dict[str, object]) -> TrainResult:
    """The model of a task that needs no training loop."""
    fabric.to_device(model)
    return TrainResult(
        model=model.eval(),
        steps=0,
        history=[],
        seconds=0.0,
        peak_memory=peak_memory(fabric),
        images_per_second=None,
        origin=origin,
    )


def _announce(task: BaseTask, encoder: Encoder, path: Path, *, restored: bool) -> None:
    """restored: the weights, also of an encoder that started from random ones, are those of the run's checkpoint."""
    _LOG.info("run folder %s", path)
    if task.config.preset == "smoke":
        _LOG.info("smoke preset: a few steps on few images; its numbers mean nothing and stand in a table of their own")
    report = encoder.load_report
    lines = report.lines()
    if restored and report.fingerprint is None:
        rest = [line for line in lines[1:] if not line.startswith("  new: ")]  # of where the run began
        lines = [f"{report.name}: the weights of the run", *rest]
    for line in [*lines, *task.warnings]:
        _LOG.info("%s", line)
    data = task.data_summary
    _LOG.info("data: %s, %d training and %d val images", data["name"], data["train_images"], data["val_images"])


def _announce_micro_batch(config: RunConfig, model: nn.Module, ranks: int) -> None:
    line = f"train.micro_batch=auto: {config.train.micro_batch} images in a forward pass"
    if takes_batch_norm(model):
        images = norm_batch(config, ranks)
        line += (
            f"; batch norm takes its statistics over {images} images of all devices: another number is another recipe"
        )
    _LOG.info("%s", line)


def _announce_step(fabric: Fabric, task: BaseTask, model: nn.Module, steps: int) -> None:
    step = measure_step(task, model, fabric.world_size, on_gpu=fabric.device.type == "cuda")
    if step is not None:
        card = torch.cuda.get_device_properties(fabric.device) if fabric.device.type == "cuda" else None
        for line in step.lines(task.config, steps, *((card.name, card.total_memory) if card else ())):
            _LOG.info("%s", line)


def _leave_pictures(task: BaseTask, model: nn.Module, fabric: Fabric, evaluation: Evaluation, path: Path) -> None:
    """After the record is written: nothing that goes wrong here costs a result."""
    started = time.perf_counter()
    with eval_precision(fabric, task.config):
        pictures = task.draw_pictures(model, fabric, evaluation)
    if pictures:
        write_pictures(path, pictures)
        _LOG.info("pictures: %d in %s, %.1f s", len(pictures), path / FOLDER, time.perf_counter() - started)
