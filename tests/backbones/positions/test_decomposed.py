"""Decomposed relative positions against the sum over every pair of tokens, in both forms, and how tables are kept."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.small_encoders import DEPTH, DIM, HEADS, SMALL, encoder_of, images, small_beit, small_vit

from mae_transfer.backbones.checkpoints import loader
from mae_transfer.backbones.load import load_backbone
from mae_transfer.backbones.positions import decomposed
from mae_transfer.backbones.positions.decomposed import DecomposedTables
from mae_transfer.backbones.positions.per_block import PerBlockTables
from mae_transfer.backbones.positions.tables import DECOMPOSED_TABLES
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.errors import UserError

GRIDS = [(3, 3), (5, 2), (2, 7)]


def inputs(grid, rows=None, dim=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    tokens = grid[0] * grid[1]
    shapes = [(2, 3, tokens, dim)] * 3 + [(rows or 2 * grid[0] - 1, dim), (rows or 2 * grid[1] - 1, dim)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def pair_by_pair(q, k, v, table_h, table_w, grid):
    """The formula of MViTv2, for one pair of tokens at a time; tables of the very grid."""
    h, w = grid
    logits = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    bias = torch.stack(
        [
            (q[:, :, i] * (table_h[i // w - j // w + h - 1] + table_w[i % w - j % w + w - 1])).sum(-1)
            for i in range(h * w)
            for j in range(h * w)
        ],
        dim=-1,
    )
    return (logits + bias.view_as(logits)).softmax(-1) @ v


def in_one_call(q, k, v, table_h, table_w, grid):
    """The form for accelerators, whatever the device."""
    rows, columns = (
        torch.einsum(f"bnhwc,{axis}kc->bnhwk", q.unflatten(2, grid), decomposed._offsets(table, size)).flatten(2, 3)
        for axis, table, size in zip("hw", (table_h, table_w), grid, strict=True)
    )
    return decomposed.fused(q, k, v, rows, columns, grid)


@pytest.mark.parametrize("form", [decomposed.decomposed_attention, in_one_call])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("piece", [1, 700, 2**21])
def test_values_and_gradients_are_those_of_every_pair(form, grid, piece, monkeypatch):
    monkeypatch.setattr(decomposed, "PIECE_BYTES", piece)
    ours, wanted = inputs(grid), inputs(grid)
    found, expected = form(*ours, grid), pair_by_pair(*wanted, grid)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    seed = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found.backward(seed)
    expected.backward(seed)
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rows", [5, 9, 21])
def test_tables_of_another_size_are_stretched_linearly(rows):
    """A table that is linear in its row stays so: row r of n lies at (r + 0.5) * rows / n - 0.5, held at both ends."""
    grid = (4, 6)
    line = torch.arange(rows, dtype=torch.float64)[:, None] * torch.tensor([1.0, -2.0], dtype=torch.float64)
    for size in grid:
        at = ((torch.arange(2 * size - 1) + 0.5) * rows / (2 * size - 1) - 0.5).clamp(0, rows - 1).double()
        torch.testing.assert_close(decomposed.resize(line, size), at[:, None] * line[1])
    q, k, v, table_h, table_w = inputs(grid, rows)
    stretched = [decomposed.resize(table, size) for table, size in zip((table_h, table_w), grid, strict=True)]
    found = decomposed.decomposed_attention(q, k, v, table_h, table_w, grid)
    torch.testing.assert_close(found, pair_by_pair(q, k, v, *stretched, grid))


def test_nothing_of_the_size_of_the_logits_is_kept():
    grid, kept = (16, 16), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        decomposed.decomposed_attention(*inputs(grid), grid).sum().backward()
    assert kept
    assert not [shape for shape in kept if list(shape[-2:]) == [256, 256]]


def with_random_tables(vit=None, **options):
    encoder = encoder_of(vit or small_vit(), rel_pos="decomposed", **options)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in encoder.named_parameters():
        if name.endswith(DECOMPOSED_TABLES):
            parameter.data.normal_(generator=generator)
    return encoder


def test_every_block_has_tables_of_its_own_for_its_window_or_the_image():
    encoder = with_random_tables(img_size=(20, 28), window_size=3, num_global_blocks=2)
    assert isinstance(encoder.position, DecomposedTables)
    for i, block in enumerate(encoder.vit.blocks):
        rows, columns = (9, 13) if i in (1, 3) else (5, 5)
        assert block.attn.rel_pos_h.shape == (rows, DIM // HEADS)
        assert block.attn.rel_pos_w.shape == (columns, DIM // HEADS)
        assert encoder.layer_id(f"vit.blocks.{i}.attn.rel_pos_h") == i + 1


def test_zero_tables_change_nothing():
    options = {"window_size": 3, "num_global_blocks": 2, "img_size": (20, 24)}
    vit = small_vit()
    without = encoder_of(vit, **options)(images(20, 24))
    for a, b in zip(encoder_of(vit, rel_pos="decomposed", **options)(images(20, 24)), without, strict=True):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()


def test_checkpointing_is_exact_and_every_table_learns():
    vit = small_vit()

    def gradients(checkpointing):
        options = {"window_size": 3, "num_global_blocks": 2, "grad_checkpointing": checkpointing}
        encoder = with_random_tables(vit, **options).train()
        sum(m.square().sum() for m in encoder(images(20, 24))).backward()
        return {name: p.grad for name, p in encoder.named_parameters()}

    plain, again = gradients(False), gradients(True)
    for name, gradient in plain.items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, again[name], rtol=1e-5, atol=1e-6, msg=name)


def test_bf16_stays_close():
    encoder = with_random_tables(window_size=3, num_global_blocks=2)
    with torch.no_grad():
        expected = encoder(images(24, 24))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = encoder(images(24, 24))
    sum(m.float().sum() for m in maps).backward()
    for a, b in zip(maps, expected, strict=True):
        assert (a - b).abs().mean() < 0.05 * b.abs().mean()


def test_a_saved_encoder_brings_its_tables_and_they_are_resized_to_another_image(tmp_path: Path):
    """Nothing has to be said of them; the report says what was resized."""
    torch.manual_seed(0)
    options = {"window_size": 4, "num_global_blocks": 2}
    trained = load_backbone("random_vit_nano", img_size=96, rel_pos="decomposed", **options).eval()
    for name, parameter in trained.named_parameters():
        if name.endswith(DECOMPOSED_TABLES):
            parameter.data.normal_()
    path = tmp_path / "encoder.pth"
    torch.save(trained.state_dict(), path)
    image = torch.randn(1, 3, 96, 96)
    again = load_backbone("vit_nano", checkpoint=path, img_size=96, **options).eval()
    assert not again.load_report.resized or all("attn" not in key for key in again.load_report.resized)
    with torch.no_grad():
        for a, b in zip(again(image), trained(image), strict=True):
            torch.testing.assert_close(a, b)
    larger = load_backbone("vit_nano", checkpoint=path, img_size=(128, 64), **options)
    table = trained.vit.blocks[3].attn.rel_pos_h
    wanted = F.interpolate(table.T[None], size=15, mode="linear", align_corners=False)[0].T
    torch.testing.assert_close(larger.vit.blocks[3].attn.rel_pos_h, wanted)
    assert larger.vit.blocks[3].attn.rel_pos_w.shape == (7, 16)
    assert larger.load_report.resized["blocks.3.attn.rel_pos_h"] == "11 -> 15 rows, linear"
    assert "blocks.0.attn.rel_pos_h" not in larger.load_report.resized

    state = trained.state_dict()
    del state["vit.blocks.2.attn.rel_pos_w"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"missing vit\.blocks\.2\.attn\.rel_pos_w"):
        load_backbone("vit_nano", checkpoint=path, img_size=96, **options)


def test_what_has_no_place_for_them():
    with pytest.raises(UserError, match=r"no entry for its class token; set backbone\.window_size"):
        encoder_of(small_vit(), rel_pos="decomposed")
    beit = dataclasses.replace(SMALL, abs_pos=False, rel_pos_tables=True, layer_scale=0.1)
    vit = small_beit()
    kept, _ = loader.load(beit, vit.state_dict(), "test")
    encoder = ViTEncoder(kept, beit, window_size=3, num_global_blocks=2, rel_pos="decomposed")
    assert isinstance(encoder.position, PerBlockTables)
    assert len(encoder.vit.blocks) == DEPTH
