"""Names, and what they stand for, against timm's own models of the same tags."""

import subprocess
import sys

import pytest
import timm
import torch
from timm.models.beit import Beit

from mae_transfer.backbones import registry
from mae_transfer.backbones.positions.tables import TABLE
from mae_transfer.backbones.timm_vit import build, resolve
from mae_transfer.errors import UserError

PUBLISHED = [name for name in registry.names() if registry.find(name).hub]


def test_listing_needs_no_torch():
    code = "import sys, mae_transfer.backbones.registry as r; r.names(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_names_there_are():
    expected = "mae_: nano ti s b l h, sup_: ti s b l h, beit_: b l, mocov3_: s b, dino_: s b, : nano ti s b l h, "
    expected += "random_: nano ti s b l h"
    pairs = [group.split(":") for group in expected.split(", ")]
    assert registry.names() == [f"{init.strip()}vit_{size}" for init, sizes in pairs for size in sizes.split()]
    for name in registry.names():
        spec = registry.find(name)
        assert name == (f"vit_{spec.size}" if spec.init == "own" else f"{spec.init}_vit_{spec.size}")
    assert registry.find("mocov3_vit_s").num_heads == 12
    assert registry.find("mae_vit_s").num_heads == 6


def test_plain_names_take_a_patch():
    spec = registry.find("vit_b_p8")
    assert (spec.name, spec.init, spec.size, spec.patch_size, spec.embed_dim) == ("vit_b_p8", "own", "b", 8, 768)
    assert registry.find("vit_h").patch_size == 14
    for name in ("vit_b_p0", "vit_b_p", "vit_x_p8", "mae_vit_b_p8"):
        with pytest.raises(UserError, match="unknown; did you mean"):
            registry.find(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_spec_is_what_timm_builds_for_its_tag(name):
    spec = registry.find(name)
    with torch.device("meta"):
        model = timm.create_model(spec.hub, pretrained=False, num_classes=0)
    ours = build(spec, img_size=spec.img_size, device="meta")
    assert spec.mean == tuple(model.pretrained_cfg["mean"])
    assert spec.std == tuple(model.pretrained_cfg["std"])
    assert ours.blocks[0].attn.num_heads == model.blocks[0].attn.num_heads
    assert ours.blocks[0].norm1.eps == model.blocks[0].norm1.eps
    assert spec.abs_pos == (model.pos_embed is not None)
    theirs = {key: tuple(t.shape) for key, t in model.state_dict().items() if not key.startswith(("norm.", "fc_norm."))}
    if isinstance(model, Beit):
        block, dim = model.blocks[0], spec.embed_dim
        assert tuple(ours.blocks[0].attn.get_parameter(TABLE).shape) == block.attn.relative_position_bias_table.shape
        assert block.init_values == spec.layer_scale
        assert len(ours.state_dict()) == len(theirs) - spec.depth  # q_bias and v_bias are one
        assert tuple(ours.blocks[0].mlp.fc1.weight.shape) == theirs["blocks.0.mlp.fc1.weight"] == (4 * dim, dim)
    else:
        assert {key: tuple(t.shape) for key, t in ours.state_dict().items()} == theirs


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mae_vit_x", "mae_vit_"),
        ("mea_vit_l", "mae_vit_l"),
        ("vit_base", "`timm:<model"),
        ("timm:vit_bose_patch16_224", "vit_base_patch16_224"),
        ("timm:vit_base_patch16_224.nope", "vit_base_patch16_224.mae"),
        ("timm:resnet50", "not a plain ViT"),
        ("timm:vit_base_r50_s16_224", "not a plain ViT"),
        ("timm:levit_128s", "not a plain ViT"),
    ],
)
def test_unknown_or_unfit_names_are_one_line(name, hint):
    with pytest.raises(UserError) as error:
        resolve(name)
    message = str(error.value)
    assert name in message
    assert hint in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "size", "fields"),
    [
        ("timm:vit_small_patch16_224.dino", "s", {"mean": registry.IMAGENET_MEAN, "hub": "vit_small_patch16_224.dino"}),
        ("timm:vit_tiny_patch16_224", "ti", {"mean": registry.HALF}),
        ("timm:vit_small_patch14_reg4_dinov2", "s", {"patch_size": 14, "img_size": 518}),
        ("timm:deit_tiny_distilled_patch16_224", "ti", {"reg_tokens": 1, "position_prefix": 2}),
        ("timm:vit_so400m_patch14_siglip_224", None, {"embed_dim": 1152, "depth": 27}),
        ("timm:beit_base_patch16_224", "b", {"rel_pos_tables": True, "layer_scale": 0.1, "abs_pos": False}),
        ("timm:samvit_huge_patch16.sa1b", "h", {"decomposed_tables": True, "img_size": 1024, "final_norm": False}),
        ("timm:samvit_base_patch16_224", "b", {"decomposed_tables": True, "abs_pos": False, "final_eps": 1e-6}),
    ],
)
def test_timm_names(name, size, fields):
    spec = resolve(name)
    assert (spec.name, spec.init, spec.size) == (name, name, size)
    assert {key: getattr(spec, key) for key in fields} == fields
    build(spec, img_size=spec.img_size, device="meta")
