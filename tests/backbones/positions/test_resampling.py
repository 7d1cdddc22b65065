"""Position embeddings off their native grid, by the rule of the code that the weights are from."""

import dataclasses
import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mae_transfer.backbones import registry
from mae_transfer.backbones.checkpoints import loader
from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.backbones.vit import ViTEncoder

DIM, PATCH, SIZE = 32, 14, 518  # dinov2_vits14 and the like: 37 x 37 positions for 518 px
SPEC = registry.Spec("tiny", "mae", None, DIM, 2, 4, PATCH, img_size=SIZE, layer_scale=0.1)


def cubic(x, a):
    """Keys' kernel, which is 0 from 2 on."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def weights(old, new, offset):
    """(new, old): a side's bicubic weights, sample i of the new side at (i + 1/2) / scale - 1/2 of the old, where the
    scale is that of a side longer by `offset`; beyond the ends the outermost value stands."""
    scale = (new + offset) / old
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        place = (i + 0.5) / scale - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[i, min(max(j, 0), old - 1)] += cubic(place - j, -0.75)
    return matrix


def antialiased_weights(old, new):
    """The same with the kernel as wide as the new side's step where that is longer, cut at the ends and normalised."""
    step = old / new
    wide = max(step, 1.0)
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        for j in range(old):
            matrix[i, j] = cubic((j + 0.5 - (i + 0.5) * step) / wide, -0.5)
    return matrix / matrix.sum(1, keepdim=True)


def resampled(position, old, grid, side_weights):
    rows, columns = (side_weights(old, new) for new in grid)
    maps = position.double().reshape(old, old, -1)
    return torch.einsum("yi,xj,ijc->yxc", rows, columns, maps).reshape(1, grid[0] * grid[1], -1).float()


def dinov2_file(registers):
    """A model of DINOv2's parts, and its file (facebookresearch/dinov2 models/vision_transformer.py)."""
    torch.manual_seed(0)
    shape = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": DIM, "depth": 2, "num_heads": 4, "num_classes": 0}
    model = VisionTransformer(**shape, init_values=0.1, reg_tokens=registers, no_embed_class=bool(registers)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    state = dict(model.state_dict()) | {"mask_token": torch.zeros(1, DIM)}
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, DIM), state["pos_embed"]], dim=1)
    return model, state


@pytest.mark.parametrize("size", [(224, 224), (224, 322), (700, 518)], ids=str)
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_at_another_size_equals_its_rule(registers, size):
    model, state = dinov2_file(registers)
    grid = (size[0] // PATCH, size[1] // PATCH)
    if registers:
        new = resampled(model.pos_embed[0], 37, grid, antialiased_weights)
    else:
        new = resampled(model.pos_embed[0, 1:], 37, grid, lambda old, new: weights(old, new, 0.1))
        new = torch.cat([model.pos_embed[:, :1], new], dim=1)
    spec = dataclasses.replace(SPEC, reg_tokens=registers, position_prefix=0 if registers else 1)
    loaded, report = loader.load(spec, state, "dinov2.pth")
    encoder = ViTEncoder(loaded, report.spec, taps=(0, 1)).eval()
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        maps = encoder(images)
        model.set_input_size(img_size=size)
        model.pos_embed.data = new
        expected = model.forward_intermediates(images, [0, 1], norm=False, intermediates_only=True)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("dino_vit_b", "offset"),
        ("timm:vit_small_patch8_224.dino", "offset"),
        ("timm:vit_small_patch14_dinov2", "offset"),
        ("timm:vit_small_patch14_reg4_dinov2.lvd142m", "antialias"),
        ("mae_vit_b", "bicubic"),
        ("timm:vit_base_patch16_224.mae", "bicubic"),
    ],
)
def test_names_have_the_rule_of_their_weights(name, rule):
    assert resolve(name).pos_resampling == rule
