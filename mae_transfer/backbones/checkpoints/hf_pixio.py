"""Hugging Face Pixio: ViT's layers with several class tokens, in the names on disk and those of transformers >= 5.

On disk the norms are `norm1`, `norm2` and the MLP is `mlp.fc1` or `intermediate.dense`, `output.dense`.
"""

from mae_transfer.backbones.checkpoints import hf_names, pixio
from mae_transfer.backbones.checkpoints.layout import Converted, State, several_class_tokens, width_of

NAME = "Hugging Face Pixio"
INITS = ("own",)

EPS = 1e-6
"""transformers' PixioConfig."""


def detects(state: State) -> bool:
    plain = any(".norm1." in key for key in state) and not any(".layer_scale1." in key for key in state)
    return hf_names.is_hugging_face(state) and (plain or several_class_tokens(state))


def convert(state: State) -> Converted:
    root, width = hf_names.root_of(state), width_of(state, hf_names.stem_of(state))
    before, after = "norm1", "norm2"
    if any(".layernorm_before." in key for key in state):
        before, after = "layernorm_before", "layernorm_after"
    plain = any(".mlp.fc1." in key for key in state)
    block = {
        before: "norm1",
        after: "norm2",
        "attention.o_proj" if hf_names.new_names(state) else "attention.output.dense": "attn.proj",
        "mlp.fc1" if plain else "intermediate.dense": "mlp.fc1",
        "mlp.fc2" if plain else "output.dense": "mlp.fc2",
    }
    converted = hf_names.convert(state, block, width)
    token, inner = f"{root}embeddings.cls_token", converted.original
    converted.facts |= {"eps": EPS, **pixio.split(converted.tensors)}
    converted.original = lambda key: token if key == "reg_token" else inner(key)
    hf_names.ignore_norm(converted, state, f"{root}layernorm", width)
    return converted
