"""The encoder that a pre-training starts from: the plain ViT of a name, with new weights."""

import dataclasses

from torch import nn

from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.grid import grid_of as backbone_grid
from mae_transfer.backbones.lean_mlp import LeanMlp
from mae_transfer.backbones.registry import Spec
from mae_transfer.backbones.timm_vit import build, resolve
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.errors import UserError
from mae_transfer.pretrain.config import PretrainConfig


def spec_of(config: PretrainConfig) -> Spec:
    """The backbone's spec at the configuration's image size, channels and normalisation.

    Raises UserError for a name that stands for others' weights.
    """
    name, data = config.backbone.name, config.data
    spec = resolve(name)
    size = spec.size or "b"
    if spec.rotary:
        raise UserError(
            f"--backbone {name} has rotary positions, which no method of pre-training here is written for; pre-train "
            f"vit_{size}, or transfer the weights of {name}"
        )
    if spec.init != "own":
        raise UserError(f"--backbone {name} stands for weights that are there already; pre-train vit_{size}")
    spec = dataclasses.replace(spec, img_size=data.size, in_chans=data.channels)
    return dataclasses.replace(spec, mean=data.mean or spec.mean, std=data.std or spec.std)


def grid_of(config: PretrainConfig) -> Grid:
    """Patches down and across; UserError if the image size is no multiple of the patch."""
    name = config.backbone.name
    hint = ", or another patch, as in --backbone vit_b_p8"
    return backbone_grid(config.data.size, resolve(name).patch_size, name, what="data.image_size=", hint=hint)


def new_encoder(
    spec: Spec, config: PretrainConfig, *, rel_pos: bool | str = False, final_norm: bool = True
) -> ViTEncoder:
    """All blocks, the class token and a final norm; timm's initial weights from the global generator."""
    vit = build(spec, img_size=config.data.size, drop_path=config.backbone.drop_path, mlp_layer=LeanMlp)
    encoder = ViTEncoder(
        vit,
        spec,
        img_size=config.data.size,
        rel_pos=rel_pos,
        grad_checkpointing=config.backbone.grad_checkpointing,
        taps=(spec.depth - 1,),
    )
    if final_norm:
        encoder.norm = nn.LayerNorm(spec.embed_dim, eps=spec.eps or 1e-6)
    return encoder
