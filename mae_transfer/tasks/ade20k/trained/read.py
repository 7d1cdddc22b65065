"""A UperNet's file under this project's names: encoder, pyramid, both heads, and what the file says of itself.

    backbone.layers, neck              mmsegmentation, 0.x and 1.x (mmseg `models/backbones/mae.py`, `beit.py`,
                                       `necks/featurepyramid.py`)
    backbone.blocks, backbone.fpn1     BEiT's own code (microsoft/unilm beit/semantic_segmentation), and copies of it
    beit.encoder.layer, fpn1           transformers' BeitForSemanticSegmentation, as it is saved
    backbone.encoder.layer, fpn1       transformers' UperNetForSemanticSegmentation on BEiT with add_fpn, as it is saved
    encoder.vit                        a run of this project

The heads have mmsegmentation's names in all of them, but for transformers' `classifier` and `batch_norm`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from mae_transfer.backbones.checkpoints import beit, files, hf_beit, hf_config, mmpretrain, own
from mae_transfer.backbones.checkpoints.audit import refusal
from mae_transfer.backbones.checkpoints.layout import State
from mae_transfer.backbones.checkpoints.state_dict import unwrap
from mae_transfer.tasks.ade20k.trained.facts import OF_IMAGENET, Facts
from mae_transfer.tasks.classification.trained.stated import stated_labels

OWN = "mae_transfer segmentation"
"""Layout of a run of this project."""
SCALES = (1, 2, 3, 6)
"""Of the heads' pooling (mmsegmentation's UPerHead), which no tensor shows."""
_PYRAMID = (
    (r"^neck\.upsample_4x\.", "pyramid.stages.0."),
    (r"^neck\.upsample_2x\.0\.", "pyramid.stages.1."),
    (r"^(backbone\.)?fpn1\.", "pyramid.stages.0."),
    (r"^(backbone\.)?fpn2\.0\.", "pyramid.stages.1."),
    (r"^(decode|auxiliary)_head\.classifier\.", r"\1_head.conv_seg."),
    (r"^((decode|auxiliary)_head\..*)\.batch_norm\.", r"\1.bn."),
)


class SegmentorFile(NamedTuple):
    """`state`: by this project's names. `ignored`: what else the file holds, with the reason. `facts`: of the spec.
    `labels`: names of its classes in order, None where it says none. `taps`: 0-based blocks that its pyramid reads,
    where it says that. `content`: what the file is read as, in which a run of this project has its configuration."""

    state: State
    source: str
    layout: str
    ignored: dict[str, str]
    facts: Facts
    labels: Sequence[str] | None
    taps: tuple[int, ...] | None
    content: object


def read(checkpoint: str | Path, key: str | None = None) -> SegmentorFile:
    """Read a file of any of these layouts.

    Raises:
        UserError: it is of none, or cannot be read.
    """
    path = files.find(checkpoint)
    source, raw = str(path), files.read(path)
    state, ignored = unwrap(raw, source, key)
    facts: Facts = {}
    labels, taps = labels_of(raw), None
    inside = "backbone."
    if any(name.startswith("encoder.vit.") for name in state):
        facts, _ = own.facts_of_run(raw)
        return SegmentorFile(state, source, OWN, ignored, facts, labels, taps, raw)
    if any(name.startswith("backbone.layers.") for name in state):
        layout, facts = "mmsegmentation", dict(OF_IMAGENET)
        converted = mmpretrain.convert({name: x for name, x in state.items() if name.startswith(inside)})
    elif any(name.startswith("backbone.blocks.") for name in state):
        layout, facts = "BEiT segmentation", dict(OF_IMAGENET)
        encoder = {name: x for name, x in state.items() if re.match(r"backbone\.(?!fpn)", name)}
        bare = {name.removeprefix(inside): x for name, x in encoder.items()}
        converted = beit.convert(bare).within(lambda name: inside + name)
    elif any(name.startswith("beit.encoder.layer.") for name in state):
        layout, inside = "Hugging Face BEiT segmentation", "beit."
        converted = hf_beit.convert({name: x for name, x in state.items() if name.startswith(inside)})
        beside = hf_config.beside(path)
        facts = {**converted.facts, **beside.stated(hf_beit.NAME).facts}
        _check_scales(beside.config, source)
        labels, taps = stated_labels(source), _taps(beside.config, source, first=2)
    elif any(name.startswith("backbone.encoder.layer.") for name in state) and "backbone.fpn1.0.weight" in state:
        layout = "Hugging Face UperNet on BEiT"
        encoder = {name: x for name, x in state.items() if re.match(r"backbone\.(?!fpn)", name)}
        bare = {name.removeprefix(inside): x for name, x in encoder.items()}
        converted = hf_beit.convert(bare).within(lambda name: inside + name)
        beside = hf_config.beside(path)
        _check_scales(beside.config, source)
        config = beside.config.get("backbone_config") or {}
        facts = {**converted.facts, **hf_config.HFConfig(config, beside.processor).stated(hf_beit.NAME).facts}
        labels, taps = stated_labels(source), _taps(config, source, first=1)
    else:
        if beside_it := hf_config.beside(path).config.get("backbone_config"):
            kind = f"{beside_it.get('model_type')}" if isinstance(beside_it, Mapping) else "another backbone"
            raise refusal(source, f"is a UperNet on {kind}; of transformers those on BEiT with add_fpn are read.")
        raise refusal(source, "is no UperNet of mmsegmentation, BEiT, transformers or this project (docs/verify.md).")
    found: dict[str, Tensor] = {f"encoder.vit.{name}": x for name, x in converted.tensors.items()}
    for name, tensor in state.items():
        new = name
        for pattern, ours in _PYRAMID:
            new = re.sub(pattern, ours, new)
        if new != name or not name.startswith(inside):
            found[new] = tensor
    used = {k: v for k, v in converted.ignored.items() if k in state and not re.match(r"backbone\.fpn", k)}
    return SegmentorFile(found, source, layout, ignored | used, facts, labels, taps, raw)


def labels_of(raw: object) -> Sequence[str] | None:
    """Class names that mmsegmentation leaves: `meta.CLASSES` in 0.x, `meta.dataset_meta.classes` in 1.x."""
    meta = raw.get("meta") if isinstance(raw, Mapping) else None
    if not isinstance(meta, Mapping):
        return None
    inner = meta.get("dataset_meta")
    for holder in (meta, inner if isinstance(inner, Mapping) else {}):
        names = holder.get("CLASSES", holder.get("classes"))
        if isinstance(names, Sequence) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None


def _check_scales(config: Mapping[str, object], source: str) -> None:
    scales = config.get("pool_scales", [*SCALES])
    if scales != [*SCALES]:
        raise refusal(source, f"its config.json has pool_scales {scales!r:.60}; heads of {[*SCALES]} are read.")


def _taps(config: Mapping[str, object], source: str, *, first: int) -> tuple[int, ...] | None:
    """Blocks by transformers' `out_indices`, in which `first` is the output of block 0.

    BeitForSemanticSegmentation counts the patch embedding as 1, and BeitBackbone, of UperNet, as 0.
    """
    places = config.get("out_indices")
    if places is None:
        return None
    if not isinstance(places, list) or not all(isinstance(i, int) and i >= first for i in places):
        raise refusal(source, f"its config.json has out_indices {places!r:.60}; a pyramid reads outputs of blocks.")
    return tuple(i - first for i in places)
