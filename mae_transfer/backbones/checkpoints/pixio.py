"""Pixio (facebookresearch/pixio), as released, and its training checkpoints with the decoder.

MAE's names, with several class tokens: `cls_token` (1, n, C), and a row of `pos_embed` for each. timm holds the first
as its class token and the others as registers with a position.
"""

import torch

from mae_transfer.backbones.checkpoints import mae, timm_names
from mae_transfer.backbones.checkpoints.layout import Converted, State, several_class_tokens
from mae_transfer.backbones.registry import class_token_fields

NAME = "Pixio"
INITS = ("own",)


def detects(state: State) -> bool:
    return several_class_tokens(state) and any(key.startswith("blocks.") for key in state)


def convert(state: State) -> Converted:
    encoder = {f"{key} (a second one)" if key == "reg_token" else key: tensor for key, tensor in state.items()}
    facts = split(encoder)
    reader = mae if any(key.startswith("decoder_") for key in state) else timm_names
    converted = reader.convert(encoder).within(lambda key: "cls_token" if key == "reg_token" else key)
    converted.facts |= facts
    return converted


def split(tensors: State) -> dict[str, int]:
    """Take the class tokens of timm's names apart, in place; gives the fields of the Spec that follow."""
    if "cls_token" not in tensors or not several_class_tokens(tensors):  # damaged, which the audit says
        return {}
    first, *others = tensors["cls_token"].split(1, dim=1)
    tensors |= {"cls_token": first, "reg_token": torch.cat(others, dim=1)}
    return class_token_fields(1 + len(others))
