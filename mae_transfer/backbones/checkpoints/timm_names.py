"""timm's VisionTransformer naming, which is also the official MAE encoder's, DeiT's (I to III) and released DINO's.

Ignored: final norm (`norm` or, under average pooling, `fc_norm`; without bias where the blocks' norms have none, as
RMSNorm), attention pooling, classifier. A linear-probe
checkpoint of the official MAE code has `head.0` (BatchNorm without affine) and `head.1`. The distillation token of DeiT
becomes a register: both are a token with a position of its own. DeiT-III's own files call LayerScale gamma_1, gamma_2,
and so does timm's Eva, whose other names (q_bias, fc1_g, ...) are left.
"""

import re

from mae_transfer.backbones.checkpoints import fixed_position
from mae_transfer.backbones.checkpoints.layout import (
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
    several_class_tokens,
    width_of,
)

NAME = "timm ViT / official MAE"

_FOREIGN = re.compile(
    r"decoder|embeds\.|mask_token$|masked_embed$|register_tokens$|storage_tokens$|rope(?!\.freqs(?!_))|lm_head|blocks\.\d+\.\d+\."
    r"|.*(relative_position_bias_table|bias_mask|mlp\.w12\.\w+|mlp\.w[123]\.\w+|mlp\.lin[12]\.\w+|attn\.rel_pos_[hw]|inner_attn_ln\.\w+)$"
)
_REASONS = {
    "norm": FINAL_NORM,
    "fc_norm": FINAL_NORM,
    "head": "classifier",
    "head_dist": "classifier of the distillation token",
    "attn_pool": "pooling before the classifier",
}


def detects(state: State) -> bool:
    blocks = any(key.startswith("blocks.") for key in state)
    biased = any(key.endswith((".q_bias", ".v_bias")) for key in state)
    blocks = blocks and not several_class_tokens(state)
    return blocks and (not biased or eva(state)) and not any(_FOREIGN.match(key) for key in state)


def eva(state: State) -> bool:
    """Whether biases of query and value are those of timm's Eva: BEiT, which has them too, has tables of relative
    positions, a class token, no absolute positions, no registers; and one layer for query, key and value."""
    if any(key.endswith("relative_position_bias_table") for key in state):
        return False
    return "cls_token" not in state or any(
        key in ("pos_embed", "reg_token") or ".attn.q_proj." in key or ".mlp.fc1_g." in key for key in state
    )


def convert(state: State) -> Converted:
    width = width_of(state)
    last = "fc_norm" if has(state, "fc_norm") else "norm"
    biased = any(re.fullmatch(r"blocks\.\d+\.norm[12]?\.bias", key) for key in state) or f"{last}.bias" in state
    promised = norm(last, width, biased) | _classifier(state, width) | _pooling(state, width)
    facts: dict[str, object] = fixed_position.facts(state)
    if has(state, "head_dist"):
        promised |= {"dist_token": (1, 1, width), **linear(state, "head_dist", width)}
    if "dist_token" in state:
        facts |= {"reg_tokens": 1, "position_prefix": 2}
    ignored = {key: _REASONS[key.split(".")[0]] for key in promised if key in state and key != "dist_token"}
    names = {"dist_token": "reg_token"} if "dist_token" in state else {}
    if any(re.fullmatch(r"blocks\.\d+\.gamma_[12]", key) for key in state):
        names |= {f"blocks.{i}.gamma_{n}": f"blocks.{i}.ls{n}.gamma" for i in range(depth_of(state)) for n in (1, 2)}
    tensors = renamed({key: tensor for key, tensor in state.items() if key not in ignored}, names)
    return Converted(tensors, ignored, promised, back(names), facts, final_norm(state, last))


def _classifier(state: State, width: int) -> dict[str, Shape]:
    if any(key.startswith("head.1.") for key in state):
        statistics: dict[str, Shape] = {"head.0.running_mean": (width,), "head.0.running_var": (width,)}
        return statistics | {"head.0.num_batches_tracked": ()} | linear(state, "head.1", width)
    return linear(state, "head", width) if has(state, "head") else {}


def _pooling(state: State, width: int) -> dict[str, Shape]:
    """timm's AttentionPoolLatent as SigLIP has it."""
    if not any(key.startswith("attn_pool.") for key in state):
        return {}
    hidden = next(iter(linear(state, "attn_pool.mlp.fc1", width).values()))[0]
    return {
        "attn_pool.latent": (1, 1, width),
        "attn_pool.q.weight": (width, width),
        "attn_pool.q.bias": (width,),
        "attn_pool.kv.weight": (2 * width, width),
        "attn_pool.kv.bias": (2 * width,),
        "attn_pool.proj.weight": (width, width),
        "attn_pool.proj.bias": (width,),
        **norm("attn_pool.norm", width),
        "attn_pool.mlp.fc1.weight": (hidden, width),
        "attn_pool.mlp.fc1.bias": (hidden,),
        "attn_pool.mlp.fc2.weight": (width, hidden),
        "attn_pool.mlp.fc2.bias": (width,),
    }
