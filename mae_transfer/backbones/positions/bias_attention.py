"""Attention with a relative position bias that costs little more than attention without one.

The bias of a grid is a table of offsets; added as an attention mask it becomes (heads, N, N) numbers per block which
are gathered, kept for the backward pass, and whose gradient rules the fused kernels out. Here, on CPU, attention runs
in pieces that fit the cache, one head and a few rows of the grid at a time:

- With the keys in reverse order, the table row of a query (y, x) and a key (y', x') is (y + y', x + x') of its
  (2h-1, 2w-1). So the bias is a strided VIEW of the table: a piece of the logits starts as a copy of it, and the
  product of queries and keys is accumulated on top. No index, no bias tensor, nothing kept but q, k, v and the table.
- The backward pass computes a piece's probabilities again (one of its five products), and adds its logit gradient
  along the diagonals into (2h-1, w, w) sums by h shifted additions, and at the end these into the table by w.

Half precision rounds logits and probabilities, as PyTorch's own attention does where it is not fused; the sums over
pieces, and those of the table, are in float32.

Elsewhere (CUDA) the bias goes to PyTorch's fused attention as a mask (`bias_mask`), which blocks that share a table
share as well. The mask is made by the same view. Its gradient is written once into rows that are shifted by an offset
each, so that plain float32 sums over rows give the table's gradient: a few kernels, no atomics. (A scatter into half
precision loses most of it: one offset of a 64 x 64 grid collects up to 4096 numbers, and a bfloat16 sum of equal ones
stops growing at 256.) The layout of the table is in `tables.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.positions.tables import PREFIX_ENTRIES

PIECE_BYTES = 2**21
"""Logits worked on at once: best or near it, in float32 and bfloat16, on CPUs with 0.5 or 1 MiB of L2 cache a core."""


def biased_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: Grid, prefix: int) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v, (B, heads, N, D) like its arguments, N = prefix + h * w.

    Args:
        table: (rows, heads) of a table for this very `grid`, as `tables.table_rows` counts.
        prefix: number of prefix tokens, which come first.
    """
    if runs_in_pieces(q.device):
        return _in_pieces(q, k, v, table, grid, prefix)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias_mask(table, grid, prefix, q.dtype))


_pieces_on_cpu = True


def runs_in_pieces(device: torch.device) -> bool:
    """Whether attention runs in pieces on a device; if not, it is PyTorch's fused one."""
    return device.type == "cpu" and _pieces_on_cpu


@contextmanager
def fused_everywhere() -> Iterator[None]:
    """On a CPU, too, the path of CUDA: a plan for GPUs has its memory."""
    global _pieces_on_cpu
    before, _pieces_on_cpu = _pieces_on_cpu, False
    try:
        yield
    finally:
        _pieces_on_cpu = before


def bias_mask(table: Tensor, grid: Grid, prefix: int, dtype: torch.dtype) -> Tensor:
    """The bias (heads, N, N) in `dtype`, as an attention mask; arguments as those of `biased_attention`."""
    mask: Tensor = _Bias.apply(table, grid, prefix, dtype)
    return mask


@torch.compiler.disable  # its loops would be unrolled
def _in_pieces(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: Grid, prefix: int) -> Tensor:
    out: Tensor = _BiasedAttention.apply(q, k, v, table, grid, prefix)
    return out


def attention(attn: Any, x: Tensor, table: Tensor, grid: Grid, prefix: int) -> Tensor:
    """timm's `Attention.forward` on (B, N, C) with relative position bias; no dropout and no gate, as in plain ViTs."""
    q, k, v = attn.qkv(x).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    out = biased_attention(attn.q_norm(q), attn.k_norm(k), v, table, grid, prefix)
    return attn.proj_drop(attn.proj(attn.norm(out.transpose(1, 2).flatten(2))))


def _offsets(table: Tensor, grid: Grid) -> Tensor:
    """(heads, h, w, h, w) view: the bias of query (y, x) and key (y', x') counted from the last one."""
    h, w = grid
    rows, columns = 2 * h - 1, 2 * w - 1
    flat = table[: rows * columns].T.contiguous()
    return flat.as_strided((flat.shape[0], h, w, h, w), (rows * columns, columns, 1, columns, 1))


