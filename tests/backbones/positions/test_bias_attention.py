"""Attention with a relative position bias: values and gradients against the formula in float64 through autograd."""

import pytest
import torch
from timm.layers import Attention

from mae_transfer.backbones.positions import bias_attention
from mae_transfer.backbones.positions import tables as rel_pos


def reference(q, k, v, table, grid, prefix):
    bias = rel_pos.bias(table, grid, grid, prefix, table.dtype)
    return (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v


def draw(grid, prefix, dtype=torch.float32, batch=2, heads=3, width=8):
    generator = torch.Generator().manual_seed(0)
    tokens = prefix + grid[0] * grid[1]
    shapes = [(batch, heads, tokens, width)] * 3 + [(rel_pos.table_rows(grid, prefix), heads)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def run(function, leaves, weights):
    out = function(*leaves)
    (out.double() * weights).sum().backward()
    gradients = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return [out.detach(), *gradients]


def through_mask(q, k, v, table, grid, prefix):
    """What runs where there is no CPU path: the mask of `_Bias` in PyTorch's attention."""
    mask = bias_attention._Bias.apply(table, grid, prefix, q.dtype)
    assert mask.stride(1) % 16 == 0
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("path", [bias_attention.biased_attention, through_mask])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("grid", "size"), [((6, 6), 2**21), ((5, 7), 1600), ((8, 3), 1), ((1, 4), 1)])
def test_values_and_gradients_are_those_of_the_formula(monkeypatch, path, prefix, grid, size):
    monkeypatch.setattr(bias_attention, "PIECE_BYTES", size)
    leaves = draw(grid, prefix)
    weights = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = run(
        lambda *x: reference(*x, grid, prefix), [x.detach().double().requires_grad_() for x in leaves], weights
    )
    actual = run(lambda *x: path(*x, grid, prefix), leaves, weights)
    for name, got, want in zip(("out", "q", "k", "v", "table"), actual, expected, strict=True):
        torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_half_precision_is_as_near_as_pytorchs_own_attention():
    leaves = draw((6, 6), 1, dtype=torch.bfloat16)
    weights = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = run(lambda *x: reference(*x, (6, 6), 1), [x.detach().double().requires_grad_() for x in leaves], weights)
    actual = run(lambda *x: bias_attention.biased_attention(*x, (6, 6), 1), leaves, weights)
    eager = run(lambda *x: reference(*x, (6, 6), 1), leaves, weights)
    for got, want, other in zip(actual, expected, eager, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - want).norm() < max(0.01 * want.norm(), 1.5 * (other.double() - want).norm())


def test_attention_is_timms():
    torch.manual_seed(0)
    attn = Attention(24, num_heads=3, qkv_bias=True, qk_norm=True, norm_layer=torch.nn.LayerNorm)
    grid, x = (4, 5), torch.randn(2, 21, 24)
    table = torch.randn(rel_pos.table_rows(grid, 1), 3)
    expected = attn(x, attn_mask=rel_pos.bias(table, grid, grid, 1, torch.float32))
    torch.testing.assert_close(bias_attention.attention(attn, x, table, grid, 1), expected, atol=1e-5, rtol=1e-4)


def test_nothing_of_the_size_of_the_bias_is_kept():
    grid, saved = (16, 16), []
    leaves = draw(grid, 1, batch=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        bias_attention.biased_attention(*leaves, grid, 1)
    assert saved
    assert sum(saved) < leaves[0].shape[2] ** 2  # of one head
