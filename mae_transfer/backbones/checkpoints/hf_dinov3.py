"""Hugging Face DINOv3 (`DINOv3ViTModel`), on disk (`layer.0.`) and in memory (`model.layer.0.`).

Query, key and value are three layers, the key's without bias; timm's model has one layer and biases of query and value,
or none where a file's are all zero.
"""

import re

from mae_transfer.backbones.checkpoints import hf_names
from mae_transfer.backbones.checkpoints.layout import Converted, Shape, State, back, depth_of, joined, renamed, width_of

NAME = "Hugging Face DINOv3"
INITS = ("dinov3",)

_STEM = re.compile(r"((?:model\.)?layer)\.\d+\.")
_WHOLE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.bias": "patch_embed.proj.bias",
}
_MODULES = {"norm1": "norm1", "norm2": "norm2", "attention.o_proj": "attn.proj", "mlp.down_proj": "mlp.fc2"}
_ENDS = ("weight", "bias")


def detects(state: State) -> bool:
    return bool(_stem(state)) and any(key.startswith("embeddings.") for key in state)


def convert(state: State) -> Converted:
    stem = _stem(state)
    width, depth = width_of(state, stem), depth_of(state, stem)
    gated = any(".mlp.gate_proj." in key for key in state)
    modules = _MODULES | ({"mlp.gate_proj": "mlp.fc1_g", "mlp.up_proj": "mlp.fc1_x"} if gated else {})
    modules |= {} if gated else {"mlp.up_proj": "mlp.fc1"}
    names, promised, tensors = dict(_WHOLE), dict[str, Shape](), dict(state)
    biases = [key for key in state if re.search(r"\.attention\.[qv]_proj\.bias$", key)]
    zero = not any(state[key].any() for key in biases)
    ignored = dict.fromkeys(biases, "zeros: timm's model of these weights has no biases there") if zero else {}
    attention: State = {}
    for i in range(depth):
        block, new = f"{stem}.{i}", f"blocks.{i}"
        names |= {f"{block}.{a}.{end}": f"{new}.{b}.{end}" for a, b in modules.items() for end in _ENDS}
        names |= {f"{block}.layer_scale{n}.lambda1": f"{new}.ls{n}.gamma" for n in (1, 2)}
        projections = tuple(f"{block}.attention.{part}_proj.weight" for part in "qkv")
        promised |= dict.fromkeys(projections, (width, width))
        whole = joined(state, projections, (width, width), True)  # type: ignore[arg-type]
        if whole is not None:
            attention[f"{new}.attn.qkv.weight"] = whole
        for part in "qv" if biases else "":
            key = f"{block}.attention.{part}_proj.bias"
            promised[key] = (width,)
            if not zero:
                names[key] = f"{new}.attn.{part}_bias"
    for key in (*ignored, *(key for key in promised if key.endswith("_proj.weight"))):
        tensors.pop(key, None)
    facts = {"qkv_bias": not zero, "eps": 1e-5}
    converted = Converted(renamed(tensors, names) | attention, ignored, promised, back(names), facts)
    hf_names.ignore_norm(converted, state, "norm", width)
    if "embeddings.mask_token" in state:
        mask: dict[str, Shape] = {"embeddings.mask_token": (1, 1, width)}
        hf_names.ignore(converted, state, mask, "mask token of the pre-training")
    return converted


def _stem(state: State) -> str:
    """`layer` or `model.layer`, by a block that has DINOv3's names; empty for other states."""
    own = re.compile(r"(?:model\.)?layer\.\d+\.(layer_scale[12]\.|attention\.[qkvo]_proj\.)")
    return next((_STEM.match(key)[1] for key in state if own.match(key)), "")  # type: ignore[index]
