"""One transfer run, from options to a run record: config -> backbone -> task model -> loop -> evaluation -> record.

Everything that can be wrong with the input is found before the output folder is made.
"""

import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from mae_transfer.backbones.checkpoints.own import facts_of
from mae_transfer.backbones.flops import encoder_flops
from mae_transfer.backbones.load import load_backbone
from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.config.load import load_config
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.distributed import (
    check_eval_precision,
    eval_precision,
    first_on_each_node,
    gather_objects,
    make_fabric,
    on_rank_zero,
    shut_down,
)
from mae_transfer.engine.loop import TrainResult, check_plan, micro_batch_sizes, peak_memory, train
from mae_transfer.engine.progress import console
from mae_transfer.engine.rng import seed_for_model
from mae_transfer.engine.schedule import Schedule
from mae_transfer.engine.signals import stop_at_once
from mae_transfer.engine.task import Task
from mae_transfer.errors import UserError
from mae_transfer.run_folder.checkpoints import evaluated_weights, list_checkpoints, load_checkpoint
from mae_transfer.run_folder.folder import RESUMABLE, RunFolder, epoch_history, open_run_folder, read_metrics
from mae_transfer.run_folder.pictures import FOLDER, write_pictures
from mae_transfer.run_folder.record import flatten, make_protocol, protocol_id
from mae_transfer.runs.record import describe_backbone, describe_surroundings, new_run_id, write_record
from mae_transfer.runs.tasks import make_task

_LOG = logging.getLogger(__name__)
RUNS = Path("results/runs")
DATA_PATHS = (
    *("data.root=", "data.train_json=", "data.train_images=", "data.val_json=", "data.val_images="),
    *("data.train_list=", "data.val_list=", "data.train_masks=", "data.val_masks="),
)


def run_transfer(
    task: str,
    backbone: str,
    *,
    protocol: str | None = None,
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    data: str | Path | None = None,
    preset: str = "full",
    subset: int | None = None,
    seed: int | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    eval_only: bool = False,
    engine: str | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """Train and evaluate one backbone on one task; the same as `tools/run_transfer.py` with the options of these names.

    Args:
        overrides: `key=value` strings for any field of the configuration.
        progress: show progress on standard error.

    Returns:
        The run record, which is also written to `<output>/record.json`; `record["metrics"]` is a flat map.

    Raises:
        UserError: bad input, with one line that says what, where and what to do.
        StoppedBySignal: after SIGTERM or SIGUSR1, with a checkpoint saved.
        DivergedError: a loss or gradient was not finite.
    """
    config = resolve_config(
        task,
        backbone,
        protocol=protocol,
        checkpoint=checkpoint,
        weights=weights,
        data=data,
        preset=preset,
        subset=subset,
        seed=seed,
        engine=engine,
        device=device,
        overrides=overrides,
    )
    path = Path(output) if output is not None else default_output(config)
    fabric = make_fabric(config.device, config.train.precision)
    with console() if progress else nullcontext():
        record = run_task(fabric, make_task(config), path, resume=resume, eval_only=eval_only, progress=progress)
    shut_down()
    return record


def resolve_config(
    task: str,
    backbone: str,
    *,
    protocol: str | None = None,
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    data: str | Path | None = None,
    preset: str = "full",
    subset: int | None = None,
    seed: int | None = None,
    engine: str | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> RunConfig:
    """The configuration that `run_transfer` resolves from the same options."""
    if task == "pretrain":
        raise UserError("pre-training is no task to transfer to; run tools/run_pretrain.py --method mae")
    if data is None and preset == "smoke" and not any(text.startswith(DATA_PATHS) for text in overrides):
        data = "synthetic"
    options = {
        "backbone.checkpoint": None if checkpoint is None else str(checkpoint),
        "backbone.weights": weights,
        "data.root": None if data is None else str(data),
        "subset": subset,
        "seed": seed,
        "engine": engine,
        "device": device,
    }
    config = load_config(task, backbone, protocol=protocol, preset=preset, options=options, overrides=overrides)
    if config.engine == "detectron2":
        _check_detectron2(config.task)
    return config


def _check_detectron2(task: str) -> None:
    """UserError unless the engine detectron2 can be used for the task."""
    if task != "coco":
        raise UserError(f"--engine detectron2 is a detector's, for --task coco; leave it out for {task}")
    try:
        importlib.import_module("detectron2.modeling")
    except ImportError as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"--engine detectron2: the package cannot be imported ({reason}); install it by its own guide, "
            "https://detectron2.readthedocs.io/tutorials/install.html, or leave out --engine"
        ) from error


def default_output(config: RunConfig) -> Path:
    """A folder under results/runs/ named by what is run: the same options give the same one, so --resume finds it."""
    chosen = {key: value for key, value in flatten(config.model_dump(mode="json")).items() if key not in RESUMABLE}
    chosen["data.root"] = config.data.root  # type: ignore[attr-defined]
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]
    name = config.backbone.name.replace(":", "-").replace("/", "-")
    what = "-".join(filter(None, (config.task, run_label(config))))
    return RUNS / f"{what}-{name}-{config.preset}-seed{config.seed}-{digest}"


def run_label(config: RunConfig) -> str:
    """What tells the runs of a series apart: protocol, blocks, shots and draw, or the method of a pre-training; empty
    for a task that has none."""
    values = flatten(config.model_dump(mode="json"))
    if "protocol" not in values:
        return str(values.get("method", ""))
    blocks, shots = values["model.blocks"], values["data.shots"]
    return (
        values["protocol"]
        + (f"-{blocks:g}blocks" if blocks is not None else "")
        + (f"-{shots}shot-draw{values['data.draw']}" if shots is not None else "")
    )


