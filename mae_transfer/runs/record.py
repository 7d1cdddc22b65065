"""The run record as a run writes it: what it ran on, with which weights, at what cost, and what came out."""

import datetime
import importlib.metadata
import logging
import platform
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.loop import TrainResult
from mae_transfer.engine.task import Task
from mae_transfer.run_folder.per_image import write_per_image
from mae_transfer.run_folder.record import SCHEMA, make_protocol, protocol_id, read_record, write_json

_LOG = logging.getLogger(__name__)
VERSIONS_OF = (
    *("torch", "torchvision", "timm", "lightning-fabric", "faster-coco-eval", "scikit-learn", "numpy", "pillow"),
    *("onedl-mmsegmentation", "onedl-mmcv", "opencv-python", "opencv-python-headless"),
)


def describe_backbone(config: RunConfig, encoder: ViTEncoder) -> dict[str, Any]:
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


def describe_surroundings(fabric: Fabric) -> dict[str, Any]:
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


def write_record(
    task: Task,
    data: dict[str, Any],
    result: TrainResult,
    metrics: dict[str, float],
    flops: int,
    surroundings: dict[str, Any],
    path: Path,
) -> dict[str, Any]:
    """Write `record.json`, and `per_image.npz` before it, into the run folder `path`; rank 0 does it."""
    config: RunConfig = task.config
    origin = result.origin or {}
    protocol = make_protocol(
        config.model_dump(mode="json"), data_fingerprint=data["fingerprint"], norm_batch=origin["norm_batch"]
    )
    cost = {
        "wall_seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory,
        "images_per_second": result.images_per_second,
        **surroundings,
    }
    file = path / "record.json"
    if result.images_per_second is None and file.exists():
        # This process trained nothing: what training cost, and on what, stands in the record that it replaces.
        before = read_record(file)
        cost = {key: before.get(key, value) for key, value in cost.items()}
    per_image = task.per_image  # written before the record, which holds its hash
    record = {
        "schema": SCHEMA,
        "run_id": origin["run_id"],
        "task": config.task,
        "recipe": config.recipe,
        "preset": config.preset,
        "engine": config.engine,
        "seed": config.seed,
        "backbone": origin["backbone"],
        "metrics": metrics,
        "history": result.history,
        "steps": result.steps,
        "data": data,
        "protocol_id": protocol_id(protocol),
        "protocol": protocol,
        "parameters": sum(parameter.numel() for parameter in result.model.parameters()),
        "encoder_flops": flops,
        "per_image": None if per_image is None else write_per_image(path, per_image),
        **cost,
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(file, record)
    _LOG.info("%s", "  ".join(f"{name} {value:.2f}" for name, value in metrics.items() if "/" not in name))
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
