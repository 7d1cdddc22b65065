"""Published weights by timm's hub id: from the local cache without touching the network, else downloaded.

timm itself reads the file and fits it strictly to its own model (so npz, CLIP and other sources are its job); the state
dict that results goes through the project's reader and audit like any file.
"""

from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from huggingface_hub import errors
from safetensors import SafetensorError

from mae_transfer.backbones.registry import Spec
from mae_transfer.errors import UserError

FILES = ("model.safetensors", "pytorch_model.bin")
TIMEOUT = 10.0
"""Seconds to wait for the hub's first answer. hf_hub_download by itself retries for about a minute when offline."""


def published_weights(spec: Spec) -> tuple[dict[str, torch.Tensor], str]:
    """State dict in timm's naming and where it is from; raises UserError with what to pass if it cannot be had."""
    if spec.hub is None:
        raise UserError(f"backbone {spec.name!r}: no published weights; pass --checkpoint PATH, or --weights random.")
    path, hub_id = _local_file(spec, spec.hub)
    source = {"file": str(path), "custom_load": False}
    try:
        model = timm.create_model(spec.hub, pretrained=True, pretrained_cfg_overlay=source)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"backbone {spec.name!r}: {path} of {hub_id} cannot be loaded ({reason}); delete it to "
            "download it again, or pass --checkpoint PATH."
        ) from error
    return model.state_dict(), f"hub {hub_id}"


def _local_file(spec: Spec, hub_name: str) -> tuple[Path, str]:
    config: Any = timm.models.get_pretrained_cfg(hub_name)
    hub_id, _, revision = str(config.hf_hub_id).partition("@")
    where: dict[str, Any] = {"repo_id": hub_id, "revision": revision or None}
    names = (config.hf_hub_filename,) if config.hf_hub_filename else FILES
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(filename=name, **where)
        if isinstance(cached, str):
            return Path(cached), hub_id
    try:
        listed = {file.rfilename for file in huggingface_hub.model_info(**where, timeout=TIMEOUT).siblings or ()}
        name = next((name for name in names if name in listed), names[0])
        return Path(huggingface_hub.hf_hub_download(filename=name, **where)), hub_id
    except (OSError, errors.HTTPError) as error:  # HTTPError: the transport's own base, for timeouts and no network
        raise UserError(
            f"backbone {spec.name!r}: its weights {hub_id} are not in the local hub cache and cannot be downloaded "
            f"({type(error).__name__}); pass --checkpoint PATH, or --weights random."
        ) from error
