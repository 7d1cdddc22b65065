"""The encoder against timm's own forward passes and against a ViT written out pair by pair."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from support.small_encoders import DEPTH, DIM, HEADS, PATCH, SMALL, encoder_of, images, small_beit, small_vit
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer

from mae_transfer.backbones import registry
from mae_transfer.backbones.checkpoints import loader
from mae_transfer.backbones.load import load_backbone
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.backbones.windows import partition
from mae_transfer.errors import UserError

SMALL_BEIT = dataclasses.replace(SMALL, abs_pos=False, rel_pos_tables=True, layer_scale=0.1)


def encoder_of_beit(beit, **options):
    vit, _ = loader.load(SMALL_BEIT, copy.deepcopy(beit.state_dict()), "test")
    return ViTEncoder(vit, SMALL_BEIT, **options).eval()


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert b.std() > 0.1
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"init_values": 0.1},
        {"reg_tokens": 3},
        {"reg_tokens": 2, "no_embed_class": True},
        {"class_token": False, "global_pool": "avg"},
        {"pre_norm": True, "qk_norm": True, "pos_embed": "none"},
        {"block_fn": ResPostBlock},
        {"block_fn": ParallelScalingBlock},
    ],
    ids=str,
)
def test_without_windows_equals_timm(kwargs):
    vit = small_vit(**kwargs)
    expected = vit.forward_intermediates(images(16, 16), [0, 2, 3], norm=False, intermediates_only=True)
    assert_same(encoder_of(vit, taps=(0, 2, 3))(images(16, 16)), expected)


@pytest.mark.parametrize("size", [(24, 24), (12, 28), (8, 16)])
@pytest.mark.parametrize("prefix", [{}, {"reg_tokens": 2, "no_embed_class": True}], ids=str)
def test_position_embedding_is_resampled_as_vitdet(size, prefix):
    """timm's forward at the new size, its position embedding set to the closed form of detectron2's get_abs_pos."""
    vit = small_vit(**prefix)
    rows = 0 if prefix else 1
    native = vit.pos_embed[:, rows:].reshape(1, 4, 4, DIM).permute(0, 3, 1, 2)
    grid = (size[0] // PATCH, size[1] // PATCH)
    patches = F.interpolate(native, size=grid, mode="bicubic", align_corners=False, antialias=False)
    reference = small_vit(img_size=size, **prefix)
    reference.load_state_dict({**vit.state_dict(), "pos_embed": reference.pos_embed})
    reference.pos_embed.data = torch.cat([vit.pos_embed[:, :rows], patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    expected = reference.forward_intermediates(images(*size), norm=False, intermediates_only=True)
    encoder = encoder_of(vit, taps=(0, 1, 2, 3))
    assert_same(encoder(images(*size)), expected)
    assert encoder.vit.pos_embed.shape == vit.pos_embed.shape


def naive(vit, x, window, global_blocks, tables, prefix=0):
    """Windowed ViT without prefix tokens, one window and one query-key pair at a time.

    `tables`: per block (rows, heads), a row per offset of the block's own grid.
    """
    x = vit.patch_embed(x)
    batch, h, w, _ = x.shape
    if vit.pos_embed is not None:
        grid = vit.pos_embed[:, prefix:].reshape(1, 4, 4, DIM).permute(0, 3, 1, 2)
        x = x + F.interpolate(grid, size=(h, w), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    for i, block in enumerate(vit.blocks):
        y = block.norm1(x)
        size = (h, w) if i in global_blocks else (window, window)
        rows, columns = -(-h // size[0]) * size[0], -(-w // size[1]) * size[1]
        padded = torch.zeros(batch, rows, columns, DIM, dtype=y.dtype)
        padded[:, :h, :w] = y
        out = torch.zeros_like(padded)
        for top in range(0, rows, size[0]):
            for left in range(0, columns, size[1]):
                tokens = padded[:, top : top + size[0], left : left + size[1]].reshape(batch, -1, DIM)
                q, k, v = block.attn.qkv(tokens).reshape(batch, -1, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
                logits = q @ k.transpose(-1, -2) / (DIM // HEADS) ** 0.5
                if tables is not None:
                    for a in range(logits.shape[2]):
                        for b in range(logits.shape[3]):
                            dy, dx = a // size[1] - b // size[1], a % size[1] - b % size[1]
                            row = (dy + size[0] - 1) * (2 * size[1] - 1) + dx + size[1] - 1
                            logits[:, :, a, b] += tables[i][row]
                heads = (logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, -1, DIM)
                out[:, top : top + size[0], left : left + size[1]] = block.attn.proj(heads).view(batch, *size, DIM)
        x = x + block.ls1(out[:, :h, :w])
        x = x + block.ls2(block.mlp(block.norm2(x)))
        yield x.permute(0, 3, 1, 2)


@torch.no_grad()
@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize(("size", "groups"), [((16, 16), 2), ((20, 28), 2), ((12, 12), 1), ((8, 20), 0), ((8, 8), 4)])
def test_windows_equal_the_written_out_attention(size, groups, rel_pos):
    vit = small_vit(init_values=0.2)
    encoder = encoder_of(
        vit, img_size=size, window_size=3, num_global_blocks=groups, rel_pos=rel_pos, taps=(0, 1, 2, 3)
    )
    last = {0: set(), 1: {3}, 2: {1, 3}, 4: {0, 1, 2, 3}}[groups]
    assert encoder.global_blocks == last
    tables = None
    if rel_pos:
        for name in ("rel_pos_window", "rel_pos_global"):
            if getattr(encoder, name) is not None:
                getattr(encoder, name).normal_(generator=torch.Generator().manual_seed(3))
        tables = [encoder.rel_pos_global if i in last else encoder.rel_pos_window for i in range(DEPTH)]
    assert_same(encoder(images(*size)), list(naive(vit, images(*size), 3, last, tables, prefix=1)))
    assert encoder.vit.cls_token is None
    assert encoder.vit.pos_embed.shape == (1, 16, DIM)


@torch.no_grad()
def test_windowed_beit_keeps_its_tables():
    """Window 4 is the native grid: windowed blocks use the tables as they are, without the class entries."""
    beit = small_beit()
    encoder = encoder_of_beit(beit, window_size=4, num_global_blocks=0, taps=(0, 1, 2, 3))
    tables = [block.attn.relative_position_bias_table[:-3] for block in beit.blocks]
    assert_same(encoder(images(20, 24)), list(naive(encoder.vit, images(20, 24), 4, set(), tables)))


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("size", [(16, 16), (24, 24), (12, 20)])
def test_beit_equals_timm_with_random_tables(size):
    beit = small_beit()
    encoder = encoder_of_beit(beit, img_size=size, taps=(0, 1, 2, 3))
    beit.set_input_size(size)
    expected = beit.forward_intermediates(images(*size), norm=False, intermediates_only=True)
    assert_same(encoder(images(*size)), expected)


def test_beit_tables_grow_geometrically():
    """BEiT's interpolation leaves the nearest offsets as they are and puts the farthest ones at the new ends."""
    beit = small_beit()
    encoder = encoder_of_beit(beit, img_size=(32, 40), window_size=3, num_global_blocks=2)
    old = beit.blocks[1].attn.relative_position_bias_table[:-3].view(7, 7, HEADS)
    new = encoder.vit.blocks[1].attn.rel_pos_table.view(15, 19, HEADS)
    torch.testing.assert_close(new[6:9, 8:11], old[2:5, 2:5], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(new[::14, ::18], old[::6, ::6], rtol=1e-4, atol=1e-4)
    assert encoder.vit.blocks[0].attn.rel_pos_table.shape == (25, HEADS)


@torch.no_grad()
def test_global_tables_are_resampled_bicubically_at_other_grids():
    """In float64: random tables give logits so large that float32 is not exact to 1e-5."""
    vit = small_vit().double()
    encoder = encoder_of(vit, window_size=3, num_global_blocks=4, rel_pos=True, taps=(0, 1, 2, 3)).double()
    table = encoder.rel_pos_global.normal_(generator=torch.Generator().manual_seed(3))
    assert table.shape == (49, HEADS)
    resampled = F.interpolate(table.T.reshape(1, HEADS, 7, 7), size=(9, 5), mode="bicubic", align_corners=False)
    tables = [resampled[0].flatten(1).T] * DEPTH
    expected = naive(vit, images(20, 12).double(), 3, {0, 1, 2, 3}, tables, prefix=1)
    assert_same(encoder(images(20, 12).double()), list(expected))


@pytest.mark.parametrize("window", [0, 3])
def test_zero_tables_change_nothing(window):
    vit = small_vit(reg_tokens=2)
    options = {"window_size": window, "num_global_blocks": 2, "img_size": (20, 24)}
    without = encoder_of(vit, **options)(images(20, 24))
    for a, b in zip(encoder_of(vit, rel_pos=True, **options)(images(20, 24)), without, strict=True):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()


@pytest.mark.parametrize("window", [0, 3])
def test_prefix_tokens_share_the_table_entries_of_beit(window):
    """Without windows each table has three entries more; the class token reaches the maps only then."""
    encoder = encoder_of(small_vit(), rel_pos=True, window_size=window, num_global_blocks=2)
    assert len(encoder.rel_pos_global) == 49 + (0 if window else 3)
    assert (encoder.vit.cls_token is None) == bool(window)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rel_pos": True},
        {"window_size": 3},
        {"window_size": 3, "num_global_blocks": 2, "rel_pos": True},
        {"window_size": 3, "num_global_blocks": 0, "rel_pos": True},
        {"window_size": 3, "num_global_blocks": 4, "rel_pos": True},
        {"window_size": 3, "num_global_blocks": 2, "rel_pos": True, "taps": (0,)},
        {"taps": (1, 2)},
        {"beit": True},
        {"beit": True, "window_size": 3, "num_global_blocks": 2, "img_size": (20, 24)},
    ],
    ids=str,
)
def test_checkpointing_is_exact_and_every_parameter_is_used(options):
    """What DDP needs: each parameter that wants a gradient gets one. Drop path draws the same when recomputed."""
    beit = options.pop("beit", False)

    def gradients(checkpointing):
        torch.manual_seed(0)
        kwargs = {**options, "grad_checkpointing": checkpointing}
        vit = small_vit(drop_path_rate=0.5)
        encoder = (encoder_of_beit(small_beit(), **kwargs) if beit else encoder_of(vit, **kwargs)).train()
        maps = encoder(images(20, 24, batch=6))
        sum(m.square().sum() for m in maps).backward()
        return maps, {name: p.grad for name, p in encoder.named_parameters() if p.requires_grad}

    maps, plain = gradients(False)
    maps_again, checkpointed = gradients(True)
    assert [name for name, grad in plain.items() if grad is None] == []
    for a, b in zip(maps, maps_again, strict=True):
        assert torch.equal(a, b)
    assert plain.keys() == checkpointed.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(grad, checkpointed[name], rtol=1e-5, atol=1e-6, msg=name)


