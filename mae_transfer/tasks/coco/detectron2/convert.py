"""A whole detector's weights from this project's names to detectron2's and back, every tensor accounted for.

The tensors are only renamed (`names.py`), so that there and back gives the same bits. A file is
refused if a name has no counterpart, if pyramid or heads lack a tensor, or if the blocks of the encoder differ.
"""

import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mae_transfer.adapters.norm import BatchNorm, ChannelNorm
from mae_transfer.adapters.simple_pyramid import SimplePyramid
from mae_transfer.adapters.vit_fpn import ViTFPN
from mae_transfer.backbones.checkpoints import files, own
from mae_transfer.backbones.checkpoints.loader import unwrap
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write, user_path
from mae_transfer.tasks.coco.detector.cascade import CascadeRoIHeads
from mae_transfer.tasks.coco.detector.roi_heads import RoIHeads
from mae_transfer.tasks.coco.detector.rpn import RPN
from mae_transfer.tasks.coco.detectron2.names import (
    from_detectron2,
    options_of,
    prefix_pairs,
    to_detectron2,
)

Form = Literal["detectron2", "mae_transfer"]

NOT_WEIGHTS = re.compile(r"pixel_(mean|std)|proposal_generator\.anchor_generator\.cell_anchors\.\d+")
"""Constants that older files of detectron2 hold and it leaves out itself (`DetectionCheckpointer._load_model`)."""


def convert(source: str | Path, out: str | Path, to: Form) -> list[str]:
    """Write the weights in `source` to `out`, a `.pth` with `{"model": ...}`; gives lines that say what was written.

    Args:
        source: for detectron2, a run folder (its newest checkpoint; the averaged weights if it has them) or a file with
            this project's names; for mae_transfer, a `.pth` or `.pkl` of detectron2.

    Raises:
        UserError: a file that cannot be read or is not one of a whole detector of the other side, with the first
            tensor that is wrong.
    """
    out, file = user_path(out), files.find(source)
    if out.suffix != ".pth":
        raise UserError(f"output {out}: name it .pth, the format that both sides read; detectron2 goes by the ending")
    raw = files.read(file)
    averaged = isinstance(raw, dict) and raw.get("ema") is not None
    state, _ = unwrap(raw, str(file), "ema" if averaged else None)
    left_out = sorted(name for name in state if NOT_WEIGHTS.fullmatch(name)) if to == "mae_transfer" else []
    state = {name: tensor for name, tensor in state.items() if name not in left_out}
    renamed = translate(state, to, str(file))
    content: dict[str, object] = {"model": {name: tensor.contiguous() for name, tensor in renamed.items()}}
    if to == "detectron2":
        content["__author__"] = "mae_transfer"
    if isinstance(raw, dict) and isinstance(raw.get("origin"), dict):
        content["origin"] = raw["origin"]  # of the run: what `--checkpoint` needs to know beside the tensors
    with atomic_write(out) as target:
        torch.save(content, target)
    lines = [f"written: {out} ({len(renamed)} tensors under the names of {to})"]
    if to == "detectron2":
        lines += _statistics(raw)
    if averaged:
        lines.append("the moving average of the weights, which is what the run evaluates")
    if left_out:
        lines.append(f"left out: {', '.join(left_out)}, constants that are no weights")
    return lines


def _statistics(raw: object) -> list[str]:
    """What detectron2 reads of its configuration and not of the file, where a run says it."""
    facts, _ = own.facts_of_run(raw) if isinstance(raw, Mapping) else ({}, {})
    keys = {"mean": "MODEL.PIXEL_MEAN", "std": "MODEL.PIXEL_STD"}
    said = [f"{key} {[round(255 * x, 3) for x in facts[part]]}" for part, key in keys.items() if part in facts]
    return [f"detectron2's configuration has to say {' and '.join(said)}, of images in RGB"] if said else []


def translate(state: dict[str, Tensor], to: Form, source: str) -> dict[str, Tensor]:
    """The weights of a whole detector under the names of the other side.

    Raises:
        UserError: the first name without a counterpart, or the first tensor that is lacking.
    """
    theirs = any(name.startswith("backbone.") for name in state)
    if theirs == (to == "detectron2"):
        has, other = ("detectron2", "mae_transfer") if theirs else ("mae_transfer", "detectron2")
        raise UserError(f"checkpoint {source}: is under the names of {has}, or no detector at all; use --to {other}")
    pairs = pairs_of(state)
    try:
        renamed = to_detectron2(state, pairs) if to == "detectron2" else from_detectron2(state, pairs)
    except UserError as error:
        raise UserError(f"checkpoint {source}: {error}") from error
    _check_whole(renamed if to == "mae_transfer" else state, source, to)
    return renamed


def pairs_of(names: Collection[str]) -> list[tuple[str, str]]:
    return prefix_pairs(**options_of(names))


def _check_whole(ours: dict[str, Tensor], source: str, to: Form) -> None:
    """Raises UserError that names, as the file would, the first tensor that a whole detector has and `ours` lacks."""
    options = options_of(ours)
    del options["blocks"]
    batch_norm = any(name.endswith(".running_mean") for name in ours if not name.startswith("encoder."))
    wanted = set(_names_outside_the_encoder(**options, batch_norm=batch_norm))
    inner = {name.removeprefix("encoder.vit.blocks.") for name in ours if name.startswith("encoder.vit.blocks.")}
    blocks = {name.split(".", 1)[0] for name in inner}
    leaves = {name.split(".", 1)[1] for name in inner}
    wanted |= {f"encoder.vit.blocks.{i}.{leaf}" for i in range(len(blocks)) for leaf in leaves}
    wanted |= {f"encoder.vit.patch_embed.proj.{leaf}" for leaf in ("weight", "bias")}
    missing, odd = sorted(wanted - ours.keys()), sorted(n for n in ours.keys() - wanted if not n.startswith("encoder."))
    if missing or odd or not blocks:
        name = (missing or odd or ["encoder.vit.blocks.0"])[0]
        shown = name if to == "detectron2" else next(iter(to_detectron2({name: torch.empty(0)}, pairs_of(ours))))
        what = "has" if odd and not missing else "lacks"
        raise UserError(
            f"checkpoint {source}: {what} {shown}, unlike a whole detector of this project; pass all of one"
        )


@cache
def _names_outside_the_encoder(
    rpn_convs: int, box_convs: int, mask_convs: int, simple_pyramid: bool, stages: int, batch_norm: bool
) -> frozenset[str]:
    """Of a detector of these depths and kinds; the names do not depend on its widths."""
    strides = (4, 8, 16, 32, 64)
    norm = BatchNorm if batch_norm else ChannelNorm
    heads = CascadeRoIHeads if stages else RoIHeads
    parts = {
        "pyramid": SimplePyramid(32, 8, norm=norm) if simple_pyramid else ViTFPN(32, 8, norm=norm),
        "rpn": RPN(8, strides, rpn_convs, 1),
        "roi_heads": heads(
            8, strides[:4], 1, norm=norm, head_channels=8, box_fc=8, box_convs=box_convs, mask_convs=mask_convs
        ),
    }
    return frozenset(f"{part}.{name}" for part, module in parts.items() for name in module.state_dict())
