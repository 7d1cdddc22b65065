"""The run record as a run writes it: what it ran on, with which weights, at what cost, and what came out."""

import datetime
import importlib.metadata
import logging
import platform
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import torch
from lightning_fabric import Fabric

from mae_transfer.backbones.checkpoints.own import facts_of
from mae_transfer.backbones.encoder import Encoder
from mae_transfer.backbones.flops import encoder_flops
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.loop import TrainResult
from mae_transfer.engine.task import BaseTask, Evaluation
from mae_transfer.run_folder.per_image import write_per_image
from mae_transfer.run_folder.record import read_record, write_json
from mae_transfer.run_folder.schema import SCHEMA, RunRecord
from mae_transfer.run_folder.settings import settings_id
from mae_transfer.runs.sets_beside import keep_sets
from mae_transfer.runs.settings import make_settings
from mae_transfer.runs.tasks import task_card

_LOG = logging.getLogger(__name__)
VERSIONS_OF = (
    *("torch", "torchvision", "timm", "lightning-fabric", "pycocotools", "scikit-learn", "numpy", "pillow"),
    *("onedl-mmsegmentation", "onedl-mmcv", "opencv-python", "opencv-python-headless"),
)


def describe_backbone(config: RunConfig, encoder: Encoder) -> dict[str, object]:
    """What the record says of the encoder and its weights."""
    spec = encoder.spec
    return {
        "name": config.backbone.name,
        "init": "random" if config.backbone.weights == "random" else encoder.load_report.trained_by or spec.init,
        "size": spec.size or f"{spec.embed_dim}x{spec.depth}",
        "weights": config.backbone.weights,
        "checkpoint": config.backbone.checkpoint,
        "fingerprint": encoder.load_report.fingerprint,
        "trained_as": encoder.load_report.trained_as,
        "load_report": encoder.load_report.lines(),
    }


def new_run_id() -> str:
    """Starts with the time, so that ids sort in the order of the runs' starts."""
    return f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"


def describe_surroundings(fabric: Fabric) -> dict[str, object]:
    """Code, machine and command of this process, taken at its start: the code on disk may change during a long run."""
    cuda = fabric.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(fabric.device) if cuda else f"cpu ({torch.get_num_threads()} threads)",
        "world_size": fabric.world_size,
        "commit": commit(),
        "versions": {"python": platform.python_version()} | installed_versions(),
        "command": [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]],
    }


def installed_versions() -> dict[str, str]:
    """Of `VERSIONS_OF`, those that are there: one of OpenCV's two packages is enough, and no task needs all."""
    found = {}
    for name in VERSIONS_OF:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if "detectron2" in sys.modules:  # loaded for --engine detectron2 alone; may be a source tree, without metadata
        found["detectron2"] = sys.modules["detectron2"].__version__
    return found


def norm_batch(config: RunConfig, world_size: int) -> int:
    """The images over which batch norm takes its statistics in training."""
    return min(config.train.micro_batch_size * world_size, config.train.global_batch)


def make_origin(task: BaseTask, encoder: Encoder, world_size: int) -> dict[str, object]:
    """Plain values that name a run and its encoder, kept in every checkpoint; a resumed run keeps its first.

    An encoder that is trained here from new weights gets the settings id of its training as its name: its seeds may
    share a cell of a table.
    """
    config: RunConfig = task.config
    images = norm_batch(config, world_size)
    data = task.data_summary
    if not task_card(config.task).transfers:
        settings = make_settings(config, data_fingerprint=data["fingerprint"], norm_batch=images)
        encoder.load_report.trained_as = settings_id(settings)
    return {
        "run_id": new_run_id(),
        "backbone": describe_backbone(config, encoder),
        "encoder": facts_of(encoder),
        "norm_batch": images,
        "data_fingerprint": data["fingerprint"],
        "data_parts": data.get("parts"),
    }


def write_record(
    task: BaseTask,
    encoder: Encoder,
    result: TrainResult,
    evaluation: Evaluation,
    skipped: Sequence[Sequence[str]],
    surroundings: Mapping[str, object],
    path: Path,
) -> RunRecord:
    """Write `record.json`, and `per_image.npz` before it, into the run folder `path`; rank 0 does it.

    skipped: for each rank the files that it could not decode.
    """
    config: RunConfig = task.config
    card, origin = task_card(config.task), result.origin or {}
    data = task.data_summary | {"skipped_files": sorted({name for names in skipped for name in names})}
    # Those of the training, which `check_same_data` compared with today's: a run of an earlier version keeps its kind.
    data |= {"fingerprint": origin["data_fingerprint"], "parts": origin.get("data_parts")}
    if evaluation.head is not None:
        data["selected_head"] = evaluation.head
    known = {"data_fingerprint": data["fingerprint"], "norm_batch": origin["norm_batch"]}
    settings = make_settings(config, **known, spec=encoder.spec)
    cost = {
        "wall_seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory,
        "images_per_second": result.images_per_second,
        "micro_batch": config.train.micro_batch if task.trains else None,
        "micro_batch_auto": config.train.micro_batch_auto and task.trains,
        **surroundings,
    }
    file, before = path / "record.json", None
    if result.images_per_second is None and file.exists():
        # This process trained nothing: what training cost, and on what, stands in the record that it replaces.
        before = read_record(file)
        cost = {key: before.get(key, value) for key, value in cost.items()}
    per_image = evaluation.per_image  # written before the record, which holds its hash
    content = {
        "schema": SCHEMA,
        "run_id": origin["run_id"],
        **card.describe(),
        "row": card.row(getattr(config, card.option, None)),
        "recipe": config.recipe,
        "preset": config.preset,
        "seed": config.seed,
        "backbone": origin["backbone"],
        "metrics": evaluation.metrics,
        "history": result.history,
        "steps": result.steps,
        "data": data,
        "settings_id": settings_id(settings),
        "settings": settings,
        "parameters": sum(parameter.numel() for parameter in result.model.parameters()),
        "encoder_flops": encoder_flops(encoder),
        "per_image": None if per_image is None else write_per_image(path, per_image),
        **cost,
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    record = cast(RunRecord, content)
    lines = [] if before is None else keep_sets(record, before)
    write_json(file, record)
    for line in lines:
        _LOG.info("%s", line)
    shown = {name: value for name, value in evaluation.metrics.items() if "/" not in name}
    _LOG.info("%s", "  ".join(f"{name} {value:.2f}" for name, value in shown.items()))
    _LOG.info("record: %s", file)
    return record


def commit() -> str | None:
    """The git commit of this code, with '+changes' if the tree has any; None outside a git checkout."""
    try:
        here = Path(__file__).parent
        git = ["git", "-C", str(here)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if status.stdout.strip() else "")
