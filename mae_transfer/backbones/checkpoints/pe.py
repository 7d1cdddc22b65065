"""Perception Encoder (facebookresearch/perception_models, core/vision_encoder/pe.py): `visual.*` or the tower alone.

OpenAI's names of a CLIP tower, with attention pooling (`attn_pool`, core) or LayerScale (`ls_1`, lang and spatial), and
without a tensor for its rotary positions. The text tower, which core files may have, is ignored if whole. Built by
timm's model: `--backbone timm:vit_pe_core_base_patch16_224.fb`.
"""

from mae_transfer.backbones.checkpoints import clip
from mae_transfer.backbones.checkpoints.layout import (
    ANY,
    FINAL_NORM,
    Converted,
    Shape,
    State,
    back,
    depth_of,
    final_norm,
    has,
    linear,
    norm,
    renamed,
    width_of,
)

NAME = "Perception Encoder"
INITS = ("pe",)

_VISUAL = "visual."
_BLOCK = clip.BLOCK | {f"ls_{n}.gamma": f"ls{n}.gamma" for n in (1, 2)}


def detects(state: State) -> bool:
    if any(key.startswith(_VISUAL) for key in state):
        return any(clip.PERCEPTION.match(key) for key in state)
    stem = {"conv1.weight", "class_embedding", "positional_embedding", "ln_pre.weight", "ln_pre.bias"} & state.keys()
    text = {"token_embedding.weight", "text_projection"} & state.keys()
    return len(stem) > 1 and not text and any(key.startswith("transformer.resblocks.") for key in state)


def convert(state: State) -> Converted:
    start = _VISUAL if any(key.startswith(_VISUAL) for key in state) else ""
    blocks = f"{start}transformer.resblocks"
    width = width_of({key.replace(".ln_", ".norm"): t for key, t in state.items()}, f"{blocks}.")
    names = {start + old: new for old, new in clip.STEM.items()}
    for i in range(depth_of(state, blocks)):
        names |= {f"{blocks}.{i}.{old}": f"blocks.{i}.{new}" for old, new in _BLOCK.items()}
    head, pool = _head(state, start, width), _pool(state, f"{start}attn_pool.", width)
    text = clip.text_tower(state, head.get(f"{start}proj", (None, None))[1]) if start else {}
    after = norm(f"{start}ln_post", width) if has(state, f"{start}ln_post") else {}
    ignored = dict.fromkeys((*head, *pool), "pooling and projection of the tower")
    ignored |= dict.fromkeys(text, "text tower") | dict.fromkeys(after, FINAL_NORM)
    ignored |= {key: "text tower" for key in clip.EXTRA if start and key in state}
    promised = head | pool | text | after | {f"{start}positional_embedding": (ANY, width)}
    if f"{start}class_embedding" in state:
        promised[f"{start}class_embedding"] = (width,)
    ignored = {key: why for key, why in ignored.items() if key in state}
    tensors = renamed({key: tensor for key, tensor in state.items() if key not in ignored}, names)
    for key in ("cls_token", "pos_embed"):
        if key in tensors and tensors[key].shape[-1:] == (width,):
            tensors[key] = tensors[key].reshape(1, -1, width)
    return Converted(tensors, ignored, promised, back(names), {}, final_norm(state, f"{start}ln_post"))


def _head(state: State, start: str, width: int) -> dict[str, Shape]:
    projections = (f"{start}proj", "text_projection")
    outputs = {state[key].shape[-1] for key in projections if key in state and state[key].ndim}
    if not any(key in state for key in projections):
        return {}
    return {f"{start}proj": (width, outputs.pop() if len(outputs) == 1 else None)}


def _pool(state: State, start: str, width: int) -> dict[str, Shape]:
    """Its AttentionPooling, if the file has it."""
    if not any(key.startswith(start) for key in state):
        return {}
    inner = linear(state, f"{start}mlp.c_fc", width)
    hidden = next(iter(inner.values()))[0]
    return {
        f"{start}probe": (1, 1, width),
        f"{start}attn.in_proj_weight": (3 * width, width),
        f"{start}attn.in_proj_bias": (3 * width,),
        f"{start}attn.out_proj.weight": (width, width),
        f"{start}attn.out_proj.bias": (width,),
        **norm(f"{start}layernorm", width),
        **inner,
        f"{start}mlp.c_proj.weight": (width, hidden),
        f"{start}mlp.c_proj.bias": (width,),
    }
