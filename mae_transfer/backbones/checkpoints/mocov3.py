"""MoCo v3 training checkpoints (facebookresearch/moco-v3), as released: `vit-s-300ep.pth.tar`, `vit-b-300ep.pth.tar`.

The encoder is `base_encoder`, its `head` the projection MLP; `momentum_encoder` is its moving average and `predictor`
an MLP of the pre-training. All three are ignored, but only if they are whole. The number of heads is the layout's own:
12 in ViT-S too. Files made by its `convert_to_deit.py` have timm's names; there the position embedding tells.
"""

from mae_transfer.backbones.checkpoints import fixed_position, timm_names
from mae_transfer.backbones.checkpoints.layout import Converted, Shape, State, common, width_of

NAME = "MoCo v3"
INITS = ("mocov3",)

_BASE, _MOMENTUM = "base_encoder.", "momentum_encoder."


def detects(state: State) -> bool:
    return any(key.startswith(_BASE) for key in state)


def convert(state: State) -> Converted:
    base = {key.removeprefix(_BASE): tensor for key, tensor in state.items() if key.startswith(_BASE)}
    width = width_of(base)
    promised, features = _mlp(state, f"{_BASE}head", width, 3)
    ignored = {key: "projection head of the pre-training" for key in promised if key in state}
    encoder = {key: tensor for key, tensor in base.items() if _BASE + key not in ignored}
    converted = timm_names.convert(encoder).within(lambda key: _BASE + key)
    if any(key.startswith(_MOMENTUM) for key in state):
        promised |= {key.replace(_MOMENTUM, _BASE): _shape(state, key) for key in state if key.startswith(_MOMENTUM)}
        promised |= {key.replace(_BASE, _MOMENTUM): _shape(state, key) for key in state if key.startswith(_BASE)}
    if any(key.startswith("predictor.") for key in state):
        promised |= _mlp(state, "predictor", features, 2)[0]
    for key in state:
        if key in promised and key.startswith((_MOMENTUM, "predictor.")):
            ignored[key] = "momentum encoder" if key.startswith(_MOMENTUM) else "predictor of the pre-training"
    rest = {key: tensor for key, tensor in state.items() if not key.startswith(_BASE) and key not in ignored}
    converted.tensors |= rest
    converted.ignored |= ignored
    converted.promised |= promised
    if width in fixed_position.MOCO_HEADS:
        converted.facts["num_heads"] = fixed_position.MOCO_HEADS[width]
    return converted


def _shape(state: State, key: str) -> Shape:
    return tuple(state[key].shape)


def _mlp(state: State, name: str, width: int, layers: int) -> tuple[dict[str, Shape], int]:
    """Linear layers without bias (0, 3, 6), each with a BatchNorm (1, 4, 7) whose size is what most of it says.

    The last BatchNorm has no weight and bias (`moco/builder.py`: `_build_mlp`), of the head as of the predictor. Gives
    their promise, and the size of the output.
    """
    promised: dict[str, Shape] = {}
    for layer in range(layers):
        stem = f"{name}.{3 * layer + 1}"
        parts = ["running_mean", "running_var", *(["weight", "bias"] if layer + 1 < layers else [])]
        rows = common(len(state[f"{stem}.{part}"]) for part in parts if f"{stem}.{part}" in state)
        promised[f"{name}.{3 * layer}.weight"] = (rows, width)
        promised |= {f"{stem}.{part}": (rows,) for part in parts}
        promised[f"{stem}.num_batches_tracked"] = ()
        width = rows
    return promised, width
