"""Weights into an encoder, every tensor accounted for: loaded, ignored with a reason, or an error.

The file's containers (`model`, `state_dict`, `module`) and wrapper prefixes (DDP `module.`, torch.compile `_orig_mod.`)
come off here, once; then the first reader that detects its layout converts, and the result must fit the architecture
exactly.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mae_transfer.backbones import registry
from mae_transfer.backbones.checkpoints import beit, mae, timm_names
from mae_transfer.backbones.checkpoints.layout import Converted, Reader, State, depth_of, width_of
from mae_transfer.backbones.checkpoints.report import LoadReport, fingerprint
from mae_transfer.backbones.registry import Spec
from mae_transfer.backbones.timm_vit import TABLE, build, with_layer_scale
from mae_transfer.errors import UserError

READERS: tuple[ModuleType, ...] = (mae, beit, timm_names)
"""Asked in this order; the first that detects its layout reads the file."""

CONTAINERS = ("model", "state_dict", "module")
PREFIXES = ("module.", "_orig_mod.")
NAMED = 4
"""Keys named in an error; the rest are counted."""


def load(spec: Spec, raw: Any, source: str, *, drop_path: float = 0.0) -> tuple[VisionTransformer, LoadReport]:
    """The plain ViT of `spec` with the weights that `raw` (a file's content) holds, on the CPU in float32.

    `source` names the file in messages. Raises UserError if anything is missing, unexpected, of another shape or dtype,
    or not finite.
    """
    state, ignored = unwrap(raw, source)
    reader = pick(state, source)
    converted = reader.convert(state)
    tensors = converted.tensors
    spec = with_layer_scale(spec, any(key.endswith(".ls1.gamma") for key in tensors))
    vit = build(spec, img_size=_img_size(spec, tensors), drop_path=drop_path, device="meta")
    _audit(spec, state, converted, vit.state_dict(), source)
    weights = {key: tensor.to(torch.float32, copy=True).contiguous() for key, tensor in tensors.items()}
    vit.load_state_dict(weights, strict=True, assign=True)
    report = LoadReport(spec.name, source, reader.NAME, fingerprint(tensors), sorted(tensors))
    report.ignored = ignored | converted.ignored
    return vit, report


def unwrap(raw: Any, source: str) -> tuple[State, dict[str, str]]:
    """The state dict in a file's content, wrapper prefixes off, and the entries beside it with the reason."""
    if not isinstance(raw, Mapping):
        raise UserError(
            f"checkpoint {source}: holds a {type(raw).__name__}, not a state dict; save model.state_dict()."
        )
    state: Mapping = raw
    container = next((key for key in CONTAINERS if isinstance(raw.get(key), Mapping)), None)
    ignored = {}
    if container is not None:
        state = raw[container]
        ignored = {str(key): f"beside {container!r}: state of the training run" for key in raw if key != container}
    other = [key for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if other or not state:
        what = f"{other[0]!r} is a {type(state[other[0]]).__name__}" if other else "it is empty"
        raise UserError(f"checkpoint {source}: not a state dict of tensors, {what}; save model.state_dict().")
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return dict(state), ignored


def pick(state: State, source: str) -> Reader:
    """The reader for a state dict; raises UserError with the keys it saw if no layout is known."""
    for module in READERS:
        reader = cast(Reader, module)
        if reader.detects(state):
            return reader
    seen = ", ".join(list(state)[:NAMED])
    known = ", ".join(module.NAME for module in READERS)
    raise UserError(f"checkpoint {source}: unknown layout, its keys are {seen} ...; known layouts: {known}.")


def _img_size(spec: Spec, tensors: State) -> int:
    """Pixels of the square grid that the position embedding or the tables are for; the spec's where that is unclear."""
    cells = [
        tensor.shape[1] - spec.position_prefix
        for key, tensor in tensors.items()
        if key == "pos_embed" and tensor.ndim == 3
    ]
    cells += [_table_cells(len(tensor)) for key, tensor in tensors.items() if key.endswith(TABLE)]
    common = max(set(cells), key=cells.count, default=0)
    side = round(max(common, 0) ** 0.5)
    return side * spec.patch_size if side and side * side == common else spec.img_size


def _table_cells(rows: int) -> int:
    """Tokens of the square grid of a table with this many rows, 0 if there is none."""
    side = round(max(rows - 3, 0) ** 0.5)
    return ((side + 1) // 2) ** 2 if side % 2 and side * side == rows - 3 else 0


def _audit(spec: Spec, state: State, converted: Converted, wanted: State, source: str) -> None:
    tensors = converted.tensors
    problems = [f"missing {key}" for key in wanted if key not in tensors]
    for key, shape in converted.promised.items():
        if key not in state and (spec.final_norm or not key.startswith(("norm.", "fc_norm."))):
            problems.append(f"missing {key}")
        elif key in state and tuple(state[key].shape) != shape:
            problems.append(f"{key} is {_text(state[key].shape)}, not {_text(shape)}")
    problems += [f"unexpected {key}" for key in tensors if key not in wanted]
    for key, tensor in tensors.items():
        if key in wanted and tensor.shape != wanted[key].shape:
            problems.append(f"{key} is {_text(tensor.shape)}, not {_text(wanted[key].shape)}")
        elif key in wanted and not tensor.is_floating_point():
            problems.append(f"{key} holds {tensor.dtype}, not floating point")
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise UserError(f"checkpoint {source}: {_mismatch(spec, tensors)} ({', '.join(problems[:NAMED])}{more}).")
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"checkpoint {source}: {key} holds NaN or infinite values; take an earlier checkpoint.")


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
