"""The encoder that a pre-training starts from: the plain ViT of a name, with new weights.

A ViT with rotary positions is `timm:<model>`, which stands for timm's architecture here.
"""

import dataclasses

from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.grid import grid_of as backbone_grid
from mae_transfer.backbones.registry import Spec
from mae_transfer.backbones.timm_vit import build, new_final_norm, resolve
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.errors import UserError
from mae_transfer.pretrain.config import PretrainConfig


def spec_of(config: PretrainConfig, *, rotary: bool = False) -> Spec:
    """The backbone's spec at the configuration's image size, channels and normalisation.

    rotary: the method is written for rotary positions too. Raises UserError for a name that stands for others' weights.
    """
    name, data = config.backbone.name, config.data
    spec = resolve(name)
    size = spec.size or "b"
    if spec.rotary and not rotary:
        raise UserError(
            f"--backbone {name} has rotary positions, which --method {config.method} is not written for; pre-train "
            f"vit_{size}, or use --method mae or supervised"
        )
    architecture = name.rpartition(".")[0] if "." in name else name
    if spec.init != "own" and not (spec.rotary and name == architecture):
        instead = architecture if spec.rotary else f"vit_{size}"
        raise UserError(f"--backbone {name} stands for weights that are there already; pre-train {instead}")
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
    """All blocks, the prefix tokens and a final norm; timm's initial weights from the global generator.

    Raises UserError for an architecture that has no final norm, or no class token where `eval.knn` reads it.
    """
    if final_norm and not spec.final_norm:
        raise UserError(f"--backbone {spec.name} has no norm after its blocks, which --method {config.method} needs")
    vit = build(spec, img_size=config.data.size, drop_path=config.backbone.drop_path)
    encoder = ViTEncoder(
        vit,
        spec,
        img_size=config.data.size,
        rel_pos=rel_pos,
        grad_checkpointing=config.backbone.grad_checkpointing,
        taps=(spec.depth - 1,),
    )
    if config.eval.knn is not None and not encoder.has_class_token:
        raise UserError(f"eval.knn reads the class token, and {spec.name} has none; set eval.knn=null")
    if final_norm:
        encoder.norm = new_final_norm(spec)
    return encoder
