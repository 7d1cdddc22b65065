#!/usr/bin/env python
"""Writes docs/encoders.md: which models of timm are encoders here, from timm's registry. It takes a minute.

python docs/make_encoder_table.py
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import model_entrypoint

from mae_transfer.backbones.blocks import comes_apart, is_standard
from mae_transfer.backbones.refused import FAMILIES
from mae_transfer.backbones.registry import TIMM_PREFIX, Spec
from mae_transfer.backbones.timm_stages import empty_model
from mae_transfer.backbones.timm_vit import build, spec_of
from mae_transfer.errors import UserError

OUTPUT = Path(__file__).with_name("encoders.md")
HEAD = """\
# Encoders

`timm:<model[.tag]>` takes {accepted} of the {models} models of timm {version}. Some have short [names](first_steps.md),
and any other module can be [wrapped](extending/encoder.md). Made from timm's registry by
`python docs/make_encoder_table.py`.

All go through every task and protocol: COCO, ADE20K, classification fine-tuned, partially fine-tuned and frozen, with
layer decay, drop path, checkpointing, export and operations. Two columns differ: `windows` (and a new LayerScale) need
blocks whose parts can be called one by one, `tables` of relative positions need timm's standard attention. Hierarchical
encoders give four maps, which go to the FPN or to UperNet as their authors wire them, each through a LayerNorm. Probes
read what timm pools of the last. Partial fine-tuning counts stages. They are not exported. Where a recipe asks for what
an encoder has not, one line says which setting to change. Pre-training here is of `vit_*` names, and by MAE and
supervised of architectures with rotary positions too ([pre-training](pretraining.md#rotary-positions)).

Swin is timm's at its native size, where that is the authors' classifier. At all other sizes it is the authors' dense
code, as mmsegmentation and mmdetection have it: maps are padded to whole windows before the shift, and every second
block shifts. Maps and UperNet's logits are mmsegmentation's to 1e-5, also where no map is a multiple of the window.
timm itself pads after the shift and never shifts where the native map is a single window: with windows of 7 and random
weights its maps at 512 pixels differ by up to 0.4 to 0.9, where their deviation is 0.7 to 1.1. `window_padding` in a
run's settings says it. Swin v2 stays timm's at every size: its authors released no dense code.
On COCO the FPN reads the maps that mmdetection's reads, to 1e-5, of the square that images are padded to. By the
recipe its norms and tables of positions have no weight decay, as in mmdetection; layer decay, where it is asked for,
counts the patch embedding as layer 0 and then the blocks of all stages, a downsampling with the block after it.

Segment Anything's encoder (`samvit_*`) is given before its neck. By default each block attends to the whole image;
`backbone.window_size=14 backbone.num_global_blocks=4` is timm's own model, whose maps these then are to 1e-5. timm runs
it with LayerNorm eps 1e-5, the official code with 1e-6, and a file here as the code of its names. Off the native size
positions are resampled without antialiasing, as in ViTDet, and timm antialiases them.

All {accepted} are trained in a slow test, narrow and shallow, where they are 227 different models: a step of COCO, of
ADE20K and of fine-tuning by each task's own recipe and by what its refusals say to set. The losses are finite, every
parameter of the encoder has a gradient that is finite and not zero, but one bias that a softmax cannot see, and the
run's checkpoint loads into a new model of the same losses. It takes 5 CPU minutes
(`pytest -m slow tests/backbones/test_timm_trains.py`).

| timm's module | built as | blocks | positions | windows | tables | models | such as |
|---|---|---|---|---|---|---|---|
"""
REFUSED = """
## Refused

| timm's module | models | what they are | what helps |
|---|---|---|---|
"""
SHOWN = 4


def positions(spec: Spec, vit: Any) -> str:
    """`absolute`, `rotary`, `BEiT's tables`, or several."""
    found = ["absolute"] if vit.pos_embed is not None else []
    if spec.rotary:
        found.append(f"rotary ({type(vit.rope).__name__.removeprefix('RotaryEmbedding').lower()})")
    found += ["BEiT's tables"] if spec.rel_pos_tables else []
    return " + ".join(found + (["decomposed tables"] if spec.decomposed_tables else []))


def row_of(spec: Spec) -> tuple[str, ...]:
    """Columns of a model: module, class, blocks, positions, windows, tables."""
    family = model_entrypoint(spec.name.removeprefix(TIMM_PREFIX)).__module__.rpartition(".")[2]
    if spec.stages:
        built_as = type(empty_model(spec.timm_arch)).__name__
        return family, built_as, "four stages, strides 4 to 32", "the model's own", "no", "no"
    vit: Any = build(spec, img_size=spec.img_size, device="meta")
    block = vit.blocks[0]
    attn = f" with {type(block.attn).__name__}" if hasattr(block, "attn") else ""
    windows = "yes" if all(map(comes_apart, vit.blocks)) else "no"
    tables = "yes" if all(map(is_standard, vit.blocks)) else "no"
    blocks = f"{type(block).__name__}{attn}"
    return family, type(vit).__name__, blocks, positions(spec, vit), windows, tables


def page() -> str:
    groups: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    refused: defaultdict[str, list[str]] = defaultdict(list)
    models = timm.list_models()
    for name in models:
        family = model_entrypoint(name).__module__.rpartition(".")[2]
        try:
            spec = spec_of(TIMM_PREFIX + name)
        except UserError:
            refused[family].append(name)
            continue
        with torch.device("meta"):
            groups[row_of(spec)].append(name)
    accepted = sum(map(len, groups.values()))
    lines = [
        f"| {' | '.join(row)} | {len(names)} | {', '.join(f'`{name}`' for name in names[:SHOWN])} |"
        for row, names in sorted(groups.items())
    ]
    others = sum(len(names) for family, names in refused.items() if family not in FAMILIES)
    out = [
        f"| {family} | {len(refused[family])} | {what} | {help_} |"
        for family, (what, help_) in FAMILIES.items()
        if family in refused
    ]
    what = "CNNs, and transformers with batch norm, other strides or one size"
    out.append(f"| all others | {others} | {what} | a plain ViT, or a module of your own |")
    return HEAD.format(accepted=accepted, models=len(models), version=timm.__version__) + "\n".join(
        [*lines, REFUSED + "\n".join(out), ""]
    )


if __name__ == "__main__":
    OUTPUT.write_text(page(), encoding="utf-8")
    print(f"written: {OUTPUT}")
