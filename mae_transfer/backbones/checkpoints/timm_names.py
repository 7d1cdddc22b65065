"""timm's VisionTransformer naming, which is also the official MAE encoder's, DeiT's and released DINO's.

Ignored: final norm (`norm` or, under average pooling, `fc_norm`), attention pooling, classifier. A linear-probe
checkpoint of the official MAE code has `head.0` (BatchNorm without affine) and `head.1`.
"""

from mae_transfer.backbones.checkpoints.layout import Converted, Shape, State, linear, norm, width_of

NAME = "timm ViT / official MAE"

_REASONS = {
    "norm": "final norm, not used by the encoder",
    "fc_norm": "final norm, not used by the encoder",
    "head": "classifier",
    "attn_pool": "pooling before the classifier",
}


def detects(state: State) -> bool:
    return any(key.startswith("blocks.") for key in state)


def convert(state: State) -> Converted:
    width = width_of(state)
    promised = norm("fc_norm" if "fc_norm.weight" in state or "fc_norm.bias" in state else "norm", width)
    promised |= _classifier(state, width)
    ignored = {key: _REASONS[key.split(".")[0]] for key in promised if key in state}
    ignored |= {key: _REASONS["attn_pool"] for key in state if key.startswith("attn_pool.")}
    return Converted({key: tensor for key, tensor in state.items() if key not in ignored}, ignored, promised)


def _classifier(state: State, width: int) -> dict[str, Shape]:
    if any(key.startswith("head.1.") for key in state):
        statistics: dict[str, Shape] = {"head.0.running_mean": (width,), "head.0.running_var": (width,)}
        return statistics | {"head.0.num_batches_tracked": ()} | linear(state, "head.1", width)
    if "head.weight" in state or "head.bias" in state:
        return linear(state, "head", width)
    return {}
