"""BEiT's initialisation of a ViT: of its pre-training, and of random weights that are compared with it on COCO.

microsoft/unilm `beit/modeling_pretrain.py`, `_init_weights` and `fix_init_weight`: weights of linear layers and of the
patch embedding, tokens and positions are normal with a deviation of 0.02, cut at one deviation; biases are zero; the
layers that write to the residual stream, `attn.proj` and `mlp.fc2`, are smaller by sqrt(2 n) in block n = 1, 2, ...

Li et al. 2021 (arXiv 2111.11429, section 3) follow "the code of" BEiT without naming a file. Its other one,
`modeling_finetune.py`, does not cut and leaves the patch embedding to torch; MIMDet, the reproduction, cuts.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

STD = 0.02
OUTPUTS = ("attn.proj", "mlp.fc2", "out_proj")
"""Ends of the names of those layers, in timm's parallel blocks too."""


@torch.no_grad()
def as_beit(vit: Any) -> None:
    """Give timm's VisionTransformer new weights in place; LayerScale and relative position tables are left."""
    for token in (vit.cls_token, vit.pos_embed):
        if token is not None:
            cut_normal(token)
    for module in vit.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            cut_normal(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for number, block in enumerate(vit.blocks, 1):
        for name, module in block.named_modules():
            if name.endswith(OUTPUTS):
                module.weight.div_(math.sqrt(2.0 * number))


def cut_normal(parameter: Tensor) -> None:
    """In place: normal of deviation 0.02 before it is cut at one deviation."""
    nn.init.trunc_normal_(parameter, std=STD, a=-STD, b=STD)
