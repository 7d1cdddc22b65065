"""What the fork server of `processes.py` imports once for all of its processes: what most runs import."""

import importlib
from contextlib import suppress

from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.protocols.upernet import import_heads

for module in ("cli.transfer", "cli.pretrain", "runs.series", "tasks.coco.task", "tasks.classification.task"):
    importlib.import_module(f"mae_transfer.{module}")
with suppress(UserError):  # that they are missing is for the tests that need them
    import_heads()