def test_training_after_inference_mode_and_in_bf16():
    """What an evaluation leaves behind must serve training; under autocast the maps stay close to float32."""
    encoder = encoder_of(small_vit(), rel_pos=True, window_size=3, num_global_blocks=2)
    with torch.inference_mode():
        expected = encoder(images(24, 24))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = encoder(images(24, 24))
    sum(m.float().sum() for m in maps).backward()
    for a, b in zip(maps, expected, strict=True):
        assert (a - b).abs().mean() < 0.05 * b.abs().mean()


def test_layer_ids_follow_mae():
    encoder = encoder_of(small_vit(pre_norm=True), rel_pos=True, window_size=3, num_global_blocks=2)
    ids = {name: encoder.layer_id(name) for name, _ in encoder.named_parameters()}
    assert {i for name, i in ids.items() if "blocks" not in name and "rel_pos" not in name} == {0}
    assert {name: i for name, i in ids.items() if "rel_pos" in name} == {"rel_pos_window": 5, "rel_pos_global": 5}
    for i in range(DEPTH):
        assert ids[f"vit.blocks.{i}.attn.qkv.weight"] == i + 1
    beit = encoder_of_beit(small_beit())
    assert beit.layer_id("vit.blocks.2.attn.rel_pos_table") == 3
    assert "vit.blocks.2.attn.rel_pos_table" in dict(beit.named_parameters())
    assert beit.layer_id("vit.cls_token") == 0


