"""AugReg and ViT `.npz` files of Google's JAX code (google-research/vision_transformer), as flax names them.

Kernels are transposed to PyTorch's order; query, key and value come as (width, heads, head width) and are joined, so
the number of heads is in the file. `pre_logits` and `head` are of the classifier.
"""

import re

from torch import Tensor

from mae_transfer.backbones.checkpoints.layout import FINAL_NORM, Converted, Shape, State, common, joined

NAME = "AugReg npz (JAX)"
INITS = ("augreg", "sup")

_BLOCK = "Transformer/encoderblock_"
_ATTENTION = "MultiHeadDotProductAttention_1"
_NORMS = {"LayerNorm_0": "norm1", "LayerNorm_2": "norm2"}
_MLP = {"MlpBlock_3/Dense_0": "mlp.fc1", "MlpBlock_3/Dense_1": "mlp.fc2"}
_ROOTS = ("opt/target/", "params/", "")


def detects(state: State) -> bool:
    return any(_BLOCK in key for key in state)


def convert(state: State) -> Converted:
    root = next(r for r in _ROOTS if any(key.startswith(r + _BLOCK) for key in state) or not r)
    blocks = root + _BLOCK
    numbers = [key.removeprefix(blocks).split("/")[0] for key in state if key.startswith(blocks)]
    depth = max((int(number) + 1 for number in numbers if number.isdigit()), default=0)
    width = common(t.shape[0] for key, t in state.items() if key.endswith("/scale") and t.ndim == 1)
    heads = common(
        t.shape[1] for key, t in state.items() if re.search("(query|key|value)/kernel$", key) and t.ndim == 3
    )
    names = {
        "cls": "cls_token",
        "Transformer/posembed_input/pos_embedding": "pos_embed",
        **_layer("embedding", "patch_embed.proj"),
    }
    names = {root + old: new for old, new in names.items()}
    promised: dict[str, Shape] = {}
    tensors: State = {}
    for i in range(depth):
        for old, new in _NORMS.items():
            names[f"{blocks}{i}/{old}/scale"] = f"blocks.{i}.{new}.weight"
            names[f"{blocks}{i}/{old}/bias"] = f"blocks.{i}.{new}.bias"
        for old, new in _MLP.items():
            names |= _layer(f"{blocks}{i}/{old}", f"blocks.{i}.{new}")
        attention, target = f"{blocks}{i}/{_ATTENTION}", f"blocks.{i}.attn"
        promised |= _attention_shapes(attention, width, heads)
        tensors |= _attention(state, attention, target, width, heads)
    last = f"{root}Transformer/encoder_norm"
    promised |= {f"{last}/scale": (width,), f"{last}/bias": (width,)}
    ignored = {key: FINAL_NORM for key in (f"{last}/scale", f"{last}/bias") if key in state}
    inputs = width
    for name in ("pre_logits", "head"):
        kernel, bias = f"{root}{name}/kernel", f"{root}{name}/bias"
        found = {state[key].shape[-1] for key in (kernel, bias) if key in state and state[key].ndim}
        outputs = found.pop() if len(found) == 1 else None
        if kernel in state or bias in state:
            promised |= {kernel: (inputs, outputs), bias: (outputs,)}
            ignored |= {key: "classifier" for key in (kernel, bias) if key in state}
            inputs = outputs or inputs
    for key, tensor in state.items():
        if key in names:
            tensors[names[key]] = _transposed(tensor)
        elif key not in promised and key not in ignored:
            tensors[key] = tensor
    inverse = {new: old for old, new in names.items()}
    facts = {"num_heads": heads} if heads else {}
    norm = {f"norm.{new}": state[f"{last}/{old}"] for old, new in _SCALE.items() if f"{last}/{old}" in state}
    return Converted(tensors, ignored, promised, lambda key: inverse.get(key, key), facts, norm)


_SCALE = {"scale": "weight", "bias": "bias"}


def _layer(old: str, new: str) -> dict[str, str]:
    return {f"{old}/kernel": f"{new}.weight", f"{old}/bias": f"{new}.bias"}


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor


def _attention_shapes(name: str, width: int, heads: int) -> dict[str, Shape]:
    each = width // heads if heads else None
    shapes: dict[str, Shape] = {f"{name}/out/kernel": (heads, each, width), f"{name}/out/bias": (width,)}
    for part in ("query", "key", "value"):
        shapes |= {f"{name}/{part}/kernel": (width, heads, each), f"{name}/{part}/bias": (heads, each)}
    return shapes


def _attention(state: State, name: str, target: str, width: int, heads: int) -> State:
    flat: State = {}
    for key, shape in _attention_shapes(name, width, heads).items():
        if key in state and tuple(state[key].shape) == shape:
            tensor = state[key]
            matrix = tensor.reshape(-1, width).T if key.endswith("out/kernel") else tensor.reshape(width, -1).T
            flat[key] = tensor.flatten() if key.endswith("bias") else matrix
    found: State = {}
    for kind, part, shape in (("kernel", "weight", (width, width)), ("bias", "bias", (width,))):
        q, k, v = (f"{name}/{side}/{kind}" for side in ("query", "key", "value"))
        whole = joined(flat, (q, k, v), shape, True)
        found |= {f"{target}.qkv.{part}": whole} if whole is not None else {}
        if f"{name}/out/{kind}" in flat:
            found[f"{target}.proj.{part}"] = flat[f"{name}/out/{kind}"]
    return found
