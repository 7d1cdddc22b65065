"""The model of timm that a file of a rotary encoder may be for, by its shapes, for `inspect` to try."""

import timm

from mae_transfer.backbones.checkpoints.layout import Converted, depth_of, width_of
from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.registry import TIMM_PREFIX

_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1536: "gigantic", 4096: "7b"}


def guess(init: str, converted: Converted, grid: Grid | None, patch: int) -> list[str]:
    """`timm:<model>` of a reader's INITS `dinov3`, `eva02` or `pe`; empty for others and for sizes that timm lacks."""
    tensors = converted.tensors
    size = _SIZES.get(width_of(tensors), "")
    gated = any(name.endswith(".fc1_g.weight") for name in tensors)
    pixels = grid[0] * patch if grid else 224
    if init == "dinov3":
        plus = "_plus" if gated and size in ("small", "huge") else ""
        found = [f"vit_{size}{plus}_patch{patch}_dinov3", f"vit_{size}{plus}_patch{patch}_dinov3_qkvb"]
    elif init == "eva02":
        kind = "clip_" if any(name.endswith(".attn.norm.weight") for name in tensors) else ""
        found = [f"eva02_{size}_patch{patch}_{kind}{side}" for side in (pixels, 224)]
    elif init == "pe":
        pooled = any("attn_pool." in name for name in converted.ignored)
        kinds = ["core"] if pooled else ["lang"] if depth_of(tensors) in (23, 47) else ["spatial"]
        found = [f"vit_pe_{kind}_{size}_patch{patch}_{pixels}" for kind in kinds]
    else:
        return []
    return [f"{TIMM_PREFIX}{name}" for name in dict.fromkeys(found) if timm.is_model(name)][:1]
