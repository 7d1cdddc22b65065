"""One folder a task, with the same file names in each: config, data, transforms, model, evaluate, task."""

import importlib
from typing import TYPE_CHECKING

from mae_transfer.config import RunConfig

if TYPE_CHECKING:
    from mae_transfer.tasks.base import Task

TASK_CLASSES = {
    "ade20k": "mae_transfer.tasks.ade20k.task:Ade20kTask",
    "coco": "mae_transfer.tasks.coco.task:CocoTask",
}


def make_task(config: RunConfig) -> "Task":
    """The task of a configuration, with its data read and checked; UserError for anything wrong with them."""
    module, name = TASK_CLASSES[config.task].split(":")
    return getattr(importlib.import_module(module), name)(config)
