"""DINOv3, native, timm's and Hugging Face's, and EVA-02: rotary positions, which this project's encoder has none of.

They are recognised only to be refused with a plain reason: their attention rotates queries and keys by position in
every block, which windowed attention and relative position bias here know nothing of.
"""

import re

from mae_transfer.backbones.checkpoints.layout import Converted, State
from mae_transfer.errors import UserError

NAME = "rotary positions (DINOv3, EVA-02)"

_MARK = re.compile(
    r"rope|storage_tokens$|.*\.attn\.(qkv\.bias_mask|inner_attn_ln\.\w+)$|(.*\.)?layer\.\d+\.layer_scale1\."
)


def detects(state: State) -> bool:
    blocks = any(key.startswith(("blocks.", "layer.", "model.layer.")) for key in state)
    return blocks and (any(_MARK.match(key) for key in state) or timm_dinov3(state))


def timm_dinov3(state: State) -> bool:
    """timm's Eva class with DINOv3's weights: LayerScale by BEiT's names, but no bias in qkv and no positions."""
    absent = any(
        key.endswith((".attn.qkv.bias", ".q_bias", ".v_bias", "relative_position_bias_table")) for key in state
    )
    return any(key.endswith(".gamma_1") for key in state) and "pos_embed" not in state and not absent


def convert(state: State) -> Converted:
    raise UserError(
        "rotary position embeddings (DINOv3, EVA-02) are not supported by this encoder; pass a backbone with absolute "
        "or relative positions, such as timm:vit_base_patch14_reg4_dinov2.lvd142m."
    )
