"""Weights into an encoder, every tensor accounted for: loaded, ignored with a reason, or an error.

`state_dict.unwrap` takes containers and wrapper prefixes off; then the reader that detects the layout converts, and the
result must fit the architecture exactly (`audit`).
"""

import dataclasses
from types import ModuleType
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mae_transfer.backbones import registry
from mae_transfer.backbones.blocks import add_layer_scale, lacks_layer_scale
from mae_transfer.backbones.checkpoints import (
    augreg,
    beit,
    clip,
    crossmae,
    dino,
    dinov2,
    dinov3,
    eva02,
    eva_names,
    hf_beit,
    hf_dinov2,
    hf_dinov3,
    hf_pixio,
    hf_vit,
    mae,
    mmpretrain,
    mocov3,
    naflexvit,
    own,
    pe,
    pixio,
    segment_anything,
    simmim,
    timm_names,
)
from mae_transfer.backbones.checkpoints.audit import audit, flat, refusal
from mae_transfer.backbones.checkpoints.hf_config import HFConfig, Stated
from mae_transfer.backbones.checkpoints.layout import Converted, Reader, State, depth_of, width_of
from mae_transfer.backbones.checkpoints.position_grid import native_grid, patches
from mae_transfer.backbones.checkpoints.report import LoadReport, fingerprint
from mae_transfer.backbones.checkpoints.state_dict import unwrap
from mae_transfer.backbones.checkpoints.unsupported import describe
from mae_transfer.backbones.checkpoints.values import told
from mae_transfer.backbones.grid import Grid, text
from mae_transfer.backbones.positions.tables import DECOMPOSED_TABLES, TABLE
from mae_transfer.backbones.registry import Spec
from mae_transfer.backbones.timm_vit import activation_name, activation_of, build, make_buffers, with_layer_scale
from mae_transfer.errors import UserError

READERS: tuple[ModuleType, ...] = (
    own,
    mae,
    crossmae,
    pixio,
    naflexvit,
    segment_anything,
    beit,
    dinov2,
    dinov3,
    dino,
    mocov3,
    simmim,
    mmpretrain,
    eva02,
    pe,
    clip,
    hf_vit,
    hf_beit,
    hf_dinov2,
    hf_dinov3,
    hf_pixio,
    augreg,
    timm_names,
)
"""A file is of one layout: no two of these detect it."""


def load(
    spec: Spec,
    raw: object,
    source: str,
    *,
    drop_path: float = 0.0,
    key: str | None = None,
    config: HFConfig | None = None,
    img_size: int | Grid | None = None,
    copy: bool = True,
    beside: bool = False,
) -> tuple[VisionTransformer, LoadReport]:
    """The plain ViT of `spec` with the weights that `raw` (a file's content) holds, on the CPU in float32.

    `source` names the file in messages; `key` is the entry of the file to read instead of the first of CONTAINERS;
    `config` is what stands beside the file; `img_size` the pixels that the encoder is for, which decide where nothing
    else tells the grid of the positions; without `copy` the weights may share memory with `raw`; with `beside` the
    report has the tensors that are no encoder's. The encoder that the ViT is for follows `report.spec`. Raises
    UserError if anything is missing, unexpected, of another shape or dtype, or not finite, and if the file is known to
    be of another number of heads or another activation.
    """
    try:
        return _load(spec, raw, source, drop_path, key, config, img_size, copy, beside)
    except UserError as error:
        if str(error).startswith("checkpoint "):
            raise
        raise refusal(source, str(error)) from error


def _load(
    spec: Spec,
    raw: Any,
    source: str,
    drop_path: float,
    key: str | None,
    config: HFConfig | None,
    img_size: int | Grid | None,
    copy: bool,
    beside: bool,
) -> tuple[VisionTransformer, LoadReport]:
    state, ignored = unwrap(raw, source, key)
    reader, converted, stated = read_layout(state, source, config)
    of_run: dict[str, str | None] = {}
    if reader is own:
        facts, ids = own.facts_of_run(raw)
        converted.facts = facts | converted.facts
    if reader is own and (spec.init == "own" or spec.rotary):  # what this project may have pre-trained
        of_run = ids
        own.spread_table(converted)
    settled = settle(spec, converted, source)
    if settled.timm_class == "Eva":
        eva_names.rename(converted)
    patch = settled.patch_size
    grid = native_grid(
        converted,
        settled.position_prefix,
        stated=patches(stated.image_size, patch),
        hints=(patches(stated.input_size, patch), patches(converted.facts.get("img_size"), patch)),
        usual=patches(settled.img_size, patch),
        asked=patches(img_size, patch),
    )
    pixels = settled.img_size if grid is None else (grid[0] * patch, grid[1] * patch)
    tensors = converted.tensors
    vit = build(settled, img_size=pixels, drop_path=drop_path, device="meta")
    _check_activation(spec, vit, stated)
    if stated.rotary is not None and not spec.rotary:
        raise UserError(
            f"its configuration says timm's {stated.rotary}, whose positions are rotary; those of {spec.name} are not; "
            f"pass --backbone timm:{stated.rotary}."
        )
    if reader in (own, segment_anything):
        _take_table_sizes(vit, tensors)
    if reader is own and spec.timm_arch is not None:
        _take_layer_scales(vit, tensors)
    audit(settled, state, converted, vit.state_dict(), source)
    vit.load_state_dict(_float32(tensors, copy), strict=True, assign=True)
    make_buffers(vit)
    report = LoadReport(spec.name, source, reader.NAME, fingerprint(tensors), sorted(tensors), **of_run)  # type: ignore[arg-type]
    report.ignored = ignored | converted.ignored
    report.spec, report.shared_tables = settled, converted.shared_tables
    report.final_norm = _float32(converted.final_norm, copy)
    report.beside = {key: state[key] for key in converted.ignored if key in state} if beside else {}
    report.settled = _differences(spec, settled)
    report.warnings = converted.warnings + flat(converted)
    return vit, report


