"""Parameter names of this detector and of detectron2's, both ways: a plain rename, no tensor changes.

detectron2's side is `GeneralizedRCNN` with `FPN`, `RPN` and `StandardROIHeads`; `backbone.bottom_up` must hold the
encoder as `encoder` and the resampling modules of `ViTFPN` as `stages`.
"""

from collections.abc import Mapping

from torch import Tensor

from mae_transfer.errors import UserError


def prefix_pairs(rpn_convs: int = 2, box_convs: int = 4, mask_convs: int = 4) -> list[tuple[str, str]]:
    """(ours, detectron2's) prefixes of parameter names for a detector of these depths."""
    pairs = [("encoder.", "backbone.bottom_up.encoder."), ("pyramid.stages.", "backbone.bottom_up.stages.")]
    for i in range(4):
        for ours, theirs in (("inner_blocks", "fpn_lateral"), ("layer_blocks", "fpn_output")):
            pairs += _conv_norm(f"pyramid.fpn.{ours}.{i}", f"backbone.{theirs}{i + 2}")
    for k in range(rpn_convs):
        conv = "conv" if rpn_convs == 1 else f"conv.conv{k}"
        pairs.append((f"rpn.head.conv.{k}.0.", f"proposal_generator.rpn_head.{conv}."))
    pairs.append(("rpn.head.cls_logits.", "proposal_generator.rpn_head.objectness_logits."))
    pairs.append(("rpn.head.bbox_pred.", "proposal_generator.rpn_head.anchor_deltas."))
    for k in range(box_convs):
        pairs += _conv_norm(f"roi_heads.box_head.{k}", f"roi_heads.box_head.conv{k + 1}")
    pairs.append((f"roi_heads.box_head.{box_convs + 1}.", "roi_heads.box_head.fc1."))
    pairs.append(("roi_heads.box_predictor.", "roi_heads.box_predictor."))
    for k in range(mask_convs):
        pairs += _conv_norm(f"roi_heads.mask_head.{k}", f"roi_heads.mask_head.mask_fcn{k + 1}")
    pairs.append(("roi_heads.mask_predictor.conv5_mask.", "roi_heads.mask_head.deconv."))
    pairs.append(("roi_heads.mask_predictor.mask_fcn_logits.", "roi_heads.mask_head.predictor."))
    return pairs


def to_detectron2(state: Mapping[str, Tensor], pairs: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Our state dict under detectron2's names. Raises UserError for a name without a counterpart."""
    return _rename(state, pairs)


def from_detectron2(state: Mapping[str, Tensor], pairs: list[tuple[str, str]]) -> dict[str, Tensor]:
    """A detectron2 state dict under our names. Raises UserError for a name without a counterpart."""
    # Longest first: `fpn_lateral2.norm.` before `fpn_lateral2.`.
    return _rename(state, sorted(((theirs, ours) for ours, theirs in pairs), key=lambda p: -len(p[0])))


def _conv_norm(ours: str, theirs: str) -> list[tuple[str, str]]:
    return [(f"{ours}.0.", f"{theirs}."), (f"{ours}.1.", f"{theirs}.norm.")]


def _rename(state: Mapping[str, Tensor], pairs: list[tuple[str, str]]) -> dict[str, Tensor]:
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
