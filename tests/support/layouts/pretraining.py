"""Files of the pre-trainings' own code: MAE, DeiT, MoCo v3, DINO, iBOT, DINOv2, BEiT, SimMIM."""

import argparse
import copy
import dataclasses

import torch
import torch.nn.functional as F
from support.layouts.case import (
    BEIT,
    DEPTH,
    DIM,
    GRID,
    NAMES,
    PATCH,
    PLAIN,
    SHAPE,
    SIZE,
    beit,
    of_timm,
    randomise,
    tiny_arch,
    vit,
)
from timm.layers import SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.utils import parametrizations, weight_norm


def mae_decoder(width=16, depth=1):
    blocks = VisionTransformer(embed_dim=width, depth=depth, num_heads=2, num_classes=0, img_size=SIZE).blocks
    parts = {
        "decoder_embed": nn.Linear(DIM, width),
        "decoder_blocks": blocks,
        "decoder_norm": nn.LayerNorm(width),
        "decoder_pred": nn.Linear(width, PATCH * PATCH * 3),
    }
    state = {f"{name}.{key}": t for name, part in parts.items() for key, t in part.state_dict().items()}
    return state | {"mask_token": torch.randn(1, 1, width), "decoder_pos_embed": torch.randn(1, GRID**2 + 1, width)}


def mae_full():
    model = vit()
    args = argparse.Namespace(lr=1e-3)
    training = {"optimizer": {"state": {}}, "epoch": 7, "scaler": {}, "args": args}
    return of_timm(NAMES["mae"], model, {"model": model.state_dict() | mae_decoder(), **training})


def crossmae(weighted=True, self_attn=False, width=16, depth=2):
    """Parts of the decoder by torch's modules, as `transformer_utils.py` makes them."""
    model, state = vit(), {}
    for i in range(depth):
        parts = {"norm1": nn.LayerNorm(width), "norm2": nn.LayerNorm(width)}
        parts |= {"cross_attn.q": nn.Linear(width, width), "cross_attn.kv": nn.Linear(DIM, 2 * width)}
        parts |= {"cross_attn.proj": nn.Linear(width, width)}
        parts |= {"mlp.fc1": nn.Linear(width, 4 * width), "mlp.fc2": nn.Linear(4 * width, width)}
        if self_attn:
            parts |= {"norm0": nn.LayerNorm(width), "self_attn.qkv": nn.Linear(width, 3 * width)}
            parts |= {"self_attn.proj": nn.Linear(width, width)}
        for name, part in parts.items():
            state |= {f"decoder_blocks.{i}.{name}.{key}": t for key, t in part.state_dict().items()}
    parts = {"decoder_norm": nn.LayerNorm(width), "decoder_pred": nn.Linear(width, PATCH * PATCH * 3)}
    if weighted:
        parts |= {"wfm.linear": nn.Linear(DEPTH + 1, depth, bias=False)}
        parts |= {f"dec_norms.{i}": nn.LayerNorm(DIM) for i in range(depth)}
    for name, part in parts.items():
        state |= {f"{name}.{key}": t for key, t in part.state_dict().items()}
    state |= {"mask_token": torch.randn(1, 1, width), "decoder_pos_embed": torch.randn(1, GRID**2 + 1, width)}
    spare = ("wfm.linear.weight",)  # nothing else tells how many blocks it weighs
    encoder = {key: t for key, t in model.state_dict().items() if not (weighted and key.startswith("norm."))}
    return of_timm("CrossMAE", model, {"model": encoder | state, "epoch": 3}, spare=spare)


def ijepa():
    """The target encoder, as chosen from `encoder`, `predictor` and `target_encoder`; it has no class token."""
    options = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    spec, model = tiny_arch("vit_tiny_ijepa", **options), vit(**options)
    return of_timm(NAMES["timm"], model, {f"module.{key}": t for key, t in model.state_dict().items()}, spec=spec)


def franca():
    """`teacher` with `module.backbone.*`, four chunks of blocks; its heads are in a file of their own."""
    layout = dinov2(chunks=True)
    layout.content = {"teacher": {f"module.backbone.{key}": t for key, t in layout.content.items()}}
    layout.state, layout.spare = layout.content["teacher"], ("module.backbone.mask_token",)
    return layout


