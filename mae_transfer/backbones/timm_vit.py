"""Specs -> timm VisionTransformer without head and final norm, and timm model names -> specs.

timm has BEiT as a class of its own; here it is the same VisionTransformer with LayerScale, no absolute position
embedding and a relative position table on each block, so that every backbone runs through one forward. A distillation
token (DeiT) is one register with a position of its own. Segment Anything's encoder is a VisionTransformer with ViTDet's
two tables on each block; its neck is left out.
"""

import dataclasses
import difflib
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import LayerNorm, Mlp, PatchEmbed
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from mae_transfer.backbones import registry
from mae_transfer.backbones.lean_mlp import make_lean
from mae_transfer.backbones.own_module import spec_of_plugin
from mae_transfer.backbones.plugins import find_plugin, plugin_names
from mae_transfer.backbones.positions.kinds import kind_in_weights
from mae_transfer.backbones.refused import what_it_is
from mae_transfer.backbones.registry import TIMM_PREFIX, Spec
from mae_transfer.backbones.timm_stages import empty_model, is_hierarchical, spec_of_stages
from mae_transfer.errors import UserError

MODULES = ["vision_transformer", "deit", "beit", "eva", "vision_transformer_sam"]
"""Modules of timm whose models may be built here."""


def resolve(name: str) -> Spec:
    """The spec of a registered name, of `timm:<model[.tag]>` or of a name that the user has added.

    Raises UserError for others.
    """
    if name.startswith(TIMM_PREFIX):
        return spec_of(name)
    plugin = find_plugin(name)
    return spec_of_plugin(plugin) if plugin else registry.find(name, plugin_names())


def spec_of(name: str) -> Spec:
    """The spec of `timm:<model[.tag]>`, read from timm's own model; its tag decides mean and std."""
    model_name = name.removeprefix(TIMM_PREFIX)
    arch, tag = timm.models.split_model_name_tag(model_name)
    if not timm.is_model(arch):
        near = difflib.get_close_matches(model_name, timm.list_models(), n=3, cutoff=0.4)
        raise UserError(f"backbone {name!r}: timm has no such model; nearest: {', '.join(near) or 'none'}.")
    tags = list(timm.models.get_arch_pretrained_cfgs(arch))
    if tag and model_name not in tags:
        raise UserError(
            f"backbone {name!r}: timm has no weights {tag!r} for {arch}; known: {', '.join(tags) or 'none'}."
        )
    timms_own = timm.models.model_entrypoint(arch).__module__.startswith("timm.")
    model = empty_model(model_name)
    if timms_own and not timm.models.is_model_in_modules(arch, MODULES):
        if is_hierarchical(model):
            return spec_of_stages(name, model_name, model)
        raise UserError(f"backbone {name!r}: not a plain ViT but {what_it_is(arch)}.")
    if not timms_own and type(model) in (VisionTransformer, Eva):
        _check_registered(name, model, model_name)
    if type(model) in (VisionTransformer, Eva) and isinstance(model.patch_embed, PatchEmbed):
        rows = 0 if model.no_embed_class else model.num_prefix_tokens
        fields: dict[str, object] = {"timm_arch": model_name, "final_norm": _has_norm(model), "position_prefix": rows}
        if type(model) is Eva:
            biased = any(key.endswith((".q_bias", ".qkv.bias", ".q_proj.bias")) for key in model.state_dict())
            fields |= {"timm_class": "Eva", "rotary": model.rope is not None, "qkv_bias": biased}
            if model.rope is not None and not all(type(block) is EvaBlock for block in model.blocks):
                raise UserError(
                    f"backbone {name!r}: rotary positions in {type(model.blocks[0]).__name__} are not built."
                )
        return _describe(name, model, **fields)
    if type(model) is VisionTransformerDistilled:
        return _describe(name, model, reg_tokens=1, position_prefix=2)
    if type(model) is Beit:
        return _describe_beit(name, model)
    if type(model) is VisionTransformerSAM and timms_own:
        return _describe_sam(name, model)
    raise UserError(f"backbone {name!r}: timm builds a {type(model).__name__}, not a plain ViT; pass one that is.")


