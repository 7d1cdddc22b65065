"""Every tensor of a file accounted for: what is missing, unexpected, misshapen, of a wrong type or not finite."""

import torch
from torch import Tensor

from mae_transfer.backbones import registry
from mae_transfer.backbones.checkpoints.layout import ANY, Converted, Shape, State, depth_of, width_of
from mae_transfer.backbones.registry import Spec
from mae_transfer.errors import UserError

NAMED = 4
"""Keys named in an error; the rest are counted."""


def refusal(source: str, text: str) -> UserError:
    """The error of a file, in one line whatever its names hold."""
    return UserError(" ".join(f"checkpoint {source}: {text}".split()))


def shown(name: object) -> str:
    """The name of an entry or a tensor, for a message; of a name that is no text, its type."""
    if not isinstance(name, str):
        return f"<{type(name).__name__}>"
    text = name if name.isprintable() else repr(name)[1:-1]
    return text if len(text) <= 300 else f"{text[:297]}..."


def audit(spec: Spec, state: State, converted: Converted, wanted: State, source: str) -> None:
    """Raise UserError, which names them, for tensors that are not as the layout and the encoder have them.

    `state` is the file's, `wanted` the encoder's own state dict.
    """
    problems = _promises(spec, state, converted) + _encoder(converted, wanted)
    problems = list(dict.fromkeys(problems)) + _final_norm(state, converted)
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        found = f"{', '.join(problems[:NAMED])}{more}"
        raise refusal(source, f"{_mismatch(spec, converted.tensors)} ({found}).")
    for key, tensor in state.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and not tensor.isfinite().all():
            raise refusal(source, f"{shown(key)} holds NaN or infinite values; take an earlier checkpoint.")
    weight = converted.final_norm.get("norm.weight")
    if weight is not None and not weight.any():
        name = _of_file(state, weight, "norm.weight")
        raise refusal(source, f"{name}, of the final norm, is all zeros: all features would be the same.")


def flat(converted: Converted) -> list[str]:
    """Warnings of weights that are one value throughout, which training leaves none of.

    Matrices, tokens and position embeddings, and norms of zeros. Not biases, LayerScale's gammas and norms of ones.
    """
    found: dict[str, list[str]] = {}
    for key, tensor in converted.tensors.items():
        if tensor.numel() > 1 and (tensor.ndim > 1 or key.endswith(".weight")):
            value = tensor.flatten()[0].item()
            if (tensor.ndim > 1 or value == 0) and (tensor == value).all():
                found.setdefault(f"{value:g}", []).append(shown(converted.original(key)))
    return [
        f"every value is {value} in {', '.join(names[:NAMED])}"
        f"{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''}: as no training leaves it; the file may be "
        "damaged"
        for value, names in found.items()
    ]


def _promises(spec: Spec, state: State, converted: Converted) -> list[str]:
    problems = []
    for key, shape in converted.promised.items():
        if key not in state:
            if spec.final_norm or not key.startswith(("norm.", "fc_norm.")):
                problems.append(f"missing {shown(key)}")
        elif not _agrees(state[key].shape, shape):
            problems.append(f"{shown(key)} is {_text(state[key].shape)}, not {_text(shape)}")
    return problems


def _encoder(converted: Converted, wanted: State) -> list[str]:
    tensors = converted.tensors
    problems = [f"missing {shown(converted.original(key))}" for key in wanted if key not in tensors]
    for key, tensor in tensors.items():
        name = shown(converted.original(key))
        if key not in wanted:
            problems.append(f"unexpected {name}")
        elif tensor.shape != wanted[key].shape:
            problems.append(f"{name} is {_text(tensor.shape)}, not {_text(wanted[key].shape)}")
            if key == "pos_embed" and tensor.ndim == 3 and tensor.shape[2] == wanted[key].shape[2]:
                problems[-1] += "; a grid that is no square takes image_size in a config.json beside the file"
        elif not tensor.is_floating_point():
            problems.append(f"{name} holds {tensor.dtype}, not floating point")
    return problems


def _final_norm(state: State, converted: Converted) -> list[str]:
    return [
        f"{_of_file(state, tensor, name)} holds {tensor.dtype}, not floating point"
        for name, tensor in converted.final_norm.items()
        if not tensor.is_floating_point()
    ]


def _of_file(state: State, tensor: Tensor, name: str) -> str:
    return shown(next((key for key, value in state.items() if value is tensor), name))


def _agrees(shape: torch.Size, promised: Shape) -> bool:
    return len(shape) == len(promised) and all(p in (ANY, s) for s, p in zip(shape, promised, strict=True))


def _mismatch(spec: Spec, tensors: State) -> str:
    """What the file appears to be, where that is another architecture than the spec's."""
    patch = tensors.get("patch_embed.proj.weight")
    seen = {
        "embed dim": width_of(tensors),
        "depth": depth_of(tensors),
        "patch": patch.shape[-1] if patch is not None and patch.ndim == 4 else spec.patch_size,
    }
    if tuple(seen.values()) == (spec.embed_dim, spec.depth, spec.patch_size):
        return f"does not fit {spec.name}, pass a whole checkpoint of it"
    same = [
        s for s in map(registry.find, registry.names()) if (s.embed_dim, s.depth, s.patch_size) == tuple(seen.values())
    ]
    names = [s.name for s in same if s.init == spec.init] or [s.name for s in same]
    guess, remedy = (f"that is {names[0]}", f"--backbone {names[0]} or ") if names else ("no registered size", "")
    text = ", ".join(f"{what} {value}" for what, value in seen.items())
    return f"has {text}: {guess}, not {spec.name}; pass {remedy}another file"


def _text(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