def linear_probe():
    model = vit()
    probe = {f"head.1.{key}": t for key, t in nn.Linear(DIM, 10).state_dict().items()}
    probe |= {f"head.0.{key}": t for key, t in nn.BatchNorm1d(DIM, affine=False).state_dict().items()}
    return of_timm(NAMES["timm"], model, {"model": model.state_dict() | probe, "epoch": 3})


def timm_plain(**kwargs):
    model = vit(**kwargs)
    return of_timm(NAMES["timm"], model, model.state_dict())


def timm_arch(name, **kwargs):
    spec, model = tiny_arch(name, **kwargs), vit(**kwargs)
    return of_timm(NAMES["timm"], model, model.state_dict(), spec=spec)


def deit_distilled():
    model = randomise(VisionTransformerDistilled(**{**SHAPE, "num_classes": 5}))
    return of_timm(NAMES["timm"], model, {"model": model.state_dict()}, sizes=())


def deit3():
    model = vit(init_values=0.1, no_embed_class=True, num_classes=5)
    names = {key: key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2") for key in model.state_dict()}
    content = {"model": {names[key]: t for key, t in model.state_dict().items()}}
    return of_timm(NAMES["timm"], model, content, spec=dataclasses.replace(PLAIN, init="sup"))


def moco_mlp(layers, inputs, hidden, outputs):
    """moco/builder.py `_build_mlp`: linear layers without bias, BatchNorm and ReLU, the last BatchNorm not affine."""
    modules = []
    for i in range(layers):
        last = i == layers - 1
        rows = outputs if last else hidden
        modules += [nn.Linear(hidden if i else inputs, rows, bias=False), nn.BatchNorm1d(rows, affine=not last)]
        modules += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*modules)


def mocov3():
    """moco/builder.py `MoCo`: base_encoder and momentum_encoder with a head of 3 layers, a predictor of 2; DDP."""
    model, hidden, features = vit(), 48, 8
    moco = nn.ModuleDict({"base_encoder": copy.deepcopy(model), "momentum_encoder": vit()})
    for encoder in moco.values():
        encoder.head = moco_mlp(3, DIM, hidden, features)
    moco["predictor"] = moco_mlp(2, features, hidden, features)
    state = {f"module.{key}": t for key, t in moco.state_dict().items()}
    content = {"state_dict": state, "epoch": 300, "arch": "vit_small", "optimizer": {}, "scaler": {}}  # main_moco.py
    return of_timm("MoCo v3", model, content)


def dino_head(name="head", hidden=24, patches=False, normalised=weight_norm, width=DIM):
    """DINO's and DINOv2's DINOHead, iBOT's iBOTHead: three layers, GELU between, then a weight-normalised one."""
    head = nn.Module()
    head.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
    head.mlp.append(nn.Linear(hidden, 16))
    for last in ("last_layer", "last_layer2")[: 1 + patches]:
        setattr(head, last, normalised(nn.Linear(16, 40 if last == "last_layer" else 30, bias=False)))
    return {f"{name}.{key}": t for key, t in head.state_dict().items()}


def interpolated_by_dino(native, grid):
    """dino and dinov2 vision_transformer.py `interpolate_pos_encoding`; ibot's is a copy."""
    w0, h0 = grid[0] + 0.1, grid[1] + 0.1
    side = native.shape[2]
    return F.interpolate(native, scale_factor=(w0 / side, h0 / side), mode="bicubic")


def interpolated_with_registers(native, grid):
    """The same with dinov2 hub/backbones.py: interpolate_antialias=True, interpolate_offset=0.0."""
    return F.interpolate(native, size=grid, mode="bicubic", antialias=True)


def dino():
    """main_dino.py: DDP student, teacher without, both encoder (`backbone`) and head."""
    model = vit()
    teacher = {f"backbone.{key}": t for key, t in model.state_dict().items()} | dino_head()
    student = {f"module.{key}": torch.randn(t.shape) for key, t in teacher.items()}
    training = {"optimizer": {}, "epoch": 9, "dino_loss": {"center": torch.ones(1, 40)}}
    content = {"student": student, "teacher": teacher, **training}
    return of_timm(NAMES["dino"], model, content, resampling=interpolated_by_dino)


