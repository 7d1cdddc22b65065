"""CrossMAE (TonyLianLong/CrossMAE `models_cross.py`): MAE's encoder, with a decoder of cross-attention.

The decoder is ignored, but only if it is whole. A decoder that reads a weighted sum of all blocks (`wfm`, `dec_norms`)
leaves the encoder without a final norm.
"""

from mae_transfer.backbones.checkpoints import mae, timm_names
from mae_transfer.backbones.checkpoints.layout import ANY, Converted, Shape, State, depth_of, has, norm, width_of

NAME = "CrossMAE"
INITS = ("mae",)

_WEIGHTED = ("wfm.", "dec_norms.")


def detects(state: State) -> bool:
    decoder = any(key.startswith("decoder_blocks.") and ".cross_attn." in key for key in state)
    return decoder and any(key.startswith("blocks.") for key in state)


def convert(state: State) -> Converted:
    promised = _decoder(state)
    converted = timm_names.convert({key: tensor for key, tensor in state.items() if key not in promised})
    if any(key.startswith(_WEIGHTED) for key in state) and not has(state, "norm"):
        converted.promised = {key: shape for key, shape in converted.promised.items() if not key.startswith("norm.")}
    converted.ignored |= {key: "decoder of the pre-training" for key in promised if key in state}
    converted.promised |= promised
    return converted


def _decoder(state: State) -> dict[str, Shape]:
    outer, depth = width_of(state), depth_of(state, "decoder_blocks")
    maes = mae.decoder(state)
    width = maes["decoder_norm.weight"][0] or 0
    of_self = any(key.startswith("decoder_blocks.") and ".self_attn." in key for key in state)
    promised = {key: shape for key, shape in maes.items() if ".attn." not in key and "decoder_embed" not in key}
    for i in range(depth):
        block = f"decoder_blocks.{i}"
        attention = {
            "cross_attn.q": (width, width),
            "cross_attn.kv": (2 * width, outer),
            "cross_attn.proj": (width, width),
        }
        if of_self:
            promised |= norm(f"{block}.norm0", width)
            attention |= {"self_attn.qkv": (3 * width, width), "self_attn.proj": (width, width)}
        for name, shape in attention.items():
            promised |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    if any(key.startswith(_WEIGHTED) for key in state):
        promised["wfm.linear.weight"] = (depth, ANY)
        for i in range(depth):
            promised |= norm(f"dec_norms.{i}", outer)
    return promised
