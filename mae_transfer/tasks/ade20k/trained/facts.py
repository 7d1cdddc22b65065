"""What a trained segmentation model's source has otherwise than the encoder's weights: mean, std, eps."""

import dataclasses
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from mae_transfer.backbones.registry import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder

Facts: TypeAlias = dict[str, Any]
"""Fields of an encoder's spec."""
OF_IMAGENET: Facts = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
"""Of mmsegmentation's, BEiT's, DINOv2's and DINOv3's configurations for ADE20K, whatever the pre-training had."""


def take_facts(encoder: "Encoder", facts: Facts) -> None:
    """Mean and std of the images and eps of the blocks' norms, as the file or its source has them."""
    known = {name: value for name, value in facts.items() if name in ("mean", "std", "eps")}
    changed = {name: value for name, value in known.items() if getattr(encoder.spec, name) != value}
    encoder.spec = dataclasses.replace(encoder.spec, **changed)
    encoder.mean, encoder.std = encoder.spec.mean, encoder.spec.std
    for buffer, values in ((encoder.pixel_mean, encoder.mean), (encoder.pixel_std, encoder.std)):
        buffer.copy_(torch.tensor([255 * value for value in values]).view(-1, 1, 1))
    for norm in (module for module in encoder.modules() if isinstance(module, nn.LayerNorm)):
        norm.eps = changed.get("eps", norm.eps)
    encoder.load_report.settled += [f"{name} {value}" for name, value in changed.items()]