def _check_registered(name: str, model: object, model_name: str) -> None:
    """UserError for a plain ViT registered by a user that cannot be built at another size or has no statistics."""
    config = getattr(model, "pretrained_cfg", None) or {}
    if not (config.get("mean") and config.get("std")):
        raise UserError(
            f"backbone {name!r}: its model has no pretrained_cfg with mean and std; make it by timm's "
            "build_model_with_cfg, or set model.pretrained_cfg."
        )
    try:
        with torch.device("meta"):
            timm.create_model(model_name, num_classes=0, img_size=224, dynamic_img_size=True, drop_path_rate=0.0)
    except TypeError as error:
        raise UserError(
            f"backbone {name!r}: its function does not take timm's options ({error}); let it pass **kwargs on to "
            "VisionTransformer."
        ) from error


def _has_norm(model: Any) -> bool:
    return not (isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.Identity))


def _pos_resampling(config: Any) -> str:
    """The rule of the code that the weights of a timm model are from, not timm's own."""
    model = f"{config['architecture']}.{config.get('tag') or ''}"
    if model.startswith("vit_pe_"):
        return "bilinear"
    if "dinov2" in model:
        return "antialias" if "_reg" in model else "offset"
    return "offset" if model.endswith(".dino") else "bicubic"


def _describe(name: str, model: Any, **fields: object) -> Spec:
    config = model.pretrained_cfg
    height, width = model.patch_embed.img_size
    tag = f".{config['tag']}" if config.get("tag") else ""
    values: dict[str, Any] = {
        "name": name,
        "init": name,
        "size": registry.size_of(model.embed_dim, len(model.blocks)),
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": getattr(getattr(model.blocks[0], "attn", model.blocks[0]), "num_heads", 0),
        "patch_size": model.patch_embed.patch_size[0],
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "hub": f"{config['architecture']}{tag}" if config.get("hf_hub_id") else None,
        "img_size": height if height == width else (height, width),
        "pos_resampling": _pos_resampling(config),
        **fields,
    }
    return Spec(**values)


def _describe_beit(name: str, model: Any) -> Spec:
    block = model.blocks[0]
    plain = (
        type(block.mlp) is Mlp
        and isinstance(block.mlp.norm, nn.Identity)
        and type(block.norm1) is LayerNorm
        and block.attn.q_bias is not None
        and block.attn.relative_position_bias_table is not None
    )
    if not plain:
        raise UserError(f"backbone {name!r}: this variant of timm's Beit is not supported; pass one with plain blocks.")
    return _describe(
        name,
        model,
        mlp_ratio=block.mlp.fc1.out_features / model.embed_dim,
        layer_scale=block.init_values or None,
        abs_pos=model.pos_embed is not None,
        rel_pos_tables=True,
    )


def _describe_sam(name: str, model: Any) -> Spec:
    """timm's norms have eps 1e-5, Segment Anything's own 1e-6. A neck of one LayerNorm is a final norm."""
    normed = isinstance(model.neck, nn.LayerNorm)
    return _describe(
        name,
        model,
        class_token=False,
        position_prefix=0,
        abs_pos=model.pos_embed is not None,
        decomposed_tables=True,
        eps=model.blocks[0].norm1.eps,
        final_norm=normed,
        final_eps=model.neck.eps if normed else None,
    )


def build(
    spec: Spec,
    *,
    img_size: int | tuple[int, int],
    drop_path: float = 0.0,
    device: str = "cpu",
) -> VisionTransformer:
    """timm's VisionTransformer, or its Eva, of a spec in float32, without final norm and head.

    `img_size` is the pixel size its position embedding and tables are for. Values are timm's initialisation; on the
    meta device there are none, and a checkpoint must bring all of them. MLPs keep less in training (`lean_mlp.py`).
    UserError for a module of a user's own.
    """
    if spec.origin is not None or spec.stages:
        what = f"{spec.origin}, a module of your own" if spec.origin else "hierarchical"
        raise UserError(f"backbone {spec.name!r} is {what}; this is for plain ViTs only.")
    shared: dict[str, Any] = {
        "num_classes": 0,
        "img_size": img_size,
        "dynamic_img_size": True,
        "drop_path_rate": drop_path,
    }
    if spec.in_chans != 3:
        shared["in_chans"] = spec.in_chans
    vit: Any
    eva = spec.timm_class == "Eva"
    registers = "num_reg_tokens" if eva else "reg_tokens"
    if device == "meta" and not eva:
        shared["weight_init"] = "skip"
    if not spec.class_token:
        shared |= {"class_token": False, "global_pool": "avg", registers: 0}
    elif spec.reg_tokens:
        shared[registers] = spec.reg_tokens
    if eva or not spec.qkv_bias:
        shared["qkv_bias"] = spec.qkv_bias
    with torch.device(device):
        if spec.timm_arch is not None:
            vit = timm.create_model(spec.timm_arch, pretrained=False, **shared)
            vit.norm, vit.fc_norm, vit.attn_pool = nn.Identity(), nn.Identity(), None
        else:
            vit = VisionTransformer(
                patch_size=spec.patch_size,
                embed_dim=spec.embed_dim,
                depth=spec.depth,
                num_heads=spec.num_heads,
                mlp_ratio=spec.mlp_ratio,
                init_values=spec.layer_scale,
                no_embed_class=spec.class_token and spec.position_prefix == 0,
                pos_embed="learn" if spec.abs_pos else "none",
                final_norm=False,
                **shared,
            )
        kind = kind_in_weights(spec)
        for block in vit.blocks if kind.has_tables else ():
            kind.new_tables(block.attn, vit.patch_embed.grid_size, vit.num_prefix_tokens)
    if spec.eps is not None:
        for module in vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = spec.eps
    make_lean(vit)
    return vit