def read_layout(state: State, source: str, config: HFConfig | None = None) -> tuple[Reader, Converted, Stated]:
    """The reader of a state dict, what it makes of it, and what a configuration beside the file states."""
    reader = pick(state, source)
    try:
        converted = reader.convert(state)
        stated = Stated() if config is None else config.stated(reader.NAME)
        _check_sizes(converted.tensors, stated)
    except UserError as error:
        raise refusal(source, str(error)) from error
    converted.facts |= stated.facts
    if stated.activation is not None and reader is clip:
        converted.warnings = []  # that the file does not say which activation it needs
    return reader, converted, stated


def _check_sizes(tensors: State, stated: Stated) -> None:
    """Raise UserError if the configuration is of a model of another width, depth or patch than the weights."""
    weight = tensors.get("patch_embed.proj.weight")
    patch = None if weight is None or weight.ndim != 4 else text((weight.shape[2], weight.shape[3]))
    of_file: tuple[tuple[str, tuple[str, object] | None, object], ...] = (
        ("channels", stated.width, width_of(tensors)),
        ("blocks", stated.depth, depth_of(tensors)),
        ("pixels a patch", stated.patch and (stated.patch[0], text(stated.patch[1])), patch),
    )
    for what, said, found in of_file:
        if said is not None and found and said[1] != found:
            raise UserError(
                f"its configuration says {said[0]} {said[1]} and its weights have {found} {what}; give the weights "
                "their own configuration, since eps, heads and normalisation are read from it."
            )


def _check_activation(spec: Spec, vit: VisionTransformer, stated: Stated) -> None:
    """Raise UserError if the weights are known to be made for another activation than the encoder's."""
    has, wanted = activation_of(vit), stated.activation
    if wanted is None or has is None:
        return
    if not isinstance(wanted, str) or activation_name(wanted) != has:
        raise UserError(
            f"its configuration has {stated.activation_key} {told(wanted)}, {spec.name} has {has}; pass a backbone of "
            "that activation (timm:..._quickgelu_... for CLIP's quick_gelu)."
        )


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
    statistics = [facts[part] for part in ("mean", "std") if part in facts]
    if any(len(each) != facts.get("in_chans", spec.in_chans) for each in statistics):
        raise refusal(source, "its mean and std are of another number of channels than its images.")
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
        "pos_resampling": "resampling of positions",
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
    """Blocks with and without windows have tables of different sizes: take the file's, which the encoder then fits."""
    for i, block in enumerate(vit.blocks):
        attn = getattr(block, "attn", None)
        if attn is None:  # a block of several attentions, which have no tables
            continue
        table = tensors.get(f"blocks.{i}.attn.{TABLE}")
        if table is not None and getattr(attn, TABLE, None) is not None and table.ndim == 2:
            heads = getattr(attn, TABLE).shape[1]
            attn.register_parameter(TABLE, nn.Parameter(torch.empty(len(table), heads, device="meta")))
        for name in DECOMPOSED_TABLES:
            table, wanted = tensors.get(f"blocks.{i}.attn.{name}"), getattr(attn, name, None)
            if table is not None and wanted is not None and table.ndim == 2 and len(table) % 2:
                size = (len(table), wanted.shape[1])
                attn.register_parameter(name, nn.Parameter(torch.empty(size, device="meta")))


def _take_layer_scales(vit: Any, tensors: State) -> None:
    """A run may have given a model of timm LayerScales that it is built without."""
    with torch.device("meta"):
        for i, block in enumerate(vit.blocks):
            has = any(f"blocks.{i}.{name}" in tensors for name in ("ls1.gamma", "gamma_1"))
            if has and lacks_layer_scale(block):
                add_layer_scale(block, vit.embed_dim, 1.0)


def pick(state: State, source: str) -> Reader:
    """The reader for a state dict; raises UserError, which says what it seems to be, if no layout is known."""
    reader = _reader(state)
    if reader is None:
        raise refusal(source, describe(state, _reader, [module.NAME for module in READERS]))
    return reader


def _reader(state: State) -> Reader | None:
    readers = (cast(Reader, module) for module in READERS)
    return next((reader for reader in readers if reader.detects(state)), None)
