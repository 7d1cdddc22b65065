"""What the Hugging Face transformers layouts share: where the blocks are, and query, key and value as three layers.

Files on the hub have the old names (`encoder.layer.0.attention.attention.query`); transformers >= 5 holds ViT, DeiT,
ViTMAE and BEiT in memory as `layers.0.attention.q_proj` and Dinov2 as `encoder.layer.0.attention.q_proj`, which
`torch.save(model.state_dict())` writes as they are.
"""

import re

from mae_transfer.backbones.checkpoints.layout import (
    FINAL_NORM,
    Converted,
    State,
    back,
    depth_of,
    has,
    joined,
    linear,
    norm,
    renamed,
)

_OLD = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
_NEW = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_STEM = re.compile(r"(.*?)(encoder\.layer|layers)\.\d+\.")
_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
}


def is_hugging_face(state: State) -> bool:
    """Whether a state dict is of a ViT of transformers, in old or new names."""
    return any("embeddings.patch_embeddings.projection." in key for key in state) and bool(stem_of(state))


def stem_of(state: State) -> str:
    """What the keys of the blocks start with, before the number."""
    matches = (_STEM.match(key) for key in state if "decoder" not in key)
    return next((match[1] + match[2] for match in matches if match), "")


def root_of(state: State) -> str:
    """`vit.`, `beit.`, ... of a model with a head; empty for the bare one."""
    return str(_STEM.sub(r"\1", stem_of(state) + ".0."))


def new_names(state: State) -> bool:
    """Whether the blocks have the names of transformers >= 5."""
    return any(".attention.q_proj." in key for key in state if "decoder" not in key)


def convert(
    state: State, block: dict[str, str], width: int, *, key_bias: bool = True, own: dict[str, str] | None = None
) -> Converted:
    """The embeddings and blocks of a transformers ViT.

    `block`: module of a block or parameter that stands alone -> timm's; a module has weight and bias. `own`: further
    file key -> timm's. Everything not named stays in `tensors`, for the caller to explain.
    """
    root, stem = root_of(state), stem_of(state)
    names = {root + key: name for key, name in _EMBEDDINGS.items()} | (own or {})
    promised: dict = {}
    attention: State = {}
    parts = ["weight", "bias"] if any(has_bias(state, stem)) else ["weight"]
    for i in range(depth_of(state, stem)):
        for old, new in block.items():
            ends = ("",) if old in ("lambda_1", "lambda_2") or old.endswith(".lambda1") else (".weight", ".bias")
            names |= {f"{stem}.{i}.{old}{end}": f"blocks.{i}.{new}{end}" for end in ends}
        for part in parts:
            q, k, v = (f"{stem}.{i}.{name}.{part}" for name in (_NEW if new_names(state) else _OLD))
            shape = (width, width) if part == "weight" else (width,)
            with_key = key_bias or part == "weight"
            promised |= dict.fromkeys((q, k, v) if with_key else (q, v), shape)
            whole = joined(state, (q, k, v), shape, with_key)
            if whole is not None:
                attention[f"blocks.{i}.attn.qkv.{part}"] = whole
    rest = {key: tensor for key, tensor in state.items() if key not in promised}
    facts = {} if len(parts) == 2 else {"qkv_bias": False}
    return Converted(renamed(rest, names) | attention, {}, promised, back(names), facts)


def has_bias(state: State, stem: str) -> list[bool]:
    return [key.startswith(stem) and key.endswith(("q_proj.bias", "query.bias")) for key in state]


def ignore(converted: Converted, state: State, shapes: dict, reason: str) -> None:
    """Take keys of the file out of the encoder's tensors, with the promise that they are there in these shapes."""
    converted.promised |= shapes
    for key in shapes:
        if key in state:
            converted.ignored[key] = reason
            converted.tensors.pop(key, None)


def ignore_linear(converted: Converted, state: State, name: str, inputs: int, reason: str) -> None:
    """`ignore` for a linear layer, if the file has it."""
    if has(state, name):
        ignore(converted, state, linear(state, name, inputs), reason)


def ignore_norm(converted: Converted, state: State, name: str, width: int) -> None:
    """`ignore` for the norm after the blocks, which is kept for exports."""
    ignore(converted, state, norm(name, width), FINAL_NORM)
    for part in ("weight", "bias"):
        if f"{name}.{part}" in state:
            converted.final_norm[f"norm.{part}"] = state[f"{name}.{part}"]