_ACTIVATIONS = {
    "gelupython": "gelu",
    "geluerf": "gelu",
    "gelupytorchtanh": "gelutanh",
    "gelunew": "gelutanh",
    "gelufast": "gelutanh",
    "swish": "silu",
}
"""Other names of the same activation; `_` and case are taken off first."""


def activation_name(name: str) -> str:
    """One name for each activation, of transformers', timm's or a class's name."""
    plain = name.lower().replace("_", "").replace("-", "")
    return _ACTIVATIONS.get(plain, plain)


def activation_of(vit: Any) -> str | None:
    """The activation of a ViT's MLPs by that one name; None if they are no plain MLP (SwiGLU)."""
    mlp = getattr(vit.blocks[0], "mlp", None)
    if not isinstance(mlp, Mlp):
        return None
    tanh = isinstance(mlp.act, nn.GELU) and mlp.act.approximate == "tanh"
    return "gelutanh" if tanh else activation_name(type(mlp.act).__name__)


class PlainModel(NamedTuple):
    """What a plain ViT of timm is built with."""

    num_heads: int | None
    activation: str | None
    width: int
    depth: int
    patch: tuple[int, int]


def plain_model(arch: Any) -> PlainModel | None:
    """A model of timm by its name; None if timm has no such plain ViT."""
    if not isinstance(arch, str) or not timm.is_model(arch) or not timm.models.is_model_in_modules(arch, MODULES):
        return None
    model = empty_model(arch)
    heads = getattr(getattr(model.blocks[0], "attn", None), "num_heads", None)
    sizes = model.embed_dim, len(model.blocks), tuple(model.patch_embed.patch_size)
    return PlainModel(heads, activation_of(model), *sizes)


def is_rotary(arch: str) -> bool:
    """Whether a name is of a model of timm with rotary positions."""
    if not timm.is_model(arch) or not timm.models.is_model_in_modules(arch, ["eva"]):
        return False
    return empty_model(arch).rope is not None


def final_norm_name(spec: Spec) -> str:
    """Where timm's model of a spec has the norm after the blocks: `norm`, or `fc_norm` after pooling."""
    if spec.timm_arch is None:
        return "norm"
    return "fc_norm" if isinstance(empty_model(spec.timm_arch).norm, nn.Identity) else "norm"


def new_final_norm(spec: Spec) -> nn.Module:
    """The norm after the blocks as the model has it: LayerNorm, or what a model of timm has in its place."""
    if spec.timm_arch is None:
        return nn.LayerNorm(spec.embed_dim, eps=spec.final_eps or spec.eps or 1e-6)
    norm: Any = getattr(empty_model(spec.timm_arch), final_norm_name(spec))
    if spec.eps is not None and isinstance(norm, nn.LayerNorm):
        norm.eps = spec.eps
    norm = norm.to_empty(device="cpu")
    norm.reset_parameters()
    return norm


def make_buffers(vit: Any) -> None:
    """Compute what no file holds, of a ViT that was built on the meta device: rotary frequencies, biases of zero."""
    for module in vit.modules():
        empty = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        for name, buffer in empty.items():
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
        if empty:
            module.init_non_persistent_buffers()


def with_layer_scale(spec: Spec, present: bool) -> Spec:
    """The spec of a registered name for a checkpoint with or without LayerScale, which is then kept or left out.

    A supervised ViT with LayerScale is DeiT-III, whose class token has no position.
    """
    if spec.timm_arch is not None or present == (spec.layer_scale is not None):
        return spec
    deit3 = present and spec.init == "sup"
    return dataclasses.replace(spec, layer_scale=1.0 if present else None, position_prefix=0 if deit3 else 1)
