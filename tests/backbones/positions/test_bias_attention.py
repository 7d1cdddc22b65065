"""Attention with a relative position bias: values and gradients against the formula in float64 through autograd."""

import itertools

import pytest
import torch
from support.small_encoders import encoder_of, images, small_vit
from timm.layers import Attention
from torch.utils._python_dispatch import TorchDispatchMode

from mae_transfer.backbones.positions import bias_attention, shared
from mae_transfer.backbones.positions import tables as rel_pos


def bias_of(table, grid, prefix):
    """The bias (heads, N, N), a row of the table for each pair of tokens as BEiT's code numbers them."""
    (h, w), patches = grid, list(itertools.product(range(grid[0]), range(grid[1])))
    offsets = (2 * h - 1) * (2 * w - 1)
    rows = torch.tensor([[(y - v + h - 1) * (2 * w - 1) + x - u + w - 1 for v, u in patches] for y, x in patches])
    index = torch.full([prefix + h * w] * 2, offsets + 2)
    index[:prefix, prefix:], index[prefix:, :prefix], index[prefix:, prefix:] = offsets, offsets + 1, rows
    return table[index].permute(2, 0, 1)


def reference(q, k, v, table, grid, prefix):
    bias = bias_of(table, grid, prefix)
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
    """What runs where there is no CPU path: the mask in PyTorch's attention."""
    mask = bias_attention.bias_mask(table, grid, prefix, q.dtype)
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
    expected = attn(x, attn_mask=bias_of(table, grid, 1))
    torch.testing.assert_close(bias_attention.attention(attn, x, table, grid, 1), expected, atol=1e-5, rtol=1e-4)


def test_nothing_of_the_size_of_the_bias_is_kept():
    grid, saved = (16, 16), []
    leaves = draw(grid, 1, batch=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        bias_attention.biased_attention(*leaves, grid, 1)
    assert saved
    assert sum(saved) < leaves[0].shape[2] ** 2  # of one head


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("grid", [(40, 40), (3, 50), (1, 4)])
def test_a_tables_gradient_counts_every_pair_in_half_precision_too(grid, prefix):
    """Of ones, which a bfloat16 sum no longer counts beyond 256: an offset's gradient is the number of its pairs."""
    h, w = grid
    table = torch.zeros(rel_pos.table_rows(grid, prefix), 2, requires_grad=True)
    bias_attention.bias_mask(table, grid, prefix, torch.bfloat16).sum().backward()
    pairs = [(h - abs(y)) * (w - abs(x)) for y in range(1 - h, h) for x in range(1 - w, w)]
    wanted = pairs + [prefix * h * w, prefix * h * w, prefix**2] * bool(prefix)
    assert table.grad.T.tolist() == [wanted, wanted]


class Kernels(TorchDispatchMode):
    """Counts the operations that are no views."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_tables_gradient_takes_few_kernels_and_no_scatter():
    mask = bias_attention.bias_mask(
        torch.zeros(2 * 31**2 - 31**2 + 3, 2, requires_grad=True), (16, 16), 1, torch.bfloat16
    )
    gradient = torch.randn(2, 257, 257, dtype=torch.bfloat16)
    with Kernels() as kernels:
        mask.backward(gradient)
    assert len(kernels.names) <= 16
    assert not [name for name in kernels.names if "index" in name or "scatter" in name]


@pytest.mark.parametrize("kind", ["windows", "whole", "resampled", "per block"])
def test_the_way_off_the_cpu_gives_the_same_maps_and_gradients(kind, monkeypatch):
    """In bfloat16 as well a table's gradient is as near to that in float32 as the CPU's."""
    vit = small_vit()
    options = {"img_size": 48 if kind == "resampled" else 96, "rel_pos": "per_block" if kind == "per block" else True}
    if kind == "windows":
        options |= {"window_size": 8, "num_global_blocks": 2}

    def run_encoder(dtype, *, fused):
        encoder = encoder_of(vit, **options)
        tables = {name: p for name, p in encoder.named_parameters() if "rel_pos" in name and p.requires_grad}
        for number, table in enumerate(tables.values()):
            table.data.normal_(generator=torch.Generator().manual_seed(number))
        with monkeypatch.context() as patched, torch.autocast("cpu", dtype, enabled=dtype is not None):
            for module in (bias_attention, shared):
                patched.setattr(module, "runs_in_pieces", lambda device: not fused)
            maps = encoder(images(96, 96))
        sum((each.float() * (1 + each.float().sigmoid())).mean() for each in maps).backward()
        return {"maps": maps[-1].detach()} | {name: table.grad for name, table in tables.items()}

    exact = run_encoder(None, fused=False)
    assert len(exact) > 1
    fused = run_encoder(None, fused=True)
    on_cpu, off_it = (run_encoder(torch.bfloat16, fused=fused) for fused in (False, True))
    for name, value in exact.items():
        assert (fused[name] - value).norm() < 1e-5 * value.norm(), name
        assert (off_it[name] - value).norm() < 1.5 * (on_cpu[name] - value).norm(), name
