"""A small Swin, and mmsegmentation's SwinTransformer (mmdetection's is the same) of its sizes: the oracle of the tests.

mmsegmentation's tools/model_converters/swin2mmseg.py says how the parameters of Swin's code, which are timm's, are
named and ordered.
"""

import functools
import re
from typing import Any

import timm
from timm.models import swin_transformer
from torch import Tensor

WIDTH, DEPTHS, HEADS, WINDOW = 24, (2, 2, 2, 2), (1, 2, 4, 8), 7
BACKBONE: dict[str, Any] = {
    "pretrain_img_size": 224,
    "embed_dims": WIDTH,
    "patch_size": 4,
    "window_size": WINDOW,
    "mlp_ratio": 4,
    "depths": list(DEPTHS),
    "num_heads": list(HEADS),
    "strides": (4, 2, 2, 2),
    "out_indices": (0, 1, 2, 3),
    "qkv_bias": True,
    "patch_norm": True,
    "drop_path_rate": 0.3,
    "use_abs_pos_embed": False,
    "act_cfg": {"type": "GELU"},
    "norm_cfg": {"type": "LN", "requires_grad": True},
}
"""As configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py there, and mmdetection's
configs/swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py, but small."""
_RENAMED = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^stages\.", "layers."),
    (r"\.w_msa\.", "."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)


@functools.cache
def small_swin() -> str:
    """The name of a Swin of the sizes above, known to timm."""
    sizes = {"embed_dim": WIDTH, "depths": DEPTHS, "num_heads": HEADS, "window_size": WINDOW, "patch_size": 4}

    def swin_of_a_test(pretrained: bool = False, **options: Any) -> Any:
        make = swin_transformer._create_swin_transformer
        return make("swin_tiny_patch4_window7_224", pretrained=pretrained, **{**sizes, **options})

    swin_of_a_test.__module__ = swin_transformer.__name__
    swin_transformer.swin_of_a_test = swin_of_a_test
    timm.models.register_model(swin_of_a_test)
    return "timm:swin_of_a_test"


def our_state(theirs: dict[str, Tensor], norms: str) -> dict[str, Tensor]:
    """The weights of their backbone by our names, `correct_unfold_*_order` of the converter undone; a stage's
    downsampling begins the next stage in timm. `norms` is where ours has the norms of the maps."""
    found = {}
    for key, tensor in theirs.items():
        if key.endswith("relative_position_index"):
            continue
        if ".downsample." in key:  # their channels are those of nn.Unfold: channel, row, column
            last = tensor.unflatten(-1, (-1, 2, 2))
            tensor = last.movedim(-1, -3).movedim(-1, -2).flatten(-3)  # column, row, channel
        found[our_name(key, norms)] = tensor
    return found


def our_name(key: str, norms: str) -> str:
    """The name here of a parameter of their backbone."""
    if found := re.fullmatch(r"norm(\d)\.(\w+)", key):
        return f"{norms}.{found[1]}.{found[2]}"
    if ".downsample." in key:
        key = re.sub(r"stages\.(\d)\.", lambda m: f"stages.{int(m[1]) + 1}.", key)
    for old, new in _RENAMED:
        key = re.sub(old, new, key)
    return f"encoder.model.{key}"
