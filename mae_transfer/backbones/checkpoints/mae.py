"""Official MAE files with the decoder: `mae_pretrain_vit_*_full.pth`, `mae_visualize_*` and training checkpoints.

The encoder is named as timm's; the decoder (any width and depth, facebookresearch/mae `models_mae.py`) is ignored, but
only if it is whole. Files with the encoder alone and fine-tuned ones go through `timm_names`.
"""

from mae_transfer.backbones.checkpoints import timm_names
from mae_transfer.backbones.checkpoints.layout import (
    Converted,
    Shape,
    State,
    depth_of,
    linear,
    norm,
    several_class_tokens,
    width_of,
)

NAME = "official MAE with decoder"
INITS = ("mae",)


def detects(state: State) -> bool:
    decoded, blocks = (any(key.startswith(start) for key in state) for start in ("decoder_", "blocks."))
    return decoded and blocks and not several_class_tokens(state) and not any(".cross_attn." in key for key in state)


def convert(state: State) -> Converted:
    promised = decoder(state)
    encoder = timm_names.convert({key: tensor for key, tensor in state.items() if key not in promised})
    ignored = {key: "decoder of the pre-training" for key in promised if key in state}
    encoder.ignored |= ignored
    encoder.promised |= promised
    return encoder


def decoder(state: State) -> dict[str, Shape]:
    """Promise of the decoder's tensors."""
    widths = [
        state[key].shape[-1] for key in ("mask_token", "decoder_norm.weight", "decoder_norm.bias") if key in state
    ]
    width = max(set(widths), key=widths.count, default=0)
    rows = state["pos_embed"].shape[1] if "pos_embed" in state and state["pos_embed"].ndim > 1 else None
    promised: dict[str, Shape] = {
        "mask_token": (1, 1, width),
        "decoder_pos_embed": (1, rows, width),
        "decoder_embed.weight": (width, width_of(state)),
        "decoder_embed.bias": (width,),
        **norm("decoder_norm", width),
        **linear(state, "decoder_pred", width),
    }
    for i in range(depth_of(state, "decoder_blocks")):
        block = f"decoder_blocks.{i}"
        promised |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        for name, outputs, inputs in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            promised[f"{block}.{name}.weight"] = (outputs * width, inputs * width)
            promised[f"{block}.{name}.bias"] = (outputs * width,)
    return promised
