"""Files of CLIP and SigLIP by OpenAI and OpenCLIP, of AugReg in JAX, and of OpenMMLab."""

import dataclasses
import re

import numpy as np
import torch
from support.layouts.case import (
    BEIT,
    DEPTH,
    DIM,
    HEADS,
    PLAIN,
    beit,
    of_timm,
    tiny_arch,
    vit,
)
from torch import nn


def clip(text=True):
    kwargs = {"pre_norm": True, "num_classes": 12}
    model = vit(**kwargs)
    state = {}
    swaps = {
        "patch_embed.proj": "conv1",
        "pos_embed": "positional_embedding",
        "cls_token": "class_embedding",
        "norm_pre": "ln_pre",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "blocks.": "transformer.resblocks.",
        "norm.": "ln_post.",
    }
    for key, tensor in model.state_dict().items():
        for old, new in swaps.items():
            key = key.replace(old, new) if old != "norm." or key.startswith("norm.") else key
        if key == "head.weight":
            state["visual.proj"] = tensor.T
        elif key != "head.bias":
            state[f"visual.{key}"] = tensor
    state["visual.class_embedding"] = state["visual.class_embedding"].flatten()
    state["visual.positional_embedding"] = state["visual.positional_embedding"][0]
    if text:
        blocks = [key for key in state if key.startswith("visual.transformer.resblocks.0.")]
        state |= {key.removeprefix("visual."): torch.randn(state[key].shape) for key in blocks}
        state |= {"token_embedding.weight": torch.randn(99, DIM), "positional_embedding": torch.randn(7, DIM)}
        state |= {"ln_final.weight": torch.ones(DIM), "ln_final.bias": torch.ones(DIM)}
        state |= {"text_projection": torch.randn(DIM, 12), "logit_scale": torch.tensor(2.0)}
    return of_timm("CLIP image tower", model, state, spec=tiny_arch("vit_tiny_clip", pre_norm=True))


def siglip():
    """OpenCLIP around a timm tower with attention pooling and no class token."""
    kwargs = {"class_token": False, "global_pool": "map"}
    model = vit(**kwargs)
    state = {f"visual.trunk.{key}": t for key, t in model.state_dict().items()}
    return of_timm("CLIP image tower", model, state, spec=tiny_arch("vit_tiny_siglip", **kwargs))


def augreg():
    model = vit(num_classes=5)
    state = {}
    for key, tensor in model.state_dict().items():
        array, parts = tensor.numpy(), key.split(".")
        if parts[0] == "blocks":
            block = f"Transformer/encoderblock_{parts[1]}"
            rest, end = ".".join(parts[2:-1]), parts[-1]
            kind = {"weight": "kernel", "bias": "bias"}[end]
            if rest.startswith("norm"):
                name = {"norm1": "LayerNorm_0", "norm2": "LayerNorm_2"}[rest]
                state[f"{block}/{name}/{'scale' if end == 'weight' else 'bias'}"] = array
            elif rest == "attn.qkv":
                attention = f"{block}/MultiHeadDotProductAttention_1"
                for name, part in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                    shape = (DIM, HEADS, DIM // HEADS) if end == "weight" else (HEADS, DIM // HEADS)
                    state[f"{attention}/{name}/{kind}"] = part.T.reshape(shape)
            elif rest == "attn.proj":
                value = array.T.reshape(HEADS, DIM // HEADS, DIM) if end == "weight" else array
                state[f"{block}/MultiHeadDotProductAttention_1/out/{kind}"] = value
            else:
                name = {"mlp.fc1": "MlpBlock_3/Dense_0", "mlp.fc2": "MlpBlock_3/Dense_1"}[rest]
                state[f"{block}/{name}/{kind}"] = array.T
        elif key == "patch_embed.proj.weight":
            state["embedding/kernel"] = array.transpose(2, 3, 1, 0)
        elif parts[0] == "norm":
            state[f"Transformer/encoder_norm/{'scale' if parts[1] == 'weight' else 'bias'}"] = array
        elif parts[0] == "head":
            state[f"head/{'kernel' if parts[1] == 'weight' else 'bias'}"] = array.T
        else:
            names = {
                "cls_token": "cls",
                "pos_embed": "Transformer/posembed_input/pos_embedding",
                "patch_embed.proj.bias": "embedding/bias",
            }
            state[names[key]] = array
    state = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in state.items()}
    return of_timm("AugReg npz (JAX)", model, state)


def openmmlab(model, names, beside, **kwargs):
    """{"meta", "state_dict"} of mmengine, the encoder under `backbone.`, its names by `names` (timm's -> theirs)."""
    state = {}
    for key, tensor in model.state_dict().items():
        for old, new in names.items():
            key = re.sub(old, new, key)
        state[f"backbone.{key}"] = tensor
    content = {"meta": {"epoch": 3}, "state_dict": state | beside}
    spare = (*beside, *kwargs.pop("spare", ()))
    return of_timm("OpenMMLab (mmpretrain, mmsegmentation)", model, content, spare=spare, **kwargs)


OPENMMLAB = {
    r"^norm\.": "ln1.",
    r"^fc_norm\.": "ln2.",
    r"patch_embed\.proj": "patch_embed.projection",
    r"^blocks\.": "layers.",
    r"\.norm([12])": r".ln\1",
    r"mlp\.fc1": "ffn.layers.0.0",
    r"mlp\.fc2": "ffn.layers.1",
}


def vision_transformer_head():
    return {f"head.layers.head.{key}": t for key, t in nn.Linear(DIM, 10).state_dict().items()}


def mmpretrain_vit():
    return openmmlab(vit(), OPENMMLAB, vision_transformer_head())


def mmpretrain_deit3():
    names = OPENMMLAB | {r"ls1\.gamma": "attn.gamma1.weight", r"ls2\.gamma": "ffn.gamma2.weight"}
    model = vit(init_values=0.1, no_embed_class=True)
    return openmmlab(model, names, vision_transformer_head(), spec=dataclasses.replace(PLAIN, init="sup"))


def mmpretrain_beit():
    index = {f"backbone.layers.{i}.attn.relative_position_index": torch.zeros(17, 17).long() for i in range(DEPTH)}
    return openmmlab(beit(use_rel_pos_bias=True), OPENMMLAB, vision_transformer_head() | index, spec=BEIT)


def mmsegmentation_vit():
    """Its attention is torch's, and it has no final norm."""
    names = OPENMMLAB | {r"attn\.qkv\.": "attn.attn.in_proj_", r"attn\.proj": "attn.attn.out_proj"}
    return openmmlab(vit(final_norm=False), names, {"decode_head.conv_seg.weight": torch.randn(5, 9, 1, 1)})
