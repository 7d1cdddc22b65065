"""SimMIM pre-training checkpoints of a ViT (microsoft/SimMIM): `encoder.*` is BEiT's ViT, `decoder.0` one convolution.

Its images are normalised with ImageNet's statistics, unlike BEiT's own. Its fine-tuned files are plain BEiT ones.
"""

from mae_transfer.backbones.checkpoints import beit, timm_names
from mae_transfer.backbones.checkpoints.layout import Converted, State, linear, width_of
from mae_transfer.backbones.registry import IMAGENET_MEAN, IMAGENET_STD

NAME = "SimMIM"
INITS = ("beit",)

_ENCODER = "encoder."


def detects(state: State) -> bool:
    return any(key.startswith(f"{_ENCODER}blocks.") for key in state) and any(
        key in ("decoder.0.weight", "decoder.0.bias", f"{_ENCODER}mask_token") for key in state
    )


def convert(state: State) -> Converted:
    encoder = {key.removeprefix(_ENCODER): tensor for key, tensor in state.items() if key.startswith(_ENCODER)}
    width = width_of(encoder)
    mask = encoder.pop("mask_token", None)
    converted = (beit if beit.detects(encoder) else timm_names).convert(encoder).within(lambda key: _ENCODER + key)
    converted.promised[f"{_ENCODER}mask_token"] = (1, 1, width)
    if mask is not None:
        converted.ignored[f"{_ENCODER}mask_token"] = "mask token of the pre-training"
    rows = linear(state, "decoder.0", width)["decoder.0.bias"][0]
    for key, shape in (("decoder.0.weight", (rows, width, 1, 1)), ("decoder.0.bias", (rows,))):
        converted.promised[key] = shape
        if key in state:
            converted.ignored[key] = "decoder of the pre-training"
    others = {key: t for key, t in state.items() if not key.startswith(_ENCODER) and key not in converted.ignored}
    converted.tensors |= others
    converted.facts |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return converted
