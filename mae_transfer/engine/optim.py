"""The optimizers and their parameter groups: layer-wise learning-rate decay, and parameters without weight decay.

The scale of an encoder parameter is layer_decay ** (depth + 1 - layer_id), layer ids as in MAE's and BEiT's code
(`encoder.layer_id`: 0 = patch and position embedding and tokens, block i = i + 1, the rest = depth + 1, hence scale 1;
of a hierarchical encoder as timm groups its layers);
everything outside the encoder has scale 1, or what the attribute `lr_scale` of a module that holds it says (the heads
of a sweep). timm's `param_groups_layer_decay` differs: it puts a final norm with the last block.

`lars` is timm's with what MAE's `util/lars.py` does: parameters of more than one dimension are always adapted
(trust coefficient 0.001), others (biases, norms) are neither adapted nor decayed. The two are equal without weight
decay, as in all published probes; with it timm's trust ratio divides by |g| + wd |w|, MAE's by |g + wd w|.

Which parameters keep no weight decay is said by kind (`optim.no_weight_decay`); a parameter may be of several kinds:

    norm         all parameters of a normalisation module: LayerNorm, RMSNorm, GroupNorm, any BatchNorm or InstanceNorm
                 and their subclasses, and any module named ...Norm... with nothing but vectors (detectron2's list of
                 types misses ViTDet's own LayerNorm, so that its recipe decays that: `encoder_norm`)
    encoder_norm those of the encoder alone
    bias         names ending in `bias` (BEiT's q_bias too), except tables of relative position
    pos_embed    absolute position embeddings, and learned frequencies of rotary positions, as timm's Eva has it
    rel_pos      tables of relative position
    token        class, register, distillation and mask tokens
    class_token  the class token alone
    layer_scale  LayerScale's gamma (BEiT: gamma_1, gamma_2)

Whatever a recipe says, the parameters that timm exempts of a hierarchical encoder have none (its `no_weight_decay`: of
Swin v2 the scale of the logits and the MLP of the position bias, as in microsoft/Swin-Transformer).
"""

from typing import Any

import torch
from timm.optim import Lars
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mae_transfer.config.sections import OptimConfig
from mae_transfer.errors import UserError

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)


def param_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Every trainable parameter of the model in exactly one group.

    A group holds `params`, their `names`, `lr_scale`, `lr` (peak lr times scale) and `weight_decay`, for LARS also
    `always_adapt`. Groups are in the order in which their first parameters stand in the model.
    """
    own_scale = {
        id(p): float(module.lr_scale)  # type: ignore[arg-type]
        for module in model.modules()
        if hasattr(module, "lr_scale")
        for p in module.parameters()
    }
    lars = config.kind == "lars"
    norms = {id(p) for module in model.modules() if _is_norm(module) for p in module.parameters(recurse=False)}
    exempt = {f"encoder.{name}" for name in getattr(getattr(model, "encoder", None), "no_weight_decay", ())}
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kinds = _kinds(name)
        if id(parameter) in norms:
            kinds |= {"norm", "encoder_norm"} if name.startswith("encoder.") else {"norm"}
        adapt = lars and parameter.ndim > 1
        decayed = not kinds & set(config.no_weight_decay) and name not in exempt and (adapt or not lars)
        weight_decay = config.weight_decay if decayed else 0.0
        scale = own_scale.get(id(parameter)) or _lr_scale(model, name, config.layer_decay)
        group = groups.setdefault(
            (scale, weight_decay, adapt),
            {"params": [], "names": [], "lr_scale": scale, "lr": config.lr * scale, "weight_decay": weight_decay}
            | ({"always_adapt": adapt} if lars else {}),
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise UserError("the model has no trainable parameter; unfreeze some")
    return list(groups.values())


def build_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool = False) -> torch.optim.Optimizer:
    """The optimizer over `param_groups`; AdamW fused where that is asked for, else for-loop or foreach as torch decides
    (foreach on CUDA)."""
    groups = param_groups(model, config)
    if config.kind == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    if config.kind == "lars":
        # eps 0: MAE's has none, and an update of norm zero is not adapted
        return Lars(groups, lr=config.lr, momentum=config.momentum, trust_coeff=0.001, eps=0.0)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused or None)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group lr times its lr_scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _lr_scale(model: nn.Module, name: str, layer_decay: float) -> float:
    if layer_decay == 1.0 or not name.startswith("encoder."):
        return 1.0
    encoder: Any = model.encoder
    return float(layer_decay ** (encoder.num_layers - 1 - encoder.layer_id(name.removeprefix("encoder."))))


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
        "pos_embed": "pos_embed" in leaf or name.endswith("rope.freqs"),
        "token": leaf.endswith(("token", "tokens")),
        "class_token": leaf == "cls_token",
        "layer_scale": leaf == "gamma" or leaf.startswith("gamma_"),
    }
    return {kind for kind, holds in tests.items() if holds}