def _reverse(tokens: Tensor, prefix: int) -> Tensor:
    """(B, heads, N, D) with the grid's tokens in reverse order behind the prefix; its own inverse."""
    return torch.cat([tokens[:, :, :prefix], tokens[:, :, prefix:].flip(2)], 2)


class _TableGradient:
    """Sums of logit gradients by offset, in pieces."""

    def __init__(self, heads: int, grid: Grid, prefix: int, device: torch.device, dtype: torch.dtype) -> None:
        h, w = grid
        self.grid, self.prefix = grid, prefix
        self.by_row = torch.zeros(heads, 2 * h - 1, w, w, device=device, dtype=dtype)
        """By row offset; columns of query and (reversed) key still apart."""
        self.extra = torch.zeros(PREFIX_ENTRIES, heads, device=device, dtype=dtype)

    def add(self, head: int, first: int, gradient: Tensor) -> None:
        """Gradient (n, N) of the queries in grid rows from `first` on; with those at 0 come the prefix queries."""
        (h, w), prefix = self.grid, self.prefix
        if prefix:
            if first == 0:
                self.extra[0, head] += gradient[:prefix, prefix:].sum()
                self.extra[2, head] += gradient[:prefix, :prefix].sum()
                gradient = gradient[prefix:]
            self.extra[1, head] += gradient[:, :prefix].sum()
        by_offset = gradient[:, prefix:].unflatten(1, (h, w)).unflatten(0, (-1, w)).transpose(1, 2)
        for y, row in enumerate(by_offset):
            self.by_row[head, first + y : first + y + h] += row

    def table(self) -> Tensor:
        (h, w), heads = self.grid, len(self.by_row)
        offsets = self.by_row.new_zeros(heads, 2 * h - 1, 2 * w - 1)
        for x in range(w):
            offsets[:, :, x : x + w] += self.by_row[:, :, x]
        rows = offsets.flatten(1).T
        return torch.cat([rows, self.extra]) if self.prefix else rows


class _BiasedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: Grid, prefix: int) -> Tensor:
        ctx.save_for_backward(q, k, v, table)
        ctx.grid, ctx.prefix = grid, prefix
        pieces = _Pieces(q, k, v, table, grid, prefix)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for head, _, queries, p in pieces:
            out[:, head, queries] = torch.bmm(p, pieces.v[:, head])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        q, k, v, table = ctx.saved_tensors
        pieces = _Pieces(q, k, v, table, ctx.grid, ctx.prefix)
        grad, wide = grad.contiguous(), torch.promote_types(q.dtype, torch.float32)
        grad_q = torch.empty_like(pieces.q)
        grad_k, grad_v = (torch.zeros_like(x, dtype=wide) for x in (pieces.k, pieces.v))
        sums = _TableGradient(q.shape[1], ctx.grid, ctx.prefix, q.device, wide)
        for head, row, queries, p in pieces:
            g = grad[:, head, queries]
            grad_v[:, head] += torch.bmm(p.transpose(1, 2), g)
            grad_p = torch.bmm(g, pieces.v[:, head].transpose(1, 2))
            grad_s = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[:, head, queries] = torch.bmm(grad_s, pieces.k[:, head])
            grad_k[:, head] += torch.bmm(grad_s.transpose(1, 2), pieces.q[:, head, queries])
            sums.add(head, row, grad_s.sum(0, dtype=wide))
        grad_q *= pieces.scale
        grad_k, grad_v = (_reverse(x, ctx.prefix).to(q.dtype) for x in (grad_k, grad_v))
        return grad_q, grad_k, grad_v, sums.table().to(table.dtype), None, None


