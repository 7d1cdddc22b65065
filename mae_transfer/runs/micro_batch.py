"""`train.micro_batch: auto`: the largest micro-batch that fits the GPU by the plan, chosen once for a run."""

from pathlib import Path

import torch
from lightning_fabric import Fabric

from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.distributed import gather_objects, on_rank_zero
from mae_transfer.engine.task import BaseTask
from mae_transfer.errors import UserError
from mae_transfer.run_folder.folder import stored_config
from mae_transfer.runs.costs import largest_micro_batch, with_new_weights
from mae_transfer.runs.step_cost import GIB, reserve
from mae_transfer.runs.tasks import make_task


def settled(fabric: Fabric, task: BaseTask, path: Path, *, begun: bool) -> BaseTask:
    """The task with a number in the place of `auto`, the same on every rank; the task itself if it has one.

    Args:
        path: folder of the run.
        begun: the run goes on or is evaluated again, with the number that it has.

    Raises:
        UserError: a device without memory of its own, a model that cannot be planned, or no micro-batch that fits.
    """
    config: RunConfig = task.config
    if config.train.micro_batch != "auto":
        return task
    images = on_rank_zero(fabric, lambda: _of_run(path)) if begun else None
    if images is None:
        images = _planned(fabric, task) if task.trains else 1
    return make_task(config.model_copy(update={"train": config.train.with_micro_batch(images, auto=True)}), task)


def device_memory(device: torch.device) -> int:
    """Bytes of a GPU; UserError for a CPU, whose memory belongs to all that runs on the machine."""
    if device.type != "cuda":
        raise UserError(
            "train.micro_batch=auto takes what fits a GPU's memory, and this run is on a CPU; give a number, such as "
            "train.micro_batch=4"
        )
    return torch.cuda.get_device_properties(device).total_memory


def _of_run(path: Path) -> int | None:
    """What was chosen for the run in a folder, if anything was."""
    if not (path / "config.yaml").exists():
        return None
    stored = stored_config(path)
    images = stored.get("train.micro_batch")
    return images if stored.get("train.micro_batch_auto") is True and type(images) is int else None


def _planned(fabric: Fabric, task: BaseTask) -> int:
    memory = min(gather_objects(fabric, device_memory(fabric.device)))
    plain = make_task(with_new_weights(task.config), task)  # on every rank: they may read data together

    def choose() -> int:
        try:
            images = largest_micro_batch(plain, gpus=fabric.world_size, memory=memory)
        except UserError:
            raise
        except Exception as error:  # an encoder of a user's own, under fake arithmetic
            raise UserError(
                f"train.micro_batch=auto: no plan of this model ({type(error).__name__}: {error}); give a number"
            ) from error
        if not images:
            raise UserError(
                f"train.micro_batch=auto: no micro-batch that this recipe can train on fits {memory / GIB:.3g} GiB, "
                f"{reserve(plain):.0%} of them kept free; try backbone.grad_checkpointing=true, or give a number"
            )
        return images

    return on_rank_zero(fabric, choose)
