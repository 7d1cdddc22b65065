"""ViT, DeiT-III, MAE, BEiT and the like as OpenMMLab's mmpretrain, mmselfsup and mmsegmentation save them.

Blocks are `layers.<i>` with `ln1`, `ln2` and `ffn.layers.0.0`, `ffn.layers.1` (mmpretrain `models/backbones/
vision_transformer.py`, `beit.py`); mmsegmentation's ViT has the names of torch's attention, `attn.attn.in_proj_weight`.
Renamed they are timm's or BEiT's own, whose readers do the rest. Heads and necks, which stand beside `backbone.`, are
not looked at. Mean and std are in the configuration, not here.
"""

import re

from mae_transfer.backbones.checkpoints import beit, timm_names
from mae_transfer.backbones.checkpoints.layout import Converted, State, has

NAME = "OpenMMLab (mmpretrain, mmsegmentation)"

_BACKBONE = "backbone."
_BESIDE = (
    *("head.", "neck.", "data_preprocessor.", "target_generator."),
    *("decode_head.", "auxiliary_head.", "rpn_head.", "roi_head.", "bbox_head."),
)
_OWN = re.compile(r"layers\.\d+\.(ln[12]\.|ffn\.layers\.|attn\.attn\.)")
_TIMM = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^pre_norm\.", "norm_pre."),
    (r"^ln1\.", "norm."),
    (r"^ln2\.", "fc_norm."),
    (r"^layers\.", "blocks."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.attn\.attn\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (r"\.attn\.gamma1\.(weight|scale)$", ".ls1.gamma"),
    (r"\.ffn\.gamma2\.(weight|scale)$", ".ls2.gamma"),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)
_BACK = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^norm_pre\.", "pre_norm."),
    (r"^norm\.", "ln1."),
    (r"^fc_norm\.", "ln2."),
    (r"^blocks\.", "layers."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"\.ls1\.gamma$", ".attn.gamma1.weight"),
    (r"\.ls2\.gamma$", ".ffn.gamma2.weight"),
)
_TORCH_ATTENTION = ((r"\.attn\.qkv\.", ".attn.attn.in_proj_"), (r"\.attn\.proj\.", ".attn.attn.out_proj."))


def detects(state: State) -> bool:
    return any(_OWN.match(name.removeprefix(_BACKBONE)) for name in state)


def convert(state: State) -> Converted:
    prefix = _BACKBONE if any(name.startswith(f"{_BACKBONE}layers.") for name in state) else ""
    encoder: State = {}
    of_file = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            new = _named(name.removeprefix(prefix), _TIMM)
            new = f"{name} (a second one)" if new in encoder else new
            encoder[new], of_file[new] = tensor, name
    back = _BACK + (_TORCH_ATTENTION if any(".attn.attn." in name for name in state) else ())
    converted = (beit if beit.detects(encoder) else timm_names).convert(encoder)
    if not has(encoder, "norm") and not has(encoder, "fc_norm"):  # mmsegmentation's `final_norm=False`
        converted.promised = {key: shape for key, shape in converted.promised.items() if not key.startswith("norm.")}
    converted = converted.within(lambda key: of_file.get(key) or prefix + _named(key, back))
    for name in [name for name in state if not name.startswith(prefix)]:
        if name.startswith(_BESIDE):
            converted.ignored[name] = "another part of the model, beside the backbone"
        else:
            of_file[name] = name
            converted.tensors[name] = state[name]
    return converted


def _named(name: str, names: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in names:
        name = re.sub(pattern, new, name)
    return name
