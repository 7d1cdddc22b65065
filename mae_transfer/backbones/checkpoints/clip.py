"""CLIP image towers: OpenAI's and OpenCLIP's own (`visual.*`), and OpenCLIP around a timm ViT (`visual.trunk.*`).

Built by timm's model of the tower: `--backbone timm:vit_base_patch16_clip_224.laion2b`. The text tower is ignored; if
it is OpenAI's (beside `visual.`) only whole. OpenAI's own weights use QuickGELU, which no tensor shows: take timm's
`..._clip_quickgelu_...` for them.
"""

import re

from mae_transfer.backbones.checkpoints import timm_names
from mae_transfer.backbones.checkpoints.layout import (
    ANY,
    FINAL_NORM,
    Converted,
    Shape,
    State,
    back,
    depth_of,
    final_norm,
    norm,
    renamed,
    width_of,
)

NAME = "CLIP image tower"
INITS = ("clip",)

_TRUNK = "visual.trunk."
_TEXT = "text tower"
EXTRA = ("logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size", "attn_mask")
PERCEPTION = re.compile(r"visual\.(attn_pool\.(probe|attn|layernorm|mlp)|transformer\.resblocks\.\d+\.ls_[12]\.)")
"""Names of Perception Encoder's tower."""
BLOCK = {
    "ln_1.weight": "norm1.weight",
    "ln_1.bias": "norm1.bias",
    "attn.in_proj_weight": "attn.qkv.weight",
    "attn.in_proj_bias": "attn.qkv.bias",
    "attn.out_proj.weight": "attn.proj.weight",
    "attn.out_proj.bias": "attn.proj.bias",
    "ln_2.weight": "norm2.weight",
    "ln_2.bias": "norm2.bias",
    "mlp.c_fc.weight": "mlp.fc1.weight",
    "mlp.c_fc.bias": "mlp.fc1.bias",
    "mlp.c_proj.weight": "mlp.fc2.weight",
    "mlp.c_proj.bias": "mlp.fc2.bias",
}
STEM = {
    "conv1.weight": "patch_embed.proj.weight",
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "ln_pre.weight": "norm_pre.weight",
    "ln_pre.bias": "norm_pre.bias",
}


def detects(state: State) -> bool:
    return any(key.startswith("visual.") for key in state) and not any(PERCEPTION.match(key) for key in state)


def convert(state: State) -> Converted:
    if any(key.startswith(_TRUNK) for key in state):
        return _around_timm(state)
    blocks = "visual.transformer.resblocks"
    width = width_of({key.replace(".ln_", ".norm"): t for key, t in state.items()}, f"{blocks}.")
    names = {f"visual.{old}": new for old, new in STEM.items()}
    for i in range(depth_of(state, blocks)):
        names |= {f"{blocks}.{i}.{old}": f"blocks.{i}.{new}" for old, new in BLOCK.items()}
    both = {state[key].shape[-1] for key in ("visual.proj", "text_projection") if key in state and state[key].ndim}
    outputs = both.pop() if len(both) == 1 else None
    promised: dict[str, Shape] = {
        **norm("visual.ln_post", width),
        "visual.proj": (width, outputs),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (ANY, width),
        **text_tower(state, outputs),
    }
    ignored = {key: _reason(key) for key in state if key not in names and (key in promised or key in EXTRA)}
    tensors = renamed({key: tensor for key, tensor in state.items() if key not in ignored}, names)
    for key in ("cls_token", "pos_embed"):
        if key in tensors:
            tensors[key] = tensors[key].reshape(1, -1, width) if tensors[key].shape[-1:] == (width,) else tensors[key]
    warning = "OpenAI's own CLIP weights need a timm:..._clip_quickgelu_... backbone; the file does not say whose it is"
    return Converted(
        tensors, ignored, promised, back(names), {}, final_norm(state, "visual.ln_post"), warnings=[warning]
    )


def _around_timm(state: State) -> Converted:
    trunk = {key.removeprefix(_TRUNK): tensor for key, tensor in state.items() if key.startswith(_TRUNK)}
    converted = timm_names.convert(trunk).within(lambda key: _TRUNK + key)
    for key, tensor in state.items():
        if key.startswith(("text.", "visual.head.")) or key in EXTRA:
            converted.ignored[key] = _reason(key)
        elif not key.startswith(_TRUNK):
            converted.tensors[key] = tensor
    return converted


def _reason(key: str) -> str:
    if key.startswith("visual.ln_post."):
        return FINAL_NORM
    return "pooling and projection of the tower" if key.startswith("visual.") else _TEXT


def text_tower(state: State, outputs: int | None) -> dict[str, Shape]:
    """OpenAI's text tower, if the file has it."""
    blocks = "transformer.resblocks"
    depth = depth_of(state, blocks)
    if not depth:
        return {}
    width = width_of({key.replace(".ln_", ".norm"): t for key, t in state.items()}, f"{blocks}.")
    promised: dict[str, Shape] = {
        "token_embedding.weight": (ANY, width),
        "positional_embedding": (ANY, width),
        **norm("ln_final", width),
        "text_projection": (width, outputs),
        "logit_scale": (),
    }
    shapes: dict[str, Shape] = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
    }
    for i in range(depth):
        promised |= {f"{blocks}.{i}.{name}": shapes.get(name, (width,)) for name in BLOCK}
    return promised