def check_run(fabric: Fabric, task: Task, *, eval_only: bool) -> Schedule | None:
    """The schedule of a run, None if it has no training; UserError for lengths and batches that cannot be."""
    check_eval_precision(fabric, task.config)
    if not task.trains:
        return None
    world_size = 1 if eval_only else fabric.world_size
    schedule = check_plan(task.config, len(task.train_dataset), world_size)
    if not eval_only:
        task.check_batches(micro_batch_sizes(task.config, world_size))
    return schedule


def run_task(
    fabric: Fabric,
    task: Task,
    path: Path,
    *,
    resume: bool,
    eval_only: bool,
    progress: bool,
    make_encoder: Callable[[RunConfig, Task], ViTEncoder] | None = None,
) -> dict[str, Any]:
    """One run in the folder `path`; its record.

    make_encoder: instead of `build_encoder`, for a pre-training, which makes an encoder of its own.
    """
    config: RunConfig = task.config
    trained_here, make_encoder = make_encoder is not None, make_encoder or build_encoder
    surroundings = describe_surroundings(fabric)
    schedule = check_run(fabric, task, eval_only=eval_only)
    seed_for_model(config.seed)
    # Also for --eval-only: what the weights file says beside its tensors (mean, std, norm eps) is part of the encoder.
    encoder = first_on_each_node(fabric, lambda: make_encoder(config, task))
    model = task.build_model(encoder)
    with open_run_folder(fabric, path, config.model_dump(mode="json"), resume=resume or eval_only) as folder:
        if fabric.is_global_zero:
            _announce(config, task, encoder, path)
        started = time.perf_counter()
        with stop_at_once("stopped by a signal before training; --resume keeps the features that are there"):
            task.prepare(model, fabric, folder, progress)
        prepared = time.perf_counter() - started
        if eval_only and schedule is not None:
            result = _trained(fabric, model, folder, schedule.total)
        else:
            norm_batch = min(config.train.micro_batch * fabric.world_size, config.train.global_batch)
            fingerprint = task.data_summary["fingerprint"]
            if trained_here:
                encoder.load_report.trained_as = protocol_id(
                    make_protocol(config.model_dump(mode="json"), data_fingerprint=fingerprint, norm_batch=norm_batch)
                )
            origin = {
                "run_id": new_run_id(),
                "backbone": describe_backbone(config, encoder),
                "encoder": facts_of(encoder),
                "norm_batch": norm_batch,
                "data_fingerprint": fingerprint,
            }
            workers = task.config.data.workers
            if schedule is None:
                result = _untrained(fabric, model, origin)
            else:
                result = train(fabric, task, model, config, folder, workers=workers, resume=resume, origin=origin)
            result = dataclasses.replace(result, seconds=result.seconds + prepared)
        with (
            stop_at_once("stopped by a signal in the last evaluation; --resume or --eval-only does it again"),
            eval_precision(fabric, config),
        ):
            metrics = task.evaluate(result.model, fabric, progress)
        skipped = gather_objects(fabric, task.data_summary["skipped_files"])
        data = task.data_summary | {"skipped_files": sorted({name for names in skipped for name in names})}
        flops = encoder_flops(encoder)
        record = on_rank_zero(fabric, lambda: write_record(task, data, result, metrics, flops, surroundings, path))
        if config.eval.pictures:
            with stop_at_once("stopped by a signal while drawing pictures, after the record; --eval-only draws them"):
                on_rank_zero(fabric, lambda: _leave_pictures(task, result.model, fabric, path))
        return record


def build_encoder(config: RunConfig, task: Task) -> ViTEncoder:
    """The encoder of a configuration, as the task wants it, with its weights loaded."""
    backbone = config.backbone
    encoder = load_backbone(
        backbone.name,
        checkpoint=backbone.checkpoint,
        checkpoint_key=backbone.checkpoint_key,
        weights=backbone.weights,
        window_size=backbone.window_size,
        num_global_blocks=backbone.num_global_blocks,
        rel_pos=backbone.rel_pos,
        drop_path=backbone.drop_path,
        grad_checkpointing=backbone.grad_checkpointing,
        **task.encoder_options(resolve(backbone.name).patch_size),
    )
    if encoder.spec.in_chans != 3:
        raise UserError(
            f"checkpoint {backbone.checkpoint}: its images have {encoder.spec.in_chans} channels; the tasks have RGB "
            "images only"
        )
    return encoder


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
    history = epoch_history(read_metrics(folder.path)) if folder else []
    return TrainResult(
        model=model.eval(),
        steps=state["step"],
        history=history,
        seconds=state["seconds"],
        peak_memory=None,
        images_per_second=None,
        origin=state["origin"],
    )


def _untrained(fabric: Fabric, model: nn.Module, origin: dict[str, Any]) -> TrainResult:
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


def _announce(config: RunConfig, task: Task, encoder: ViTEncoder, path: Path) -> None:
    _LOG.info("run folder %s", path)
    if config.preset == "smoke":
        _LOG.info("smoke preset: a few steps on few images; its numbers mean nothing and stand in a table of their own")
    for line in [*encoder.load_report.lines(), *task.warnings]:
        _LOG.info("%s", line)
    data = task.data_summary
    _LOG.info("data: %s, %d training and %d val images", data["name"], data["train_images"], data["val_images"])


def _leave_pictures(task: Task, model: nn.Module, fabric: Fabric, path: Path) -> None:
    """After the record is written: nothing that goes wrong here costs a result."""
    started = time.perf_counter()
    with eval_precision(fabric, task.config):
        pictures = task.draw_pictures(model, fabric)
    if pictures:
        write_pictures(path, pictures)
        _LOG.info("pictures: %d in %s, %.1f s", len(pictures), path / FOLDER, time.perf_counter() - started)
