"""How well does this ViT encoder transfer? The public Python calls; everything else is loaded when first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_transfer.backbones.load import load_backbone
    from mae_transfer.runs.api import run_transfer

__version__ = "0.1.0"
__all__ = ["load_backbone", "run_transfer"]


def __getattr__(name: str) -> Any:
    # Imported here on first use: `--help` and the tables must not wait for torch.
    if name == "run_transfer":
        from mae_transfer.runs.api import run_transfer

        return run_transfer
    if name == "load_backbone":
        from mae_transfer.backbones.load import load_backbone

        return load_backbone
    raise AttributeError(f"module 'mae_transfer' has no attribute '{name}'")
