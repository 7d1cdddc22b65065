"""Small ViT and BEiT encoders with random weights, built through the public loader."""

import copy
import dataclasses

import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer

from mae_transfer.backbones import registry
from mae_transfer.backbones.vit import ViTEncoder

DIM, DEPTH, HEADS, PATCH = 32, 4, 4, 4


SMALL = dataclasses.replace(
    registry.find("random_vit_nano"), embed_dim=DIM, depth=DEPTH, num_heads=HEADS, patch_size=PATCH, img_size=16
)


def randomise(model, scale=0.3):
    """Every parameter away from its special initial value (zero tokens, unit norms, tiny LayerScale)."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def small_vit(img_size=16, **kwargs):
    shape = {
        "patch_size": PATCH,
        "embed_dim": DIM,
        "depth": DEPTH,
        "num_heads": HEADS,
        "num_classes": 0,
        "final_norm": False,
    }
    return randomise(VisionTransformer(**{"img_size": img_size, **shape, **kwargs}, dynamic_img_size=True))


def encoder_of(vit, spec=SMALL, **options):
    return ViTEncoder(copy.deepcopy(vit), spec, **options).eval()


def small_beit():
    return randomise(
        Beit(
            img_size=16,
            patch_size=PATCH,
            embed_dim=DIM,
            depth=DEPTH,
            num_heads=HEADS,
            num_classes=0,
            init_values=0.1,
            use_abs_pos_emb=False,
            use_rel_pos_bias=True,
        )
    )


def images(height, width, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(2))
