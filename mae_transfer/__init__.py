"""How well does this image encoder transfer? The public Python calls; everything else is loaded when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_transfer.backbones.check import check_encoder
    from mae_transfer.backbones.load import load_backbone
    from mae_transfer.backbones.plugins import register_backbone
    from mae_transfer.runs.api import run_transfer

__version__ = "0.1.0"
__all__ = ["check_encoder", "load_backbone", "register_backbone", "run_transfer"]

_MODULES = {
    "check_encoder": "mae_transfer.backbones.check",
    "load_backbone": "mae_transfer.backbones.load",
    "register_backbone": "mae_transfer.backbones.plugins",
    "run_transfer": "mae_transfer.runs.api",
}


def __getattr__(name: str) -> Any:
    # Imported here on first use: `--help` and the tables must not wait for torch.
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'mae_transfer' has no attribute '{name}'")