def ibot():
    """main_ibot.py: as DINO's, the head with a second last layer."""
    model = vit()
    teacher = {f"backbone.{key}": t for key, t in model.state_dict().items()} | dino_head(patches=True)
    student = {f"module.{key}": torch.randn(t.shape) for key, t in teacher.items()}
    student["module.backbone.masked_embed"] = torch.randn(1, DIM)
    content = {"student": student, "teacher": teacher, "optimizer": {}, "epoch": 9}
    return of_timm(NAMES["dino"], model, content, resampling=interpolated_by_dino)


def ibot_student():
    """The student alone: models/vision_transformer.py with masked_im_modeling, whose `masked_embed` is (1, C)."""
    model = vit()
    state = {f"module.backbone.{key}": t for key, t in model.state_dict().items()} | {
        f"module.{key}": t for key, t in dino_head(patches=True).items()
    }
    state["module.backbone.masked_embed"] = torch.randn(1, DIM)
    return of_timm(
        NAMES["dino"],
        model,
        {"state_dict": state},
        spare=("module.backbone.masked_embed",),
        resampling=interpolated_by_dino,
    )


def dinov2(registers=0, swiglu=False, chunks=False, training=False):
    kwargs = {"init_values": 0.1}
    if registers:
        kwargs |= {"reg_tokens": registers, "no_embed_class": True}
    if swiglu:
        kwargs |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 3}
    spec, model = tiny_arch(f"vit_tiny_dinov2_{registers}_{swiglu}", **kwargs), vit(**kwargs)
    state = dict(model.state_dict())
    if registers:
        position = torch.randn(1, 1, DIM)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    if swiglu:
        state = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for key, t in state.items()}
    if chunks:
        state = {
            key.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): t for key, t in state.items()
        }
    state |= {"mask_token": torch.randn(1, DIM)}
    spare = "mask_token"
    if training:
        state = (
            {f"backbone.{key}": t for key, t in state.items()}
            | dino_head("dino_head")
            | dino_head("ibot_head", normalised=parametrizations.weight_norm)  # torch's successor of weight_norm
        )
        spare = "backbone.mask_token"
    content = {"teacher": state} if training else state
    reader, resampling = NAMES["dino"] if training else "DINOv2", interpolated_by_dino
    resampling = interpolated_with_registers if registers else resampling
    return of_timm(reader, model, content, spec=spec, spare=(spare,), resampling=resampling)


def beit_native(shared=False):
    model = beit(use_rel_pos_bias=True, global_pool="" if shared else "avg", num_classes=0 if shared else 7)
    state = dict(model.state_dict())
    index = torch.zeros(GRID**2 + 1, GRID**2 + 1, dtype=torch.long)
    if not shared:
        return of_timm(
            "BEiT",
            model,
            {"model": state | {f"blocks.{i}.attn.relative_position_index": index for i in range(DEPTH)}},
            spec=BEIT,
            spare=tuple(f"blocks.{i}.attn.relative_position_index" for i in range(DEPTH)),
        )
    return of_timm(
        "BEiT",
        model,
        {
            "model": _share(model)
            | {
                "rel_pos_bias.relative_position_index": index,
                "mask_token": torch.randn(1, 1, DIM),
                "lm_head.weight": torch.randn(99, DIM),
                "lm_head.bias": torch.randn(99),
            }
        },
        spec=BEIT,
        spare=("mask_token", "rel_pos_bias.relative_position_index"),
    )


def _share(model):
    """The model's state dict with one table for all blocks, as BEiT's pre-training has it; the model follows."""
    table = model.blocks[0].attn.relative_position_bias_table
    for block in model.blocks[1:]:
        block.attn.relative_position_bias_table = table
    state = {key: t for key, t in model.state_dict().items() if "relative_position" not in key}
    return state | {"rel_pos_bias.relative_position_bias_table": table.detach()}


def beit_timm():
    model = beit(use_rel_pos_bias=True)
    return of_timm("BEiT", model, model.state_dict(), spec=BEIT)


def simmim():
    model = beit(use_rel_pos_bias=True, global_pool="")
    index = {"encoder.rel_pos_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.long)}
    state = {f"encoder.{key}": t for key, t in _share(model).items()} | index
    state |= {"encoder.mask_token": torch.randn(1, 1, DIM)}
    state |= {"decoder.0.weight": torch.randn(PATCH**2 * 3, DIM, 1, 1), "decoder.0.bias": torch.randn(PATCH**2 * 3)}
    return of_timm("SimMIM", model, {"model": state, "optimizer": {}, "epoch": 1}, spec=BEIT, spare=tuple(index))
