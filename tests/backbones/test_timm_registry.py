"""Every model of timm that is taken: its own saved weights load with no difference, and its maps are timm's.

Models are 48 wide and 2 blocks deep, but otherwise as timm's registry has them. CI has one of each class and variant
of block; `pytest -m slow` has all, and finds a variant of a new timm that the list lacks.
"""

import pytest
import timm
import torch
from timm.models import is_model_in_modules
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from mae_transfer.backbones.checkpoints import loader
from mae_transfer.backbones.timm_vit import MODULES, spec_of
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.errors import UserError

SMALL = {"embed_dim": 48, "num_heads": 4, "depth": 2}
LARGEST = 320
"""Pixels, of Segment Anything's: 20 x 20 patches, which are no whole number of its windows."""
ONE_OF_EACH = (
    *("aimv2_1b_patch14_224", "beit3_base_patch16_224", "beit_base_patch16_224", "deit3_base_patch16_224"),
    *("deit_base_distilled_patch16_224", "deit_base_patch16_224", "eva02_base_patch14_224"),
    *("eva02_base_patch16_clip_224", "eva02_enormous_patch14_clip_224", "eva02_small_patch14_224"),
    *("eva_giant_patch14_224", "test_vit2", "test_vit4", "vit_5b_patch16_sapiens2", "vit_7b_patch16_dinov3"),
    *("vit_base_patch14_reg1_tipsv2", "vit_base_patch16_18x2_224", "vit_base_patch16_224_miil"),
    *("vit_base_patch16_clip_224", "vit_base_patch16_dinov3", "vit_base_patch16_dinov3_qkvb"),
    *("vit_base_patch16_gap_224", "vit_base_patch16_reg4_gap_256", "vit_base_patch16_rope_224"),
    *("vit_base_patch16_rope_ape_224", "vit_base_patch16_rope_mixed_224"),
    *("vit_base_patch16_rope_mixed_ape_224", "vit_base_patch16_rope_reg1_gap_256", "vit_base_patch16_rpn_224"),
    *("vit_base_patch16_xp_224", "vit_betwixt_patch16_gap_256", "vit_dlittle_patch16_reg1_gap_256"),
    *("vit_dpwee_patch16_reg1_gap_256", "vit_giant_patch14_dinov2", "vit_giant_patch14_reg1_tipsv2"),
    *("vit_huge_plus_patch16_dinov3_qkvb", "vit_mediumd_patch16_rope_reg1_gap_256"),
    *("vit_pe_core_base_patch16_224", "vit_pe_core_gigantic_patch14_448", "vit_pwee_patch16_reg1_gap_256"),
    *("vit_so150m2_patch16_reg1_gap_256", "samvit_base_patch16", "samvit_base_patch16_224"),
)


@pytest.fixture(autouse=True)
def small_models(monkeypatch):
    """timm builds its models at the size of SMALL."""
    for kind in (VisionTransformer, Beit, Eva, VisionTransformerSAM):

        def small(self, *args, _init=kind.__init__, _sam=kind is VisionTransformerSAM, **kwargs):
            if isinstance(kwargs.get("num_kv_heads"), tuple):
                kwargs["num_kv_heads"] = (4, 2)
            if _sam:
                kwargs |= {"global_attn_indexes": (1,), "img_size": min(kwargs["img_size"], LARGEST)}
            return _init(self, *args, **{**kwargs, **SMALL})

        monkeypatch.setattr(kind, "__init__", small)


def variant(model):
    """What makes a model another case: the classes of its parts, and which of them there are."""
    block = model.blocks[0]
    attn, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
    parts = (model, block, attn, mlp, getattr(block, "norm1", None), getattr(model, "rope", None))
    return (
        *(type(part).__name__ for part in parts),
        *(getattr(model, name, None) is None for name in ("pos_embed", "cls_token", "reg_token")),
        isinstance(getattr(model, "norm_pre", nn.Identity()), nn.Identity),
        getattr(model, "no_embed_class", False),
        getattr(attn, "qkv", None) is None,
        *(type(getattr(attn, name, None)).__name__ for name in ("norm", "q_norm")),
        any(key.endswith((".q_bias", ".qkv.bias", ".q_proj.bias")) for key in model.state_dict()),
    )


def model_of(name, **options):
    model = timm.create_model(name, pretrained=False, **options)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def encoder_of(spec, state, windows):
    (reader,) = [reader for reader in loader.READERS if reader.detects(state)]
    vit, report = loader.load(spec, state, "own.pth")
    return reader, ViTEncoder(vit, report.spec, report, taps=(0, 1), **windows).eval()


def check(name):
    """Raises AssertionError if something of the model is not as it should be."""
    spec = spec_of(f"timm:{name}")
    any_size = {} if spec.rel_pos_tables or spec.decomposed_tables else {"dynamic_img_size": True}
    model = model_of(name, **any_size)
    windows = {"window_size": getattr(model.blocks[0], "window_size", 0), "num_global_blocks": 1}
    state = model.state_dict()
    _, encoder = encoder_of(spec, state, windows)
    for key, tensor in encoder.vit.state_dict().items():
        own = state.get(key)
        assert own is None or torch.equal(tensor, own.reshape(tensor.shape)), key
    grids = [model.patch_embed.grid_size] + ([(3, 5)] if model.pos_embed is None and not spec.rel_pos_tables else [])
    for grid in grids:
        images = torch.randn(1, 3, *(side * spec.patch_size for side in grid))
        with torch.no_grad():
            expected = model.forward_intermediates(images, [0, 1], norm=False, intermediates_only=True)
            for ours, theirs in zip(encoder(images), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    maps = encoder.train()(torch.randn(2, 3, 3 * spec.patch_size, 4 * spec.patch_size))
    sum(m.square().mean() for m in maps).backward()
    assert [key for key, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []
    reader, again = encoder_of(encoder.spec, {f"encoder.{key}": t for key, t in encoder.state_dict().items()}, windows)
    assert reader is loader.own
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), encoder.parameters(), strict=True))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_one_of_each_variant(name):
    check(name)


@pytest.mark.slow
def test_all_models(capsys):
    names = [name for name in timm.list_models() if is_model_in_modules(name, MODULES)]
    variants = {variant(timm.create_model(name, pretrained=False)) for name in ONE_OF_EACH}
    wrong, new = {}, {}
    for name in names:
        try:
            check(name)
        except (AssertionError, AttributeError, UserError, RuntimeError, TypeError, ValueError) as error:
            wrong[name] = f"{type(error).__name__}: {error}"[:200]
        found = variant(timm.create_model(name, pretrained=False))
        if found not in variants:
            new.setdefault(found, name)
    with capsys.disabled():
        print(f"\n{len(names)} models, {len(wrong)} wrong")
    assert not wrong, wrong
    assert not new, f"add to ONE_OF_EACH: {sorted(new.values())}"
