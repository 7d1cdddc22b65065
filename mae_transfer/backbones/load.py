"""`load_backbone`: a name, its weights and the options -> an encoder with a report of what was loaded."""

from pathlib import Path
from typing import Any

from torch import nn

from mae_transfer.backbones.checkpoints import files, hf_config
from mae_transfer.backbones.checkpoints.layout import FINAL_NORM
from mae_transfer.backbones.checkpoints.loader import load
from mae_transfer.backbones.checkpoints.report import LoadReport
from mae_transfer.backbones.hub import published_weights
from mae_transfer.backbones.registry import Spec
from mae_transfer.backbones.timm_vit import TABLE, build, resolve
from mae_transfer.backbones.vit import Grid, ViTEncoder
from mae_transfer.errors import UserError


def load_backbone(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    weights: str = "pretrained",
    img_size: int | Grid | None = None,
    window_size: int = 0,
    num_global_blocks: int = 4,
    rel_pos: bool | str = False,
    pos_embed: str = "native",
    layer_scale: float | None = None,
    drop_path: float = 0.0,
    grad_checkpointing: bool = False,
    taps: tuple[int, ...] | None = None,
    checkpoint_key: str | None = None,
    final_norm: bool = False,
) -> ViTEncoder:
    """The encoder of a registered name or `timm:<model[.tag]>`, on the CPU in float32; `.load_report` tells its story.

    Weights come from `checkpoint` if given, else from timm's hub (cache or download); `weights="random"`, which
    `random_*` names imply, is timm's initialisation from torch's global generator. `checkpoint` is a file, a local
    Hugging Face or timm model folder, or the folder of a run (its newest checkpoint); `checkpoint_key` is the entry of
    the file to read where it has several (default: `model`, `state_dict`, `teacher`, in this order). `img_size`
    (pixels, one number or height and width) is the size that global relative position tables are made for; any other
    size still runs. `rel_pos` adds zero-initialised tables. `final_norm` gives the encoder the weights' own LayerNorm
    after the blocks as `norm` (a new one for random weights, None for a model of timm that has none). Raises UserError
    for an unknown name, weights that cannot be had or do not fit, and options that do not fit the backbone.
    """
    spec = resolve(name)
    if weights not in ("pretrained", "random"):
        raise UserError(f"weights {weights!r}: unknown; use pretrained or random.")
    random = weights == "random" or spec.init == "random"
    if random and checkpoint is not None:
        raise UserError(f"backbone {name!r} with random weights takes no checkpoint; drop --checkpoint {checkpoint}.")
    if random:
        vit = build(spec, img_size=spec.img_size, drop_path=drop_path)
        report = LoadReport(name, "random initialisation")
    elif checkpoint is not None:
        path = files.find(checkpoint)
        options: dict[str, Any] = {"key": checkpoint_key, "config": hf_config.beside(path), "copy": False}
        vit, report = load(spec, files.read(path), str(path), drop_path=drop_path, **options)
        spec = report.spec or spec
    else:
        state, source = published_weights(spec)
        vit, report = load(spec, state, source, drop_path=drop_path)
    encoder = ViTEncoder(
        vit,
        spec,
        img_size=img_size,
        window_size=window_size,
        num_global_blocks=num_global_blocks,
        rel_pos=rel_pos,
        pos_embed=pos_embed,
        layer_scale=layer_scale,
        grad_checkpointing=grad_checkpointing,
        taps=taps,
    )
    _take_tables(encoder, report)
    if final_norm and spec.final_norm:
        _take_final_norm(encoder, report)
    encoder.load_report = _with_edits(report, encoder, spec)
    return encoder


def _take_tables(encoder: ViTEncoder, report: LoadReport) -> None:
    """Relative position tables that the blocks share, of a run of this project."""
    for name, table in report.shared_tables.items():
        own = getattr(encoder, name, None)
        if own is None or own.shape != table.shape:
            has = "none" if own is None else f"{tuple(own.shape)}"
            raise UserError(
                f"checkpoint {report.source}: {name} is {tuple(table.shape)}, the encoder has {has}; pass the "
                "window_size, num_global_blocks, rel_pos and image size of the run it is from."
            )
        own.data.copy_(table)
        report.loaded.append(name)


def _take_final_norm(encoder: ViTEncoder, report: LoadReport) -> None:
    """Give the encoder the LayerNorm that follows the blocks where its weights are from."""
    encoder.norm = nn.LayerNorm(encoder.embed_dim, eps=encoder.spec.eps or 1e-6)
    if report.fingerprint is None:
        report.new["norm.weight, norm.bias"] = "ones and zeros"
        return
    tensors = {key.removeprefix("norm."): tensor for key, tensor in report.final_norm.items()}
    missing = encoder.norm.state_dict().keys() - tensors.keys()
    if missing:
        raise UserError(
            f"checkpoint {report.source}: has no norm.{min(missing)}, the final norm that features of a frozen encoder "
            "go through; pass a file of the pre-training, or set probe.final_norm=false."
        )
    encoder.norm.load_state_dict(tensors)
    report.loaded += sorted(report.final_norm)
    report.ignored = {key: why for key, why in report.ignored.items() if why != FINAL_NORM}


def _with_edits(report: LoadReport, encoder: ViTEncoder, spec: Spec) -> LoadReport:
    """Add what the encoder's options did to the weights."""
    if encoder.window_size:
        for key in ("cls_token", "reg_token"):
            if key in report.loaded:
                report.loaded.remove(key)
                report.ignored[key] = "prefix token and its position, dropped with windowed attention"
    native, target = encoder.native_grid, encoder.global_grid
    if native != target and encoder.vit.pos_embed is not None:
        when = "once" if encoder.pos_grid == target else "at every forward"
        report.resized["pos_embed"] = f"{_text(native)} -> {_text(target)}, bicubic {when}"
    if encoder.rel_pos == "per block":
        for i in range(spec.depth):
            grid = target if i in encoder.global_blocks else (encoder.window_size, encoder.window_size)
            if encoder.new_tables:
                report.new[f"blocks.{i}.attn.{TABLE}"] = "zeros"
            elif grid != native and spec.class_token:
                report.resized[f"blocks.{i}.attn.{TABLE}"] = f"{_text(native)} -> {_text(grid)}, geometric"
    if encoder.new_decomposed:
        report.new["blocks.*.attn.rel_pos_h, blocks.*.attn.rel_pos_w"] = "zeros"
    for key, (before, after) in encoder.resized_tables.items():
        report.resized[key] = f"{before} -> {after} rows, linear"
    for key in ("rel_pos_window", "rel_pos_global"):
        if getattr(encoder, key, None) is not None and key not in report.shared_tables:
            report.new[key] = f"{tuple(getattr(encoder, key).shape)}, zeros"
    if encoder.new_layer_scale is not None:
        report.new["blocks.*.ls1.gamma, blocks.*.ls2.gamma"] = f"{encoder.new_layer_scale:g}"
    return report


def _text(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"
