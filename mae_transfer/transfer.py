"""One transfer run, from options to a run record: config -> backbone -> task model -> loop -> evaluation -> record.

Everything that can be wrong with the input is found before the output folder is made.
"""

import datetime
import hashlib
import importlib.metadata
import json
import logging
import platform
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from mae_transfer.backbones.load import load_backbone
from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.config import RunConfig
from mae_transfer.config_loading import load_config
from mae_transfer.engine.checkpoint import evaluated_weights, list_checkpoints, load_checkpoint
from mae_transfer.engine.distributed import make_fabric, on_rank_zero, shut_down
from mae_transfer.engine.loop import TrainResult, check_plan, train
from mae_transfer.engine.progress import attach_console
from mae_transfer.engine.rng import seed_for_model
from mae_transfer.engine.run_folder import RunFolder, open_run_folder
from mae_transfer.errors import UserError
from mae_transfer.results.record import SCHEMA, make_protocol, protocol_id, write_json
from mae_transfer.tasks import make_task

_LOG = logging.getLogger(__name__)
RUNS = Path("results/runs")
VERSIONS_OF = ("torch", "torchvision", "timm", "lightning-fabric", "faster-coco-eval", "numpy", "pillow")


def run_transfer(
    task: str,
    backbone: str,
    *,
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
        checkpoint=None if eval_only else checkpoint,
        weights="random" if eval_only else weights,
        data=data,
        preset=preset,
        subset=subset,
        seed=seed,
        engine=engine,
        device=device,
        overrides=overrides,
    )
    if config.engine == "detectron2":
        raise UserError("engine detectron2 is not supported by this version; use --engine torchvision")
    trained_model = Path(checkpoint) if eval_only and checkpoint is not None else None
    path = Path(output) if output is not None else default_output(config, trained_model)
    if progress:
        attach_console()
    fabric = make_fabric(config.device, config.train.precision)
    record = _run(fabric, config, path, resume=resume, eval_only=eval_only, trained_model=trained_model, progress=progress)
    shut_down()
    return record


def resolve_config(
    task: str,
    backbone: str,
    *,
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
    if data is None and preset == "smoke" and not any(text.startswith("data.") for text in overrides):
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
    return load_config(task, backbone, preset=preset, options=options, overrides=overrides)


def default_output(config: RunConfig, trained_model: Path | None = None) -> Path:
    """A folder under results/runs/ named by what is run: the same options give the same folder, so --resume finds it."""
    chosen = config.model_dump(mode="json") | {"trained_model": str(trained_model) if trained_model else None}
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]
    name = config.backbone.name.replace(":", "-").replace("/", "-")
    return RUNS / f"{config.task}-{name}-{config.preset}-seed{config.seed}-{digest}"


def _run(
    fabric: Fabric,
    config: RunConfig,
    path: Path,
    *,
    resume: bool,
    eval_only: bool,
    trained_model: Path | None,
    progress: bool,
) -> dict[str, Any]:
    task = make_task(config)
    check_plan(config, len(task.train_dataset), fabric.world_size)
    seed_for_model(config.seed)
    with fabric.rank_zero_first(local=True):  # one process per node downloads, the others find it in the cache
        encoder = build_encoder(config)
    model = task.build_model(encoder)
    plain = config.model_dump(mode="json")
    in_place = eval_only and trained_model is None
    with open_run_folder(fabric, path, plain, resume=resume or in_place) as folder:
        if fabric.is_global_zero:
            _announce(config, task, encoder, path)
        if eval_only:
            result = _trained(fabric, model, trained_model, folder)
        else:
            workers = config.data.workers  # type: ignore[attr-defined]
            result = train(fabric, task, model, config, folder, workers=workers, resume=resume)
        metrics = task.evaluate(result.model, fabric, progress and fabric.is_global_zero)
        return on_rank_zero(fabric, lambda: _write_record(fabric, config, task, encoder, result, metrics, path))


