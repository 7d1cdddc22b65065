"""Weights into an encoder, every tensor accounted for: loaded, ignored with a reason, or an error.

The file's containers (`model`, `state_dict`, `teacher`, ...) and wrapper prefixes (DDP `module.`, torch.compile
`_orig_mod.`, Lightning `model.`) come off here, once; then the reader that detects its layout converts, and the result
must fit the architecture exactly.
"""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mae_transfer.backbones import registry
from mae_transfer.backbones.checkpoints import (
    augreg,
    beit,
    clip,
    dino,
    dinov2,
    hf_beit,
    hf_dinov2,
    hf_vit,
    mae,
    mocov3,
    own,
    rotary,
    simmim,
    timm_names,
)
from mae_transfer.backbones.checkpoints.hf_config import HFConfig
from mae_transfer.backbones.checkpoints.layout import ANY, Converted, Reader, Shape, State, depth_of, width_of
from mae_transfer.backbones.checkpoints.report import LoadReport, fingerprint
from mae_transfer.backbones.positions.tables import DECOMPOSED_TABLES, TABLE
from mae_transfer.backbones.registry import Spec
from mae_transfer.backbones.timm_vit import build, with_layer_scale
from mae_transfer.errors import UserError

READERS: tuple[ModuleType, ...] = (
    own,
    mae,
    beit,
    dinov2,
    dino,
    mocov3,
    simmim,
    clip,
    hf_vit,
    hf_beit,
    hf_dinov2,
    augreg,
    rotary,
    timm_names,
)
"""A file is of one layout: no two of these detect it."""

CONTAINERS = ("model", "state_dict", "module", "teacher", "student")
"""Where a file keeps its state dict, in the order in which they are looked for."""
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.")
NAMED = 4
"""Keys named in an error; the rest are counted."""


def load(
    spec: Spec,
    raw: Any,
    source: str,
    *,
    drop_path: float = 0.0,
    key: str | None = None,
    config: HFConfig | None = None,
    copy: bool = True,
) -> tuple[VisionTransformer, LoadReport]:
    """The plain ViT of `spec` with the weights that `raw` (a file's content) holds, on the CPU in float32.

    `source` names the file in messages; `key` is the entry of the file to read instead of the first of CONTAINERS;
    `config` is what stands beside the file; without `copy` the weights may share memory with `raw`. The encoder that
    the ViT is for follows `report.spec`. Raises UserError if anything is missing, unexpected, of another shape or
    dtype, or not finite, and if the file is known to be of another number of heads.
    """
    state, ignored = unwrap(raw, source, key)
    reader, converted = read_layout(state, source, config)
    tensors = converted.tensors
    of_run: dict[str, str | None] = {}
    if reader is own and spec.init == "own":
        facts, of_run = own.facts_of_run(raw)
        converted.facts = facts | converted.facts
        own.spread_table(converted)
    settled = settle(spec, converted, source)
    img_size = converted.facts.get("img_size") or _img_size(settled, tensors)
    vit = build(settled, img_size=img_size, drop_path=drop_path, device="meta")
    if not settled.class_token:
        _take_table_sizes(vit, tensors)
    _audit(settled, state, converted, vit.state_dict(), source)
    vit.load_state_dict(_float32(tensors, copy), strict=True, assign=True)
    report = LoadReport(spec.name, source, reader.NAME, fingerprint(tensors), sorted(tensors), **of_run)  # type: ignore[arg-type]
    report.ignored = ignored | converted.ignored
    report.spec, report.shared_tables = settled, converted.shared_tables
    report.final_norm = _float32(converted.final_norm, copy)
    report.settled = _differences(spec, settled)
    report.warnings = converted.warnings + [
        f"{converted.original(name)} is all zeros"
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and not tensor.any()
    ]
    return vit, report


def unwrap(raw: Any, source: str, key: str | None = None) -> tuple[State, dict[str, str]]:
    """The state dict in a file's content, wrapper prefixes off, and the entries beside it with the reason."""
    if not isinstance(raw, Mapping):
        raise UserError(
            f"checkpoint {source}: holds a {type(raw).__name__}, not a state dict; save model.state_dict()."
        )
    state: Mapping = raw
    present = [name for name, value in raw.items() if isinstance(value, Mapping)]
    if key is not None and key not in present:
        raise UserError(f"checkpoint {source}: has no entry {key!r}; it has {', '.join(map(str, present)) or 'none'}.")
    container = key or _container(raw)
    ignored = {}
    if container is not None:
        state = raw[container]
        ignored = {str(name): f"beside {container!r}: state of the training run" for name in raw if name != container}
        for beside in ("student", "teacher", "ema", "state_dict_ema", "model_ema"):
            if beside in ignored and raw[beside] is not None:
                ignored[beside] = f"beside {container!r}, which is what is read; checkpoint_key={beside} reads this one"
    if container == "ema":  # torch's AveragedModel, as the engine saves it
        state = {name: value for name, value in state.items() if name != "n_averaged"}
    other = [name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if other or not state:
        what = f"{other[0]!r} is a {type(state[other[0]]).__name__}" if other else "it is empty"
        raise UserError(f"checkpoint {source}: not a state dict of tensors, {what}; save model.state_dict().")
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state), ignored


def _container(raw: Mapping) -> str | None:
    if {"step", "model", "optimizer", "ema"} <= raw.keys() and isinstance(raw["ema"], Mapping):
        return "ema"  # of a run of this project: what it evaluates
    return next((name for name in CONTAINERS if isinstance(raw.get(name), Mapping)), None)


