"""Going on from the newest checkpoint of a run."""

import logging
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mae_transfer.engine.distributed import on_rank_zero
from mae_transfer.engine.shard import part_of
from mae_transfer.errors import UserError
from mae_transfer.run_folder.checkpoints import list_checkpoints, load_checkpoint
from mae_transfer.run_folder.folder import RunFolder

_LOG = logging.getLogger(__name__)


def restore(
    fabric: Fabric,
    folder: RunFolder | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: AveragedModel | None,
    precision: Any,
    images: int,
    origin: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Load the newest checkpoint on every rank; its content, or None if there is none yet."""
    paths = on_rank_zero(fabric, lambda: list_checkpoints(folder.checkpoints) if folder else [])
    if not paths:
        _LOG.info("no checkpoint yet: starting from step 0")
        return None
    path = paths[-1]
    state = load_checkpoint(path)
    before, now = (state["origin"] or {}).get("norm_batch"), (origin or {}).get("norm_batch")
    if before != now:
        raise UserError(
            f"checkpoint {path} is of a run with batch norm over images: {before}, now it is {now}; resume with the "
            "same"
        )
    if state["sampler"]["images"] != images:
        raise UserError(
            f"checkpoint {path} was trained on {state['sampler']['images']} images, the training set now has {images}; "
            "resume with the same data"
        )
    names = [group["names"] for group in optimizer.param_groups]
    if [group["names"] for group in state["optimizer"]["param_groups"]] != names:
        raise UserError(
            f"checkpoint {path} has other parameter groups than this model; resume with the code it is from"
        )
    try:
        _load(model, state["model"])
        if ema:
            _load(ema, state["ema"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint {path} does not fit this model: {reason}") from error
    for saved, own in zip(state["optimizer"]["param_groups"], optimizer.param_groups, strict=True):
        if "fused" in own:  # how the update is computed is this process's, on this device
            saved["fused"] = own["fused"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in state["optimizer"]["state"].items():
        of = parameters[number]
        values.update({key: part_of(value, of) for key, value in values.items() if isinstance(value, Tensor)})
    optimizer.load_state_dict(state["optimizer"])
    precision.load_state_dict(state["scaler"])
    _LOG.info("resuming after step %d from %s", state["step"], path)
    return state


def _load(module: nn.Module, state: dict[str, Tensor]) -> None:
    own = module.state_dict()
    module.load_state_dict({key: part_of(value, own[key]) if key in own else value for key, value in state.items()})