class _Pieces:
    """Iterates over (head, first grid row, slice of queries, probabilities (B, n, N)), keys in reverse order."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: Grid, prefix: int) -> None:
        self.scale = q.shape[-1] ** -0.5
        self.q = (q * self.scale).contiguous()
        self.k, self.v = _reverse(k, prefix), _reverse(v, prefix)
        self.offsets, self.extra = _offsets(table, grid), table[-PREFIX_ENTRIES:].tolist()
        self.grid, self.prefix = grid, prefix

    def __iter__(self) -> Iterator[tuple[int, int, slice, Tensor]]:
        h, w = self.grid
        batch, heads, tokens, _ = self.q.shape
        step = max(PIECE_BYTES // (batch * w * tokens * self.q.element_size()), 1)
        for head in range(heads):
            keys = self.k[:, head].transpose(1, 2)
            for row in range(0, h, step):
                end = min(row + step, h)
                queries = slice(self.prefix + row * w if row else 0, self.prefix + end * w)
                logits = self._bias(head, row, end).baddbmm_(self.q[:, head, queries], keys)
                yield head, row, queries, logits.softmax(-1)

    def _bias(self, head: int, row: int, end: int) -> Tensor:
        (h, w), prefix = self.grid, self.prefix
        batch, _, tokens, _ = self.q.shape
        above = prefix if row == 0 else 0
        bias = self.q.new_empty(batch, above + (end - row) * w, tokens)
        bias[:, above:, prefix:].unflatten(2, (h, w)).unflatten(1, (-1, w)).copy_(self.offsets[head, row:end])
        if prefix:
            to_patch, from_patch, within = (entry[head] for entry in self.extra)
            bias[:, above:, :prefix] = from_patch
            bias[:, :above, prefix:] = to_patch
            bias[:, :above, :prefix] = within
        return bias


class _Bias(torch.autograd.Function):
    """Table -> (heads, N, N) mask whose rows start at multiples of 16 elements, as fused kernels want them."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, grid: Grid, prefix: int, dtype: torch.dtype) -> Tensor:
        ctx.grid, ctx.prefix = grid, prefix
        h, w = grid
        heads, tokens = table.shape[1], prefix + h * w
        bias = table.new_empty(heads, tokens, -(-tokens // 16) * 16, dtype=dtype)[:, :, :tokens]
        patches = _offsets(table.to(dtype), grid).flip(3, 4)
        bias[:, prefix:, prefix:].unflatten(2, (h, w)).unflatten(1, (h, w)).copy_(patches)
        if prefix:
            to_patch, from_patch, within = table[-PREFIX_ENTRIES:].to(dtype).view(PREFIX_ENTRIES, -1, 1, 1)
            bias[:, :prefix, prefix:] = to_patch
            bias[:, prefix:, :prefix] = from_patch
            bias[:, :prefix, :prefix] = within
        ctx.table_dtype = table.dtype
        return bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _table_gradient(grad, ctx.grid, ctx.prefix).to(ctx.table_dtype), None, None, None


def _table_gradient(grad: Tensor, grid: Grid, prefix: int) -> Tensor:
    """The gradient of a table (rows, heads) from that of its mask (heads, N, N), summed in float32 at least."""
    h, w = grid
    heads, wide = len(grad), torch.promote_types(grad.dtype, torch.float32)
    columns = 2 * w - 1
    offsets = (2 * h - 1) * columns
    # a query's numbers lie x to the left of the first query's, so that each offset x' - x has a column of its own
    shifted = grad.new_zeros(heads, h, w, h * columns)
    strides = (h * w * h * columns, w * h * columns, h * columns - 1, columns, 1)
    patches = grad[:, prefix:, prefix:].unflatten(2, grid).unflatten(1, grid)
    shifted.as_strided((heads, h, w, h, w), strides, w - 1).copy_(patches)
    by_column = shifted.sum(2, dtype=wide)
    # and a row of queries y rows to the left
    shifted = by_column.new_zeros(heads, h, offsets)
    at = (h - 1) * columns
    shifted.as_strided((heads, h, h * columns), (h * offsets, offsets - columns, 1), at).copy_(by_column)
    rows = shifted.sum(1).flip(1).T  # the table counts from the query to the key
    if not prefix:
        return rows
    extra = (grad[:, :prefix, prefix:], grad[:, prefix:, :prefix], grad[:, :prefix, :prefix])
    return torch.cat([rows, torch.stack([part.sum((1, 2), dtype=wide) for part in extra])])
