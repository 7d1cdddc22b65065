"""Files that are known and not supported, or hold an encoder beside other modules: what to say of them in one line."""

import re
from collections.abc import Callable, Sequence

from mae_transfer.backbones.checkpoints.audit import NAMED, shown
from mae_transfer.backbones.checkpoints.layout import Reader, State
from mae_transfer.backbones.checkpoints.state_dict import KEY, PREFIXES

_KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"(.*\.)?vision_model\.encoder\.layers\.\d+\.self_attn\.",
        "CLIP or SigLIP by Hugging Face's names, which are not supported; pass OpenCLIP's file of the model, or a "
        "timm:<model> name",
    ),
    (
        r"(.*\.)?layers\.\d+\.blocks\.\d+\.|(.*\.)?stages\.\d+\.(blocks\.)?\d+\.|(.*\.)?downsample_layers\.\d+\.",
        "a hierarchical encoder (Swin, ConvNeXt), which is no plain ViT; pass a plain ViT",
    ),
    (r"(.*\.)?layer[1-4]\.\d+\.(conv|bn)[123]\.", "a ResNet, which is no plain ViT; pass a plain ViT"),
    (
        r"(.*\.)?encoder\.layers\.encoder_layer_\d+\.",
        "a ViT by torchvision's names, which are not supported; pass timm's file of such a model",
    ),
    (r"(.*\.)?lora_[AB]\.", "LoRA weights; merge them into the encoder (peft: merge_and_unload) and save that"),
)


def describe(state: State, reader_of: Callable[[State], Reader | None], known: Sequence[str]) -> str:
    """Why no reader takes a state dict: a model that is known, an encoder beside other modules, or an unknown layout.

    `reader_of` gives the reader of a part of the state dict, None if no one takes it; `known` names the layouts.
    """
    for pattern, what in _KNOWN:
        if any(re.match(pattern, name) for name in state):
            return f"{what}."
    parts = {start: reader.NAME for start, part in _parts(state).items() if (reader := reader_of(part)) is not None}
    outermost = [start for start in parts if not any(start != other and start.startswith(other) for other in parts)]
    if len(outermost) > 1:
        keys = " or ".join(f"--key {shown(start[:-1])}" for start in outermost)
        return (
            f"several encoders in one state dict, under {', '.join(map(shown, outermost))}; choose one by {keys} "
            "(backbone.checkpoint_key=)."
        )
    if outermost:
        start = outermost[0]
        beside = list(dict.fromkeys(_first(name) for name in state if not name.startswith(start)))
        more = f" and {len(beside) - NAMED} more" if len(beside) > NAMED else ""
        there = f" with {', '.join(beside[:NAMED])}{more} beside it" if beside else ""
        return (
            f"an encoder ({parts[start]}) under {shown(start)}*{there}; read "
            f"it alone by {KEY.format(shown(start[:-1]))}, or save the encoder's own state_dict()."
        )
    for prefix in PREFIXES:
        outside = [name for name in state if not name.startswith(prefix)]
        if len(outside) < len(state) / 2:
            return (
                f"most keys begin with {prefix!r} but not all, unexpected {', '.join(map(shown, outside[:NAMED]))}; "
                "save the encoder's own state_dict()."
            )
    seen = ", ".join(map(shown, list(state)[:NAMED]))
    return f"unknown layout, its keys are {seen} ...; known layouts: {', '.join(known)}."


def _parts(state: State) -> dict[str, State]:
    """Start of keys (`backbone.`, `model.encoder.`) -> the tensors below it, for starts of one name and of two."""
    names = [name.split(".") for name in state]
    starts = [".".join(parts[:depth]) + "." for parts in names for depth in (1, 2) if len(parts) > depth + 1]
    encoders = [start for start in dict.fromkeys(starts) if not re.search(r"decoder|predictor|text", start)]
    return {start: {name[len(start) :]: t for name, t in state.items() if name.startswith(start)} for start in encoders}


def _first(name: str) -> str:
    head, dot, _ = name.partition(".")
    return f"{shown(head)}.*" if dot else shown(name)