def read_layout(state: State, source: str, config: HFConfig | None = None) -> tuple[Reader, Converted]:
    """The reader of a state dict, and what it makes of it, with what a configuration beside the file adds."""
    reader = pick(state, source)
    try:
        converted = reader.convert(state)
        if config is not None:
            converted.facts |= config.facts(hugging_face=reader.NAME.startswith("Hugging Face"))
    except UserError as error:
        raise UserError(f"checkpoint {source}: {error}") from error
    return reader, converted


def settle(spec: Spec, converted: Converted, source: str) -> Spec:
    """The spec with what the file decides; raises UserError if it is known to have another number of heads."""
    facts = dict(converted.facts)
    heads = facts.pop("num_heads", spec.num_heads)
    if heads != spec.num_heads:
        same = (spec.embed_dim, spec.depth, spec.patch_size, heads)
        fits = [name for name, s in _registered() if (s.embed_dim, s.depth, s.patch_size, s.num_heads) == same]
        raise UserError(
            f"checkpoint {source}: has {heads} heads, {spec.name} has {spec.num_heads}; the shapes agree but the "
            f"attention would be wrong; pass --backbone {' or '.join(fits) or f'of {heads} heads'}."
        )
    spec = with_layer_scale(spec, any(key.endswith(".ls1.gamma") for key in converted.tensors))
    return dataclasses.replace(spec, **facts)


def _registered() -> list[tuple[str, Spec]]:
    specs = ((name, registry.find(name)) for name in registry.names())
    return [(name, spec) for name, spec in specs if spec.init not in ("own", "random")]


def _differences(spec: Spec, settled: Spec) -> list[str]:
    what = {
        "mean": "normalisation mean",
        "std": "normalisation std",
        "eps": "LayerNorm eps",
        "reg_tokens": "tokens beside the class token",
        "qkv_bias": "bias of query, key and value",
    }
    found = [
        (text, getattr(settled, name)) for name, text in what.items() if getattr(spec, name) != getattr(settled, name)
    ]
    found += [("LayerScale", settled.layer_scale is not None)] * (
        (spec.layer_scale is None) != (settled.layer_scale is None)
    )
    return [f"{text} {value}" for text, value in found]


def _float32(tensors: State, copy: bool) -> State:
    """Contiguous float32 tensors, each with memory of its own and no more than that."""
    owned, seen = {}, set()
    for key, tensor in tensors.items():
        shared = tensor.data_ptr() in seen or tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
        seen.add(tensor.data_ptr())
        owned[key] = tensor.detach().to(torch.float32, copy=copy or shared).contiguous()
    return owned


def _take_table_sizes(vit: Any, tensors: State) -> None:
    """Blocks of a run with windows have tables of different sizes: take the file's, which the encoder then checks."""
    for i, block in enumerate(vit.blocks):
        table = tensors.get(f"blocks.{i}.attn.{TABLE}")
        if table is not None and getattr(block.attn, TABLE, None) is not None and table.ndim == 2:
            heads = getattr(block.attn, TABLE).shape[1]
            block.attn.register_parameter(TABLE, nn.Parameter(torch.empty(len(table), heads, device="meta")))
        for name in DECOMPOSED_TABLES:
            table, wanted = tensors.get(f"blocks.{i}.attn.{name}"), getattr(block.attn, name, None)
            if table is not None and wanted is not None and table.ndim == 2 and len(table) % 2:
                size = (len(table), wanted.shape[1])
                block.attn.register_parameter(name, nn.Parameter(torch.empty(size, device="meta")))


def pick(state: State, source: str) -> Reader:
    """The reader for a state dict; raises UserError with the keys it saw if no layout is known."""
    for module in READERS:
        reader = cast(Reader, module)
        if reader.detects(state):
            return reader
    for prefix in PREFIXES:
        outside = [key for key in state if not key.startswith(prefix)]
        if len(outside) < len(state) / 2:
            raise UserError(
                f"checkpoint {source}: most keys begin with {prefix!r} but not all, unexpected "
                f"{', '.join(outside[:NAMED])}; save the encoder's own state_dict()."
            )
    seen = ", ".join(list(state)[:NAMED])
    known = ", ".join(module.NAME for module in READERS)
    raise UserError(f"checkpoint {source}: unknown layout, its keys are {seen} ...; known layouts: {known}.")


def _img_size(spec: Spec, tensors: State) -> int | tuple[int, int]:
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
    name = converted.original
    problems = []
    for key, shape in converted.promised.items():
        if key not in state and (spec.final_norm or not key.startswith(("norm.", "fc_norm."))):
            problems.append(f"missing {key}")
        elif key in state and not _agrees(state[key].shape, shape):
            problems.append(f"{key} is {_text(state[key].shape)}, not {_text(shape)}")
    missing = [f"missing {name(key)}" for key in wanted if key not in tensors]
    problems += [line for line in missing if line not in problems]
    problems += [f"unexpected {name(key)}" for key in tensors if key not in wanted]
    for key, tensor in tensors.items():
        if key in wanted and tensor.shape != wanted[key].shape:
            problems.append(f"{name(key)} is {_text(tensor.shape)}, not {_text(wanted[key].shape)}")
        elif key in wanted and not tensor.is_floating_point():
            problems.append(f"{name(key)} holds {tensor.dtype}, not floating point")
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise UserError(f"checkpoint {source}: {_mismatch(spec, tensors)} ({', '.join(problems[:NAMED])}{more}).")
    for key, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"checkpoint {source}: {key} holds NaN or infinite values; take an earlier checkpoint.")


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
