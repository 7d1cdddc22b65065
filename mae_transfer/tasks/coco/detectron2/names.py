"""Parameter names of this detector and of detectron2's, both ways: a plain rename.

detectron2's side is `GeneralizedRCNN` with `RPN`, `StandardROIHeads` or `CascadeROIHeads`, and as its backbone

- `FPN`, where `backbone.bottom_up` must hold the encoder as `encoder` and the resampling modules of `ViTFPN` as
  `stages`;
- or `SimpleFeaturePyramid` on detectron2's own `ViT`: the layout of ViTDet's released weights.

Tensors do not change, but for one: that ViT's position embedding begins with a row for a class token which it has not
got and never reads. From detectron2 it is dropped, to detectron2 it is zeros.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from mae_transfer.errors import UserError

Pairs = list[tuple[str, str]]

POSITION = "backbone.net.pos_embed"


def prefix_pairs(
    rpn_convs: int = 2,
    box_convs: int = 4,
    mask_convs: int = 4,
    *,
    simple_pyramid: bool = False,
    stages: int = 0,
    blocks: int = 0,
) -> Pairs:
    """(ours, detectron2's) prefixes of parameter names for a detector of these depths; `stages` of a cascade, or 0;
    `mask_convs` 0 without a mask head; `blocks` of the encoder, which counts with a simple pyramid only."""
    if simple_pyramid:
        pairs = [(f"encoder.vit.{part}", f"backbone.net.{part}") for part in _vit_parts(blocks)]
        pairs.append(("pyramid.simfp_", "backbone.simfp_"))
    else:
        pairs = [("encoder.", "backbone.bottom_up.encoder."), ("pyramid.stages.", "backbone.bottom_up.stages.")]
        for i in range(4):
            for ours, theirs in (("inner_blocks", "fpn_lateral"), ("layer_blocks", "fpn_output")):
                pairs += _conv_norm(f"pyramid.fpn.{ours}.{i}", f"backbone.{theirs}{i + 2}")
    for k in range(rpn_convs):
        conv = "conv" if rpn_convs == 1 else f"conv.conv{k}"
        pairs.append((f"rpn.head.conv.{k}.0.", f"proposal_generator.rpn_head.{conv}."))
    pairs.append(("rpn.head.cls_logits.", "proposal_generator.rpn_head.objectness_logits."))
    pairs.append(("rpn.head.bbox_pred.", "proposal_generator.rpn_head.anchor_deltas."))
    for stage in (f"{s}." for s in range(stages)) if stages else ("",):
        head = f"roi_heads.box_head.{stage}"
        for k in range(box_convs):
            pairs += _conv_norm(f"{head}{k}", f"{head}conv{k + 1}")
        pairs.append((f"{head}{box_convs + 1}.", f"{head}fc1."))
    pairs.append(("roi_heads.box_predictor.", "roi_heads.box_predictor."))
    for k in range(mask_convs):
        pairs += _conv_norm(f"roi_heads.mask_head.{k}", f"roi_heads.mask_head.mask_fcn{k + 1}")
    pairs.append(("roi_heads.mask_predictor.conv5_mask.", "roi_heads.mask_head.deconv."))
    pairs.append(("roi_heads.mask_predictor.mask_fcn_logits.", "roi_heads.mask_head.predictor."))
    return pairs


def options_of(names: Collection[str]) -> dict[str, Any]:
    """The arguments of `prefix_pairs` for a detector of which these are the parameters, under either side's names."""

    def count(*patterns: str) -> int:
        return len({match[1] for name in names for p in patterns if (match := re.match(p, name))})

    stages = count(r"roi_heads\.box_predictor\.(\d+)\.")
    head = r"roi_heads\.box_head\.0\." if stages else r"roi_heads\.box_head\."
    return {
        "rpn_convs": count(r"rpn\.head\.conv\.(\d+)\.", r"proposal_generator\.rpn_head\.conv\.conv(\d+)\.") or 1,
        "box_convs": count(head + r"(\d+)\.[01]\.", head + r"conv(\d+)\."),
        "mask_convs": count(r"roi_heads\.mask_head\.(\d+)\.", r"roi_heads\.mask_head\.mask_fcn(\d+)\."),
        "simple_pyramid": any(name.startswith(("pyramid.simfp_", "backbone.simfp_")) for name in names),
        "stages": stages,
        "blocks": count(r"encoder\.vit\.blocks\.(\d+)\.", r"backbone\.net\.blocks\.(\d+)\."),
    }


def _vit_parts(blocks: int) -> list[str]:
    """All that detectron2's ViT has: no class token, LayerScale, or relative position tables of other kinds."""
    leaves = ("norm1.", "norm2.", "attn.qkv.", "attn.proj.", "attn.rel_pos_h", "attn.rel_pos_w", "mlp.fc1.", "mlp.fc2.")
    return ["patch_embed.proj.", "pos_embed", *(f"blocks.{i}.{leaf}" for i in range(blocks) for leaf in leaves)]


def to_detectron2(state: Mapping[str, Tensor], pairs: Pairs) -> dict[str, Tensor]:
    """Our state dict under detectron2's names. Raises UserError for a name without a counterpart."""
    renamed = _rename(state, pairs)
    if POSITION in renamed:
        position = renamed[POSITION]
        renamed[POSITION] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    return renamed


def from_detectron2(state: Mapping[str, Tensor], pairs: Pairs) -> dict[str, Tensor]:
    """A detectron2 state dict under our names. Raises UserError for a name without a counterpart."""
    if POSITION in state:
        state = {**state, POSITION: state[POSITION][:, 1:]}
    # Longest first: `fpn_lateral2.norm.` before `fpn_lateral2.`.
    return _rename(state, sorted(((theirs, ours) for ours, theirs in pairs), key=lambda p: -len(p[0])))


def _conv_norm(ours: str, theirs: str) -> Pairs:
    return [(f"{ours}.0.", f"{theirs}."), (f"{ours}.1.", f"{theirs}.norm.")]


def _rename(state: Mapping[str, Tensor], pairs: Pairs) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for old, new in pairs:
            if name.startswith(old):
                renamed[new + name.removeprefix(old)] = value
                break
        else:
            raise UserError(
                f"parameter {name!r} has no counterpart in the other detector; check the depths of its heads"
            )
    return renamed
