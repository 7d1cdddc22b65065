"""What a weights file is: its layout, the architecture its tensors show, what is odd about it, and how to use it."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mae_transfer.backbones import registry
from mae_transfer.backbones.checkpoints import files, fixed_position, hf_config, loader, own
from mae_transfer.backbones.checkpoints.layout import Converted, Reader, State, depth_of, width_of
from mae_transfer.backbones.checkpoints.position_grid import native_grid, patches
from mae_transfer.backbones.checkpoints.rotary_guess import guess
from mae_transfer.backbones.checkpoints.state_dict import unwrap
from mae_transfer.backbones.grid import Grid, text
from mae_transfer.backbones.positions.tables import TABLE
from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.commands import command
from mae_transfer.config.yaml import read_yaml
from mae_transfer.errors import UserError

FP16_EDGE = 6e4
"""Near the largest float16, 65504: what is there has probably been clipped or is about to overflow."""

_TIMM = {
    "dinov2": "timm:vit_{size}_patch14_{reg}dinov2.lvd142m",
    "clip": "timm:vit_{size}_patch{patch}_clip_224.laion2b",
    "augreg": "timm:vit_{size}_patch{patch}_224.augreg_in21k",
}
_TIMM_SIZES = {"ti": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}


@dataclass
class Findings:
    """What was found, in lines to print; `command` is the line that uses the file, None if no name fits it."""

    about: list[str]
    signs: list[str]
    load: list[str] = field(default_factory=list)
    command: str | None = None
    backbone: str | None = None
    refused: bool = False
    """Whether every name that was tried refused the file."""

    def lines(self) -> list[str]:
        signs = [f"  ! {sign}" for sign in self.signs] or ["  nothing suspicious"]
        use = [f"use: {self.command}"] if self.command else []
        return [*self.about, "signs:", *signs, *self.load, *use]


def inspect(path: str | Path, *, backbone: str | None = None, key: str | None = None) -> Findings:
    """Look into a file and try it on `backbone`, or on the name that seems to be meant.

    Raises UserError if the file cannot be read, has no known layout, or (with `backbone`) does not load.
    """
    file = files.find(path)
    raw = files.read(file)
    state, _ = unwrap(raw, str(file), key)
    config = hf_config.beside(file)
    reader, converted, stated = loader.read_layout(state, str(file), config)
    grid = _grid(converted, stated)
    about = [f"file: {file} ({file.stat().st_size / 1e6:.1f} MB, {len(state)} tensors, {_types(state)})"]
    if set(raw) - set(state):
        about.append(f"entries: {', '.join(str(name) for name in raw if name not in state)}"[:200])
    about += [f"layout: {reader.NAME}", f"architecture: {_architecture(converted, grid)}"]
    findings = Findings(about, _signs(file, state, converted, grid))
    run, overrides = _of_run(file, raw) if reader.NAME == own.NAME else ({}, [])
    # A run from random weights has weights now, and `random_*` names take none.
    of_run = [run["name"].removeprefix("random_")] if run else []
    names = [backbone] if backbone else of_run or _names(reader, converted, grid)
    overrides += [f"backbone.checkpoint_key={key}"] if key else []
    for name in names:
        try:
            spec = resolve(name)
            _, report = loader.load(spec, raw, str(file), key=key, config=config)
        except UserError as error:
            if backbone:
                raise
            findings.load = [f"does not load as {name}: {error}"]
            findings.refused = True
            continue
        findings.load = report.lines()
        findings.backbone, findings.refused = name, False
        use = [*command("transfer").split(), "--task", "coco", "--backbone", name, "--checkpoint", str(path)]
        findings.command = shlex.join([*use, *overrides])
        others = [other for other in names if other != name]
        if others:
            findings.load.append(f"  of the same shape: {', '.join(others)}; choose by where the file is from")
        break
    if not names:
        findings.load = ["no registered size; a timm:<model> of these dimensions may fit: pass it as --backbone"]
    return findings


def _of_run(file: Path, raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The backbone section of the configuration of the run that a checkpoint is from, and its options as overrides.

    It stands in the run's folder, and in the checkpoint itself, which may lie anywhere.
    """
    path, inside = file.parent.parent / "config.yaml", raw.get("config")
    if path.is_file():
        config = read_yaml(path, "the run's configuration")
    elif isinstance(inside, dict):
        path, config = file, inside
    else:
        return {}, []
    # a pre-training's are no choice, and the recipe of the transfer has its own
    options = () if config.get("task") == "pretrain" else ("window_size", "num_global_blocks", "rel_pos")
    section = config.get("backbone")
    lacks = [name for name in ("name", *options) if not isinstance(section, dict) or name not in section]
    if not isinstance(section, dict) or lacks or not isinstance(section["name"], str):
        raise UserError(f"{path}: not the configuration of a run, it names no backbone; pass the .pt file.")
    overrides = [f"backbone.{name}={json.dumps(section[name])}" for name in options]
    if options and section.get("window_rope", "window") != "window":
        overrides.append(f"backbone.window_rope={section['window_rope']}")
    return section, overrides


def _types(state: State) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}))


def _patch(tensors: State) -> int:
    weight = tensors.get("patch_embed.proj.weight")
    return weight.shape[-1] if weight is not None and weight.ndim == 4 else 0


