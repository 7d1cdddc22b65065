"""timm's pre-norm blocks, those of its VisionTransformer and of its Eva, taken apart.

Both are x + drop_path1(scale1(attn(norm1(x)))), then the same with `norm2` and `mlp`. LayerScale is a module, `ls1`, in
one, and in the other a parameter, `gamma_1`, which is None without LayerScale.
"""

from typing import Any

import torch
from timm.layers import Attention, LayerScale
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn


def _class(block: object) -> type:
    """timm's; torch's FSDP2 puts two of its own before that of a block (`ViTEncoder.shard`)."""
    own = type(block)
    return own.__mro__[2] if own.__name__.startswith("FSDP") else own


def is_standard(block: object) -> bool:
    """Whether a block is timm's pre-norm Block with its standard attention: tables of relative positions need that."""
    return _class(block) is Block and type(getattr(block, "attn", None)) is Attention


def comes_apart(block: object) -> bool:
    """Whether the parts of a block can be called one by one: windows and new LayerScale need that."""
    return is_standard(block) or _class(block) is EvaBlock


def scaled(block: Any, branch: int, x: Tensor) -> Tensor:
    """The LayerScale of branch 1, attention, or 2, the MLP, on x (B, N, C)."""
    if _class(block) is EvaBlock:
        gamma = block.gamma_1 if branch == 1 else block.gamma_2
        return x if gamma is None else gamma * x
    layer = block.ls1 if branch == 1 else block.ls2
    out: Tensor = layer(x)
    return out


def lacks_layer_scale(block: object) -> bool:
    """Whether a block has a place for LayerScale, and none there."""
    if _class(block) is EvaBlock:
        return getattr(block, "gamma_1", None) is None and getattr(block, "gamma_2", None) is None
    return isinstance(getattr(block, "ls1", None), nn.Identity)


def add_layer_scale(block: Any, width: int, value: float) -> list[str]:
    """Give a block that lacks them both LayerScales; the names of the new parameters within the block."""
    if _class(block) is EvaBlock:
        block.gamma_1, block.gamma_2 = (nn.Parameter(torch.full((width,), value)) for _ in range(2))
        return ["gamma_1", "gamma_2"]
    block.ls1, block.ls2 = LayerScale(width, value), LayerScale(width, value)
    return ["ls1.gamma", "ls2.gamma"]


def freeze_attention(block: Any) -> list[nn.Module]:
    """Freeze the attention half of a block; its modules."""
    modules = [block.norm1, block.attn, block.drop_path1]
    if _class(block) is EvaBlock:
        if block.gamma_1 is not None:
            block.gamma_1.requires_grad_(False)
    else:
        modules.append(block.ls1)
    for module in modules:
        module.requires_grad_(False)
    return modules
