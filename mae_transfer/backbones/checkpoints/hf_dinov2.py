"""Hugging Face Dinov2, with and without registers, in old names and those of transformers >= 5.

With registers, the class token's position is added to it, as in DINOv2's own files. SwiGLU comes in three namings:
`weights_in`, `weights_out` on disk, `gate_proj`, `up_proj`, `down_proj` in memory; both are timm's `fc1`, `fc2`.
"""

import torch

from mae_transfer.backbones.checkpoints import hf_names
from mae_transfer.backbones.checkpoints.dinov2 import without_class_position
from mae_transfer.backbones.checkpoints.layout import Converted, Shape, State, depth_of, width_of

NAME = "Hugging Face Dinov2"
INITS = ("dinov2",)

_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}


def detects(state: State) -> bool:
    return hf_names.is_hugging_face(state) and any(".layer_scale1." in key for key in state)


def convert(state: State) -> Converted:
    root, stem = hf_names.root_of(state), hf_names.stem_of(state)
    width = width_of(state, stem)
    gated = any(".mlp.weights_in." in key for key in state)
    split = any(".mlp.gate_proj." in key or ".mlp.up_proj." in key for key in state)
    names = dict(_BLOCK)
    names["attention.o_proj" if hf_names.new_names(state) else "attention.output.dense"] = "attn.proj"
    names["mlp.weights_out" if gated else "mlp.down_proj" if split else "mlp.fc2"] = "mlp.fc2"
    if not split:
        names["mlp.weights_in" if gated else "mlp.fc1"] = "mlp.fc1"
    registers = f"{root}embeddings.register_tokens"
    own = {registers: "reg_token"}
    converted = hf_names.convert(state, names, width, own=own)
    converted.facts |= {"eps": 1e-6, "pos_resampling": "antialias" if registers in state else "bicubic"}
    if split:
        _join_gate(converted, state, stem)
    without_class_position(converted.tensors, width)
    hf_names.ignore_norm(converted, state, f"{root}layernorm", width)
    hf_names.ignore_linear(converted, state, "classifier", 2 * width, "classifier")
    mask: dict[str, Shape] = {f"{root}embeddings.mask_token": (1, width)}
    if any(key in state for key in mask):
        hf_names.ignore(converted, state, mask, "mask token of the pre-training")
    return converted


def _join_gate(converted: Converted, state: State, stem: str) -> None:
    for i in range(depth_of(state, stem)):
        for part in ("weight", "bias"):
            keys = [f"{stem}.{i}.mlp.{name}.{part}" for name in ("gate_proj", "up_proj")]
            present = [state[key] for key in keys if key in state]
            shape = next((tuple(tensor.shape) for tensor in present), (None,))
            agree = len({tuple(tensor.shape) for tensor in present}) == 1
            converted.promised |= dict.fromkeys(keys, shape if agree else (None,))
            for key in keys:
                converted.tensors.pop(key, None)
            if len(present) == 2 and agree:
                converted.tensors[f"blocks.{i}.mlp.fc1.{part}"] = torch.cat(present)
