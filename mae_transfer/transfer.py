"""One transfer run, from options to a run record: config -> backbone -> task model -> loop -> evaluation -> record.

Everything that can be wrong with the input is found before the output folder is made.
"""

import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
import logging
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mae_transfer.backbones.load import load_backbone
from mae_transfer.backbones.registry import get_spec
from mae_transfer.config import RunConfig
from mae_transfer.config_loading import dump_config, load_config
from mae_transfer.engine.checkpoint import load_checkpoint, newest_checkpoint
from mae_transfer.engine.distributed import make_fabric
from mae_transfer.engine.loop import TrainResult, train
from mae_transfer.engine.run_folder import RunFolder
from mae_transfer.errors import UserError
from mae_transfer.results.record import SCHEMA, make_protocol, protocol_id, write_json
from mae_transfer.tasks.base import Task

logger = logging.getLogger(__name__)

TASK_CLASSES = {"coco": "mae_transfer.tasks.coco.task:CocoTask"}
VERSIONS_OF = ("torch", "torchvision", "timm", "lightning-fabric", "faster-coco-eval", "numpy", "pillow")


def run_transfer(
    task: str,
    backbone: str,
    *,
    checkpoint: str | None = None,
    weights: str | None = None,
    data: str | None = None,
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

    Returns:
        The run record, which is also written to `<output>/record.json`; `record["metrics"]` is a flat map.

    Raises:
        UserError: bad input, with one line that says what, where and what to do.
        StoppedBySignal: after SIGTERM or SIGUSR1, with a checkpoint saved.
        DivergedError: a loss or gradient was not finite.
    """
    model_file = checkpoint if eval_only else None
    config = resolve_config(
        task,
        backbone,
        checkpoint=None if eval_only else checkpoint,
        weights=weights,
        data=data,
        preset=preset,
        subset=subset,
        seed=seed,
        engine=engine,
        device=device,
        overrides=overrides,
    )