def build_encoder(config: RunConfig) -> ViTEncoder:
    """The encoder of a configuration, with its weights loaded."""
    backbone = config.backbone
    return load_backbone(
        backbone.name,
        checkpoint=backbone.checkpoint,
        weights=backbone.weights,
        img_size=config.data.image_size,  # type: ignore[attr-defined]
        window_size=backbone.window_size,
        num_global_blocks=backbone.num_global_blocks,
        rel_pos=backbone.rel_pos,
        drop_path=backbone.drop_path,
        grad_checkpointing=backbone.grad_checkpointing,
    )


def _trained(fabric: Fabric, model: nn.Module, trained_model: Path | None, folder: RunFolder | None) -> TrainResult:
    """The model of a checkpoint of this tool: the newest of the run folder, or the file that was named."""

    def find() -> Path:
        assert folder is not None
        if trained_model is not None:
            return trained_model
        found = list_checkpoints(folder.checkpoints)
        if not found:
            raise UserError(f"--eval-only: {folder.path} has no checkpoint yet; train first, or name one by --checkpoint")
        return found[-1]

    path = on_rank_zero(fabric, find)
    state = load_checkpoint(path)
    try:
        model.load_state_dict(evaluated_weights(state))
    except RuntimeError as error:
        raise UserError(f"checkpoint {path} does not fit this model: {' '.join(str(error).split())[:300]}") from error
    _LOG.info("evaluating %s, after step %d", path, state["step"])
    fabric.to_device(model)
    return TrainResult(model.eval(), state["step"], [], state["seconds"], 0, None)


def _announce(config: RunConfig, task: Any, encoder: ViTEncoder, path: Path) -> None:
    _LOG.info("run folder %s", path)
    if config.preset == "smoke":
        _LOG.info("smoke preset: a few steps on few images; its numbers mean nothing and never share a table with real ones")
    for line in [*encoder.load_report.lines(), *task.warnings]:
        _LOG.info("%s", line)
    summary = task.data_summary
    _LOG.info("data: %s, %d training and %d val images", summary["name"], summary["train_images"], summary["val_images"])


def _write_record(
    fabric: Fabric,
    config: RunConfig,
    task: Any,
    encoder: ViTEncoder,
    result: TrainResult,
    metrics: dict[str, float],
    path: Path,
) -> dict[str, Any]:
    data = task.data_summary
    protocol = make_protocol(
        config.model_dump(mode="json"),
        data_fingerprint=data["fingerprint"],
        norm_batch=min(config.train.micro_batch * fabric.world_size, config.train.global_batch),
    )
    spec = resolve(config.backbone.name)
    record = {
        "schema": SCHEMA,
        "run_id": run_id(path),
        "task": config.task,
        "recipe": config.recipe,
        "preset": config.preset,
        "engine": config.engine,
        "seed": config.seed,
        "backbone": {
            "name": config.backbone.name,
            "init": "random" if config.backbone.weights == "random" else spec.init,
            "size": spec.size or f"{spec.embed_dim}x{spec.depth}",
            "weights": config.backbone.weights,
            "checkpoint": config.backbone.checkpoint,
            "fingerprint": encoder.load_report.fingerprint,
            "load": encoder.load_report.lines(),
        },
        "metrics": metrics,
        "history": result.history,
        "steps": result.steps,
        "data": data | {"skipped_images": task.skipped_images},
        "protocol_id": protocol_id(protocol),
        "protocol": protocol,
        "device": torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else platform.processor() or "cpu",
        "world_size": fabric.world_size,
        "wall_seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory,
        "images_per_second": result.images_per_second,
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in VERSIONS_OF},
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
    }
    write_json(path / "record.json", record)
    _LOG.info("%s", "  ".join(f"{name} {value:.2f}" for name, value in metrics.items() if "/" not in name))
    _LOG.info("record: %s", path / "record.json")
    return record
