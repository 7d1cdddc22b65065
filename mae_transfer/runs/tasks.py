"""One folder a task, with the same file names in each: config, data, transforms, model, evaluate, task."""

import importlib
from typing import TYPE_CHECKING

from mae_transfer.config.sections import RunConfig

if TYPE_CHECKING:
    from mae_transfer.engine.task import Task

CLASSIFICATION = "mae_transfer.tasks.classification.task:ClassificationTask"

TASK_CLASSES = {
    "ade20k": "mae_transfer.tasks.ade20k.task:Ade20kTask",
    "coco": "mae_transfer.tasks.coco.task:CocoTask",
    "folder": CLASSIFICATION,
    "imagenet": CLASSIFICATION,
    "inat2017": CLASSIFICATION,
    "inat2018": CLASSIFICATION,
    "inat2019": CLASSIFICATION,
    "inat2021": CLASSIFICATION,
    "places205": CLASSIFICATION,
    "places365": CLASSIFICATION,
}


def make_task(config: RunConfig, like: "Task | None" = None) -> "Task":
    """The task of a configuration, with its data read and checked; UserError for anything wrong with them.

    like: the task of another run of the same series, whose list of images need not be read again.
    """
    path = TASK_CLASSES[config.task]
    module, name = path.split(":")
    options = {"like": like} if path == CLASSIFICATION and like is not None else {}
    return getattr(importlib.import_module(module), name)(config, **options)
