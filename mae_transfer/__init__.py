"""How well does this image encoder transfer? The public Python calls; everything else is loaded when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_transfer.backbones.check import check_encoder
    from mae_transfer.backbones.load import load_backbone
    from mae_transfer.backbones.plugins import register_backbone
    from mae_transfer.runs.api import run_pretrain, run_transfer
    from mae_transfer.runs.costs import plan
    from mae_transfer.runs.model import evaluate, load_model
    from mae_transfer.runs.results import find_records, tables
    from mae_transfer.suites.api import run_suite

__version__ = "0.1.0"
__all__ = [
    "check_encoder",
    "evaluate",
    "find_records",
    "load_backbone",
    "load_model",
    "plan",
    "register_backbone",
    "run_pretrain",
    "run_suite",
    "run_transfer",
    "tables",
]

_MODULES = {
    "check_encoder": "mae_transfer.backbones.check",
    "evaluate": "mae_transfer.runs.model",
    "find_records": "mae_transfer.runs.results",
    "load_backbone": "mae_transfer.backbones.load",
    "load_model": "mae_transfer.runs.model",
    "plan": "mae_transfer.runs.costs",
    "register_backbone": "mae_transfer.backbones.plugins",
    "run_pretrain": "mae_transfer.runs.api",
    "run_suite": "mae_transfer.suites.api",
    "run_transfer": "mae_transfer.runs.api",
    "tables": "mae_transfer.runs.results",
}


def __getattr__(name: str) -> Any:
    # Imported here on first use: `--help` and the tables must not wait for torch.
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'mae_transfer' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
