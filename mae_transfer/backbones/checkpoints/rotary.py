"""DINOv3, native, timm's and Hugging Face's, and EVA-02: rotary positions, which this project's encoder has none of.

They are recognised only to be refused with a plain reason: their attention rotates queries and keys by position in
every block, which windowed attention and relative position bias here know nothing of.
"""

import re

from mae_transfer.backbones.checkpoints.layout import Converted, State
from mae_transfer.errors import UserError

NAME = "rotary positions (DINOv3, EVA-02)"

_MARK = re.compile(r"rope|storage_tokens$|.*\.attn\.(qkv\.bias_mask|inner_attn_ln\.\w+)$|(.*\.)?layer\.\d+\.layer_scale1\.")


def detects(state: State) -> bool:
    if any(key.startswith(("blocks.", "layer.", "model.layer.")) for key in state) is False:
        return False
    scaled = any(key.endswith(".gamma_1") for key in state) and "pos_embed" not in state
    beit = any(key.endswith((".q_bias", ".v_bias", "relative_position_bias_table")) for key in state)
    return any(_MARK.match(key) for key in state if not key.startswith("encoder.")) or (scaled and not beit)


def convert(state: State) -> Converted:
    raise UserError(
        "rotary position embeddings (DINOv3, EVA-02) are not supported by this encoder; pass a backbone with absolute "
        "or relative positions, such as timm:vit_base_patch14_reg4_dinov2.lvd142m."
    )
