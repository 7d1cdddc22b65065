"""`load_backbone`: a name, its weights and the options -> an encoder with a report of what was loaded."""

from pathlib import Path
from typing import Any

from torch import nn

from mae_transfer.backbones.checkpoints import files, hf_config
from mae_transfer.backbones.checkpoints.layout import FINAL_NORM
from mae_transfer.backbones.checkpoints.loader import load
from mae_transfer.backbones.checkpoints.report import LoadReport
from mae_transfer.backbones.encoder import Encoder
from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.hub import published_weights
from mae_transfer.backbones.initialise import as_beit
from mae_transfer.backbones.load_module import load_module
from mae_transfer.backbones.plugins import register_module
from mae_transfer.backbones.stage_encoder import load_stages
from mae_transfer.backbones.timm_vit import build, new_final_norm, resolve
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.errors import UserError


def load_backbone(
    name: str | nn.Module,
    *,
    checkpoint: str | Path | None = None,
    weights: str = "pretrained",
    img_size: int | Grid | None = None,
    window_size: int = 0,
    num_global_blocks: int = 4,
    rel_pos: bool | str = False,
    window_rope: str = "window",
    pos_embed: str = "native",
    abs_pos: bool = False,
    random_init: str = "timm",
    layer_scale: float | None = None,
    drop_path: float = 0.0,
    grad_checkpointing: bool = False,
    taps: tuple[int, ...] | None = None,
    checkpoint_key: str | None = None,
    final_norm: bool = False,
    beside: bool = False,
) -> Encoder:
    """An encoder with its weights, on the CPU in float32; its `load_report` says what was loaded and what was edited.

    Args:
        name: a registered name, `timm:<model[.tag]>`, a name that was added (`register_backbone` or an entry point), or
            a module of one's own, which is copied (docs/extending/encoder.md).
        checkpoint: a file, a local Hugging Face or timm model folder, or the folder of a run (its newest checkpoint).
            Without it the weights come from timm's hub (cache or download), or with the module of one's own.
        weights: `random` draws them from torch's global generator; `random_*` names imply it.
        random_init: how they are drawn: as `timm` or as `beit` does.
        img_size: pixels, one number or height and width; tables of relative positions are made for this size. Any other
            size still runs.
        window_size, num_global_blocks: side of the attention windows in tokens (0: none); see `vit.py`.
        rel_pos: zero-initialised relative positions to add: true, `per_block` or `decomposed`; see `positions/`. True
            shares them, and the one table of BEiT's pre-training, among windowed and among global blocks.
        window_rope: with windows, make rotary positions for the `window` or for the `image`; see `positions/rotary.py`.
        pos_embed: `resized` resamples the position embedding once to `img_size`, `native` at every forward.
        abs_pos: give BEiT's weights a new position embedding at `img_size`.
        layer_scale: the value of a new LayerScale where the weights bring none.
        drop_path: stochastic depth of the last block, linear from 0 over the blocks.
        taps: 0-based numbers of the blocks to give maps of; default the last of each quarter.
        checkpoint_key: the entry of the file to read where it has several (default: `model`, `state_dict`, `teacher`,
            in this order).
        final_norm: give the encoder the weights' own LayerNorm after the blocks as `norm` (a new one for random
            weights, None for a model of timm that has none).
        beside: keep the tensors that are no encoder's, such as a classifier, in `load_report.beside`.

    Raises:
        UserError: an unknown name, weights that cannot be had or do not fit, options that do not fit the backbone.
    """
    if isinstance(name, nn.Module):
        name = register_module(name)
    spec = resolve(name)
    if weights not in ("pretrained", "random"):
        raise UserError(f"weights {weights!r}: unknown; use pretrained or random.")
    if window_rope not in ("window", "image"):
        raise UserError(f"backbone.window_rope={window_rope}: unknown; use window or image.")
    if window_rope != "window" and not (spec.rotary and window_size):
        lacks = "no windows (backbone.window_size=0)" if spec.rotary else "no rotary positions of this project's own"
        raise UserError(f"backbone.window_rope={window_rope}: has no effect, {name} has {lacks}; leave it out.")
    shared: dict[str, Any] = {
        "checkpoint": checkpoint,
        "checkpoint_key": checkpoint_key,
        "img_size": img_size,
        "taps": taps,
        "window_size": window_size,
        "rel_pos": rel_pos,
        "layer_scale": layer_scale,
        "drop_path": drop_path,
        "grad_checkpointing": grad_checkpointing,
    }
    if spec.origin is not None:
        if weights == "random":
            raise UserError(f"backbone {name!r}: {spec.origin} makes its weights itself; leave out weights=random.")
        return load_module(name, num_global_blocks=num_global_blocks, **shared)
    random = weights == "random" or spec.init == "random"
    if random and checkpoint is not None:
        raise UserError(f"backbone {name!r} with random weights takes no checkpoint; drop --checkpoint {checkpoint}.")
    if spec.stages:
        return load_stages(spec, random=random, final_norm=final_norm, **shared)
    if random:
        vit = build(spec, img_size=spec.img_size, drop_path=drop_path)
        report = LoadReport(name, "random initialisation")
    elif checkpoint is not None:
        path = files.find(checkpoint)
        options: dict[str, Any] = {"key": checkpoint_key, "config": hf_config.beside(path), "img_size": img_size}
        options["beside"] = beside
        vit, report = load(spec, files.read(path), str(path), drop_path=drop_path, copy=False, **options)
        spec = report.spec or spec
    else:
        state, source = published_weights(spec)
        vit, report = load(spec, state, source, drop_path=drop_path, beside=beside)
    encoder = ViTEncoder(
        vit,
        spec,
        report,
        img_size=img_size,
        window_size=window_size,
        num_global_blocks=num_global_blocks,
        rel_pos=rel_pos,
        window_rope=window_rope,
        pos_embed=pos_embed,
        abs_pos=abs_pos,
        layer_scale=layer_scale,
        grad_checkpointing=grad_checkpointing,
        taps=taps,
    )
    if random and random_init == "beit":
        as_beit(encoder.vit)
        report.resized.pop("pos_embed", None)  # drawn at the grid that it has now
        report.new["every weight"] = "as BEiT's code initialises it"
    if final_norm and spec.final_norm:
        _take_final_norm(encoder, report)
    return encoder


def _take_final_norm(encoder: ViTEncoder, report: LoadReport) -> None:
    """Give the encoder the norm that follows the blocks where its weights are from."""
    encoder.norm = new_final_norm(encoder.spec)
    names = encoder.norm.state_dict().keys()
    if report.fingerprint is None:
        report.new[", ".join(f"norm.{name}" for name in names)] = "ones and zeros" if "bias" in names else "ones"
        return
    tensors = {key.removeprefix("norm."): tensor for key, tensor in report.final_norm.items()}
    missing = names - tensors.keys()
    if missing:
        raise UserError(
            f"checkpoint {report.source}: has no norm.{min(missing)}, the final norm that features of a frozen encoder "
            "go through; pass a file of the pre-training, or set probe.final_norm=false."
        )
    encoder.norm.load_state_dict(tensors)
    report.loaded += sorted(report.final_norm)
    report.ignored = {key: why for key, why in report.ignored.items() if why != FINAL_NORM}
