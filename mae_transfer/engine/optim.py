"""AdamW and its parameter groups: layer-wise learning-rate decay, and parameters without weight decay.

The scale of an encoder parameter is layer_decay ** (depth + 1 - layer_id), layer ids as in MAE's and BEiT's code
(`encoder.layer_id`: 0 = patch and position embedding and tokens, block i = i + 1, the rest = depth + 1, hence scale 1);
everything outside the encoder has scale 1. timm's `param_groups_layer_decay` differs: it puts a final norm with the
last block.

Which parameters keep no weight decay is said by kind (`optim.no_weight_decay`); a parameter may be of several kinds:

    norm         all parameters of a normalisation module: LayerNorm, RMSNorm, GroupNorm, any BatchNorm or InstanceNorm
                 and their subclasses, and any module named ...Norm... with nothing but vectors (detectron2's list of
                 types misses ViTDet's own LayerNorm, so that its recipe decays it)
    bias         names ending in `bias` (BEiT's q_bias too), except tables of relative position
    pos_embed    absolute position embeddings
    rel_pos      tables of relative position
    token        class, register, distillation and mask tokens
    layer_scale  LayerScale's gamma (BEiT: gamma_1, gamma_2)
"""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mae_transfer.config import OptimConfig
from mae_transfer.errors import UserError

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)


def param_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Every trainable parameter of the model in exactly one group.

    A group holds `params`, their `names`, `lr_scale`, `lr` (peak lr times scale) and `weight_decay`. Groups are in the
    order in which their first parameters stand in the model.
    """
    norms = {id(p) for module in model.modules() if _is_norm(module) for p in module.parameters(recurse=False)}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kinds = _kinds(name) | ({"norm"} if id(parameter) in norms else set())
        weight_decay = 0.0 if kinds & set(config.no_weight_decay) else config.weight_decay
        scale = _lr_scale(model, name, config.layer_decay)
        group = groups.setdefault(
            (scale, weight_decay),
            {"params": [], "names": [], "lr_scale": scale, "lr": config.lr * scale, "weight_decay": weight_decay},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise UserError("the model has no trainable parameter; unfreeze some")
    return list(groups.values())


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `param_groups`; for-loop or foreach as torch decides (foreach on CUDA), never fused, because Fabric
    cannot unscale the gradients of a fused optimizer before clipping."""
    return torch.optim.AdamW(param_groups(model, config), lr=config.lr, betas=config.betas)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group lr times its lr_scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _lr_scale(model: nn.Module, name: str, layer_decay: float) -> float:
    if not name.startswith("encoder."):
        return 1.0
    encoder: Any = model.encoder
    return float(layer_decay ** (encoder.depth + 1 - encoder.layer_id(name.removeprefix("encoder."))))


def _is_norm(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    looks_like_one = "norm" in type(module).__name__.lower() and all(p.ndim <= 1 for p in own)
    return isinstance(module, _NORMS) or looks_like_one


def _kinds(name: str) -> set[str]:
    leaf = name.rsplit(".", 1)[-1]
    is_table = "rel_pos" in name or "relative_position" in name
    tests = {
        "rel_pos": is_table,
        "bias": leaf.endswith("bias") and not is_table,
        "pos_embed": "pos_embed" in leaf,
        "token": leaf.endswith(("token", "tokens")),
        "layer_scale": leaf == "gamma" or leaf.startswith("gamma_"),
    }
    return {kind for kind, holds in tests.items() if holds}