def _grid(converted: Converted, stated: hf_config.Stated) -> Grid | None:
    """Grid of the position embedding, None if there is none or nothing tells it."""
    if "pos_embed" not in converted.tensors:
        return None
    patch = _patch(converted.tensors)
    size, hint = patches(stated.image_size, patch), patches(stated.input_size, patch)
    registers = converted.tensors.get("reg_token")
    beside = 0 if registers is None or registers.ndim != 3 else registers.shape[1]
    for prefix in (converted.facts.get("position_prefix", 1), 0, 1 + beside):
        try:
            grid = native_grid(converted, prefix, stated=size, hints=[hint])
        except UserError:
            continue
        if grid is not None:
            return grid
    return None


def _architecture(converted: Converted, grid: Grid | None) -> str:
    tensors = converted.tensors
    width, patch = width_of(tensors), _patch(tensors)
    tables = [tensor for name, tensor in tensors.items() if name.endswith(TABLE) and tensor.ndim == 2]
    heads = converted.facts.get("num_heads") or (tables[0].shape[1] if tables else None)
    fc1, registers = tensors.get("blocks.0.mlp.fc1.weight"), tensors.get("reg_token")
    scale = any(name.endswith(".ls1.gamma") for name in tensors)
    parts = [
        f"embed dim {width}, depth {depth_of(tensors)}",
        f"{heads} heads" if heads else f"heads not in the file (usual: {max(width // 64, 1)})",
        f"patch {patch}, {_sized(grid, patch)}" if grid else f"patch {patch}, no position embedding",
        f"MLP {len(fc1)}" if fc1 is not None else "",
        "LayerScale" if scale else "",
        f"{registers.shape[1]} tokens beside the class token" if registers is not None and registers.ndim == 3 else "",
        "" if "cls_token" in tensors else "no class token",
        "a relative position table per block" if tables else "",
        "two tables of decomposed positions per block" if "decomposed_tables" in converted.facts else "",
        f"LayerNorm eps {converted.facts['eps']:g}" if "eps" in converted.facts else "",
        f"mean {converted.facts['mean']}" if "mean" in converted.facts else "",
    ]
    return ", ".join(part for part in parts if part)


def _sized(grid: Grid, patch: int) -> str:
    high, wide = grid[0] * patch, grid[1] * patch
    return f"grid {text(grid)} ({high if high == wide else f'{high}x{wide}'} px)"


def _signs(file: Path, state: State, converted: Converted, grid: Grid | None) -> list[str]:
    signs, zeros = [], []
    reasons = set(converted.ignored.values())
    if "decoder of the pre-training" in reasons:
        signs.append(
            "it has a decoder: a *_full or training checkpoint, or one of MAE's mae_visualize_* files, which are for "
            "demos and hold another encoder" + (" (its name says so)" if "visuali" in file.name else "")
        )
    if any(reason.startswith("classifier") for reason in reasons):
        signs.append("it has a classifier: fine-tuned or supervised weights, not those of a pre-training alone")
    broken = [key for key, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    signs += [f"{key} holds NaN or infinite values{_overflow(state[key])}" for key in broken[:5]]
    for key, tensor in state.items():
        if key in broken or not tensor.is_floating_point() or not tensor.numel():
            continue
        if not tensor.any():
            zeros.append(key)
        elif tensor.abs().max() > FP16_EDGE:
            signs.append(f"{key} reaches {tensor.abs().max():g}, at the edge of float16")
    if zeros:
        more = f" and {len(zeros) - 3} more" if len(zeros) > 3 else ""
        signs.append(f"all zeros: {', '.join(zeros[:3])}{more}")
    patch = _patch(converted.tensors)
    if grid is not None and patch and grid != (224 // patch, 224 // patch):
        signs.append(f"its position embedding is for {_sized(grid, patch)}, not 224: it is resampled")
    heads, usual = converted.facts.get("num_heads"), width_of(converted.tensors) // 64
    if heads not in (None, usual):
        signs.append(f"{heads} heads, unusual for this width: a loader that goes by shapes would take {usual}")
    norms = [t for name, t in converted.tensors.items() if name.startswith("blocks.") and name.endswith("norm1.weight")]
    if norms and all((tensor == 1).all() for tensor in norms):
        signs.append("every norm of the blocks is 1: it looks untrained")
    return signs + converted.warnings


def _overflow(tensor: Tensor) -> str:
    return " (float16 overflow?)" if tensor.dtype.itemsize == 2 and tensor.isinf().any() else ""


def _names(reader: Reader, converted: Converted, grid: Grid | None) -> list[str]:
    """Backbone names of this layout and these dimensions, the likeliest first."""
    tensors = converted.tensors
    origin = fixed_position.origin(tensors.get("pos_embed"))
    inits: tuple[str, ...] = (origin,) if origin else ()
    labelled = any(key.startswith(("head.", "fc_norm.")) for key in converted.ignored)
    usual = ("sup", "mae", "dino", "mocov3") if labelled else ("mae", "sup", "dino", "mocov3")
    inits += getattr(reader, "INITS", usual)
    dims = (width_of(tensors), depth_of(tensors), _patch(tensors))
    size = "g" if dims[:2] == (1536, 40) else registry.size_of(*dims[:2])
    names = []
    for init in dict.fromkeys(inits):
        names += guess(init, converted, grid, dims[2])
        if init in _TIMM and size in _TIMM_SIZES:
            reg = "reg4_" if "reg_token" in tensors else ""
            names.append(_TIMM[init].format(size=_TIMM_SIZES[size], patch=dims[2], reg=reg))
        if init == "own" and size is not None and registry.SIZES[size][3] != dims[2]:
            names.append(f"vit_{size}_p{dims[2]}")
        for name in registry.names():
            spec = registry.find(name)
            if spec.init == init and (spec.embed_dim, spec.depth, spec.patch_size) == dims:
                names.append(name)
    return names
