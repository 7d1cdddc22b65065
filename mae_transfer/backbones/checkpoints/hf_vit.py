"""Hugging Face ViT, DeiT, ViT-MSN and ViTMAE (with its decoder), in old names and those of transformers >= 5.

LayerNorm eps is 1e-12 unless the `config.json` beside the file says otherwise. DeiT's distillation token becomes a
register. facebook/vit-mae-* seem to be converted from MAE's visualisation files, not from its pre-training ones.
"""

from mae_transfer.backbones.checkpoints import hf_names
from mae_transfer.backbones.checkpoints.layout import (
    Converted,
    Shape,
    State,
    depth_of,
    norm,
    several_class_tokens,
    width_of,
)

NAME = "Hugging Face ViT / DeiT / ViTMAE"
INITS = ("sup", "mae")

EPS = 1e-12

OLD_NAMES = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_NEW = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def detects(state: State) -> bool:
    named = any(".layernorm_before." in key for key in state if not key.startswith("decoder."))
    beit = any(key.endswith((".lambda_1", ".lambda_2", "relative_position_bias_table")) for key in state)
    return hf_names.is_hugging_face(state) and named and not beit and not several_class_tokens(state)


def block_names(state: State) -> dict[str, str]:
    """Modules of a block -> timm's."""
    return _NEW if hf_names.new_names(state) else OLD_NAMES


def convert(state: State) -> Converted:
    root = hf_names.root_of(state)
    width = width_of(state, hf_names.stem_of(state))
    token = f"{root}embeddings.distillation_token"
    distilled = token in state or any(key.startswith("distillation_classifier.") for key in state) or root == "deit."
    converted = hf_names.convert(state, block_names(state), width, own={token: "reg_token"} if distilled else None)
    converted.facts |= {"eps": EPS}
    if distilled:
        converted.facts |= {"reg_tokens": 1, "position_prefix": 2}
        converted.promised[token] = (1, 1, width)
    hf_names.ignore_norm(converted, state, f"{root}layernorm", width)
    for name in ("classifier", "cls_classifier", "distillation_classifier", f"{root}pooler.dense"):
        hf_names.ignore_linear(converted, state, name, width, "classifier or pooler")
    if f"{root}embeddings.mask_token" in state:
        mask: dict[str, Shape] = {f"{root}embeddings.mask_token": (1, 1, width)}
        hf_names.ignore(converted, state, mask, "mask token of the pre-training")
    if any(key.startswith("decoder.decoder_") for key in state):
        hf_names.ignore(converted, state, _decoder(state, width), "decoder of the pre-training")
    return converted


def _decoder(state: State, width: int) -> dict[str, Shape]:
    new = any(key.startswith("decoder.decoder_layers.") and ".q_proj." in key for key in state)
    stem = next((s for s in _STEMS if any(key.startswith(f"{s}.") for key in state)), _STEMS[0])
    names = _NEW if new else OLD_NAMES
    inner = width_of(state, stem)
    position = state.get(f"{hf_names.root_of(state)}embeddings.position_embeddings")
    rows = position.shape[1] if position is not None and position.ndim > 1 else None
    pixels = {len(state[k]) for k in ("decoder.decoder_pred.weight", "decoder.decoder_pred.bias") if k in state}
    outputs = pixels.pop() if len(pixels) == 1 else None
    promised: dict[str, Shape] = {
        "decoder.mask_token": (1, 1, inner),
        "decoder.decoder_pos_embed": (1, rows, inner),
        "decoder.decoder_embed.weight": (inner, width),
        "decoder.decoder_embed.bias": (inner,),
        **norm("decoder.decoder_norm", inner),
        "decoder.decoder_pred.weight": (outputs, inner),
        "decoder.decoder_pred.bias": (outputs,),
    }
    for i in range(depth_of(state, stem)):
        hidden = _hidden(state, f"{stem}.{i}.{next(k for k, v in names.items() if v == 'mlp.fc1')}")
        shapes = {"attn.proj": (inner, inner), "mlp.fc1": (hidden, inner), "mlp.fc2": (inner, hidden)}
        for old, name in names.items():
            key = f"{stem}.{i}.{old}"
            shape = shapes.get(name, (inner,))
            promised |= {f"{key}.weight": shape, f"{key}.bias": shape[:1]}
        for part in ("q_proj", "k_proj", "v_proj") if new else ("attention.query", "attention.key", "attention.value"):
            key = f"{stem}.{i}.attention.{part}"
            promised |= {f"{key}.weight": (inner, inner), f"{key}.bias": (inner,)}
    return promised


_STEMS = ("decoder.decoder_layers", "decoder.decoder_encoder.layer")


def _hidden(state: State, fc1: str) -> int | None:
    rows = {len(state[key]) for key in (f"{fc1}.weight", f"{fc1}.bias") if key in state}
    return rows.pop() if len(rows) == 1 else None