def test_published_geometry():
    """Facts of Li et al. and ViTDet: global blocks of B and L, taps, 64 tokens padded to 70, drop path linear."""
    for name, last in (("random_vit_ti", {2, 5, 8, 11}), ("random_vit_l", {5, 11, 17, 23})):
        spec = registry.find(name)
        with torch.device("meta"):
            vit = VisionTransformer(embed_dim=spec.embed_dim, depth=spec.depth, num_heads=spec.num_heads, num_classes=0)
            encoder = ViTEncoder(vit, spec, window_size=14)
        assert encoder.global_blocks == last
        assert encoder.taps == tuple(sorted(last))
    windows, padded = partition(torch.ones(1, 64, 64, 1), 14)
    assert windows.shape == (25, 196, 1)
    assert padded == (70, 70)
    assert 1 - windows.mean() == pytest.approx(0.164, abs=1e-3)
    encoder = load_backbone("random_vit_nano", drop_path=0.7)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.vit.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


def test_patch_14():
    vit = small_vit(img_size=28, patch_size=14)
    encoder = encoder_of(vit, dataclasses.replace(SMALL, patch_size=14), window_size=2, num_global_blocks=2)
    assert [tuple(m.shape) for m in encoder(images(42, 70))] == [(2, DIM, 3, 5)] * 4
    with pytest.raises(UserError, match="64x64 is no multiple of the patch 14 .* use 56x56 or 70x70"):
        encoder(images(64, 64))


@pytest.mark.parametrize(
    ("kwargs", "options", "message"),
    [
        ({"block_fn": ResPostBlock}, {"window_size": 3}, "ResPostBlock; set backbone.window_size=0"),
        ({"block_fn": ResPostBlock}, {"rel_pos": True}, "ResPostBlock"),
        ({}, {"window_size": 3, "num_global_blocks": 3}, "num_global_blocks=3: the 4 blocks"),
        ({}, {"taps": (0, 4)}, "taps"),
        ({}, {"taps": (1, 0)}, "taps"),
        ({}, {"img_size": 15}, "15x15 is no multiple of the patch 4"),
    ],
)
def test_options_that_do_not_fit(kwargs, options, message):
    with pytest.raises(UserError, match=message):
        encoder_of(small_vit(**kwargs), **options)
