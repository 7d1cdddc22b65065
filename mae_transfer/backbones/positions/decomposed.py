"""Decomposed relative positions (MViTv2, used by ViTDet), at little more than the cost of attention without.

Each block has two tables of its own, `rel_pos_h` (2h - 1, D) and `rel_pos_w` (2w - 1, D), D being the width of a head,
that all heads share. A query q at (y, x) gets on its logit with the key at (y', x')

    q . rel_pos_h[y - y' + h - 1]  +  q . rel_pos_w[x - x' + w - 1]

with q before it is scaled (detectron2 `modeling/backbone/utils.py`: `get_rel_pos`, `add_decomposed_rel_pos`). So the
bias of a query is h + w numbers, not h * w, and nothing of the size of the logits is ever kept:

- on CPU attention runs in pieces that fit the cache, as in `bias_attention.py`: the h + w numbers are added to a piece
  of the logits by broadcasting, and their gradients are sums of its gradient along rows and columns;
- elsewhere they go into PyTorch's fused attention without a mask: with queries [q / sqrt(D), the h, the w numbers] and
  keys [k, one-hot y', one-hot x'], the product of both is the biased logit.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mae_transfer.backbones.checkpoints.report import LoadReport
from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.positions.bias_attention import PIECE_BYTES, runs_in_pieces
from mae_transfer.backbones.positions.position import Host, Position
from mae_transfer.backbones.positions.tables import DECOMPOSED_TABLES
from mae_transfer.backbones.registry import Spec
from mae_transfer.errors import UserError

FLASH_WIDTH = 256
"""The flash kernel takes queries, keys and values of one width, up to this one."""


class DecomposedTables(Position):
    """Each block's attention has parameters `rel_pos_h` and `rel_pos_w` for its window or the grid of `img_size`.

    Tables of the weights are resized to it once, linearly, and at other grids at every forward. There is no entry for
    prefix tokens: UserError for an encoder that keeps them.
    """

    option = "decomposed"
    has_tables = True

    @classmethod
    def in_weights(cls, spec: Spec) -> bool:
        return spec.decomposed_tables

    @classmethod
    def new_tables(cls, attn: Any, grid: Grid, prefix: int) -> None:
        for name, size in zip(DECOMPOSED_TABLES, grid, strict=True):
            attn.register_parameter(name, nn.Parameter(torch.zeros(2 * size - 1, attn.head_dim)))

    def __init__(self, encoder: Host) -> None:
        super().__init__(encoder)
        if self.prefix:
            raise UserError(
                f"backbone {encoder.name!r}: decomposed relative positions have no entry for its class token; set "
                "backbone.window_size, which drops that, or another backbone.rel_pos."
            )

    def fit(self, encoder: Host, report: LoadReport) -> None:
        super().fit(encoder, report)
        brought = self.in_weights(encoder.spec)
        if not brought:
            report.new["blocks.*.attn.rel_pos_h, blocks.*.attn.rel_pos_w"] = "zeros"
        else:
            _compare_windows(encoder, report)
        for i, block in enumerate(encoder.vit.blocks):
            grid = encoder.grid_of_block(i)
            if not brought:
                self.new_tables(block.attn, grid, self.prefix)
                continue
            for name, size in zip(DECOMPOSED_TABLES, grid, strict=True):
                table = getattr(block.attn, name).detach()
                if len(table) != 2 * size - 1:
                    block.attn.register_parameter(name, nn.Parameter(resize(table, size).contiguous()))
                    report.resized[f"blocks.{i}.attn.{name}"] = f"{len(table)} -> {2 * size - 1} rows, linear"

    def attend(self, attn: Any, x: Tensor, grid: Grid, windowed: bool, shared: Tensor | None) -> Tensor:
        return attention(attn, x, grid)


def _compare_windows(encoder: Host, report: LoadReport) -> None:
    """Warn of blocks that had windows where the weights are from and attend to the whole image here, or vice versa."""
    rows = [len(block.attn.rel_pos_h) for block in encoder.vit.blocks]
    whole = max(rows)
    moved = [
        i
        for i, count in enumerate(rows)
        if (count < whole) != (i not in encoder.global_blocks) and count != 2 * encoder.grid_of_block(i)[0] - 1
    ]
    if moved and min(rows) < whole:
        report.warnings.append(
            f"blocks {', '.join(map(str, moved))} attend to other windows than in the weights' own training, and their "
            f"tables of relative positions are resized; backbone.window_size={(min(rows) + 1) // 2} "
            f"backbone.num_global_blocks={rows.count(whole)} are those of the weights"
        )


def resize(table: Tensor, size: int) -> Tensor:
    """The table (2 size - 1, D) of a side of `size` tokens: linear, align_corners=False, as `get_rel_pos`."""
    rows = 2 * size - 1
    if len(table) == rows:
        return table
    return F.interpolate(table.T[None], size=rows, mode="linear")[0].T


def attention(attn: Any, x: Tensor, grid: Grid) -> Tensor:
    """timm's `Attention.forward` on (B, h * w, C) with the tables of `attn`; no dropout and no gate, as plain ViTs."""
    q, k, v = attn.qkv(x).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    out = decomposed_attention(attn.q_norm(q), attn.k_norm(k), v, attn.rel_pos_h, attn.rel_pos_w, grid)
    return attn.proj_drop(attn.proj(attn.norm(out.transpose(1, 2).flatten(2))))


def decomposed_attention(q: Tensor, k: Tensor, v: Tensor, table_h: Tensor, table_w: Tensor, grid: Grid) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v, (B, heads, h * w, D) like q, k and v; tables of another grid are resized."""
    offsets = (_offsets(table, size) for table, size in zip((table_h, table_w), grid, strict=True))
    at = q.unflatten(2, grid)
    of_rows, of_columns = (
        torch.einsum(f"bnhwc,{axis}kc->bnhwk", at, each).flatten(2, 3) for axis, each in zip("hw", offsets, strict=True)
    )
    # under autocast the products may come in another dtype than queries that a norm gave
    of_rows, of_columns = of_rows.to(v.dtype), of_columns.to(v.dtype)
    q, k = q.to(v.dtype), k.to(v.dtype)
    if runs_in_pieces(q.device):
        return _in_pieces(q, k, v, of_rows, of_columns, grid)
    return fused(q, k, v, of_rows, of_columns, grid)


def fused(q: Tensor, k: Tensor, v: Tensor, of_rows: Tensor, of_columns: Tensor, grid: Grid) -> Tensor:
    """Attention with biases (B, heads, N, h) and (B, heads, N, w) as one of wider queries and keys, without a mask.

    Values are made as wide, with zeros, for the flash kernel: by PyTorch's own choice of kernels, timed on no GPU.
    """
    h, w = grid
    row, column = torch.eye(h, device=q.device, dtype=q.dtype), torch.eye(w, device=q.device, dtype=q.dtype)
    places = torch.cat([row.repeat_interleave(w, 0), column.repeat(h, 1)], 1).expand(*k.shape[:2], -1, -1)
    spare = -(q.shape[-1] + h + w) % 8  # fused kernels want widths of whole eights
    queries = F.pad(torch.cat([q * q.shape[-1] ** -0.5, of_rows, of_columns], -1), (0, spare))
    keys = F.pad(torch.cat([k, places], -1), (0, spare))
    wider = queries.shape[-1] - v.shape[-1]
    if queries.shape[-1] > FLASH_WIDTH:
        return F.scaled_dot_product_attention(queries, keys, v, scale=1.0)
    return F.scaled_dot_product_attention(queries, keys, F.pad(v, (0, wider)), scale=1.0)[..., : v.shape[-1]]


def _offsets(table: Tensor, size: int) -> Tensor:
    """(size, size, D): the table's row of each pair of a query's and a key's coordinate."""
    at = torch.arange(size, device=table.device)
    return resize(table, size)[at[:, None] - at + size - 1]


@torch.compiler.disable  # its loops would be unrolled
def _in_pieces(q: Tensor, k: Tensor, v: Tensor, of_rows: Tensor, of_columns: Tensor, grid: Grid) -> Tensor:
    out: Tensor = _DecomposedAttention.apply(q, k, v, of_rows, of_columns, grid)
    return out


class _DecomposedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, of_rows: Tensor, of_columns: Tensor, grid: Grid) -> Tensor:
        ctx.save_for_backward(q, k, v, of_rows, of_columns)
        ctx.grid = grid
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        values = v.contiguous()
        for head, queries, p in _pieces(q, k, of_rows, of_columns, grid):
            out[:, head, queries] = torch.bmm(p, values[:, head])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, None]:
        q, k, v, of_rows, of_columns = ctx.saved_tensors
        scale, wide = q.shape[-1] ** -0.5, torch.promote_types(q.dtype, torch.float32)
        scaled, keys, values, grad = q * scale, k.contiguous(), v.contiguous(), grad.contiguous()
        grad_q, grad_rows, grad_columns = (torch.empty_like(x) for x in (scaled, of_rows, of_columns))
        grad_k, grad_v = (torch.zeros_like(x, dtype=wide) for x in (keys, values))
        for head, queries, p in _pieces(q, k, of_rows, of_columns, ctx.grid):
            g = grad[:, head, queries]
            grad_v[:, head] += torch.bmm(p.transpose(1, 2), g)
            grad_p = torch.bmm(g, values[:, head].transpose(1, 2))
            grad_s = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q[:, head, queries] = torch.bmm(grad_s, keys[:, head]) * scale
            grad_k[:, head] += torch.bmm(grad_s.transpose(1, 2), scaled[:, head, queries])
            by_place = grad_s.unflatten(2, ctx.grid)
            grad_rows[:, head, queries] = by_place.sum(3)
            grad_columns[:, head, queries] = by_place.sum(2)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), grad_rows, grad_columns, None


def _pieces(
    q: Tensor, k: Tensor, of_rows: Tensor, of_columns: Tensor, grid: Grid
) -> Iterator[tuple[int, slice, Tensor]]:
    """Iterates over (head, slice of queries, probabilities (B, n, N))."""
    batch, heads, tokens, dim = q.shape
    step = max(PIECE_BYTES // (batch * tokens * q.element_size()), 1)
    scaled, keys = q * dim**-0.5, k.contiguous()
    for head in range(heads):
        for first in range(0, tokens, step):
            queries = slice(first, min(first + step, tokens))
            logits = torch.bmm(scaled[:, head, queries], keys[:, head].transpose(1, 2))
            by_place = logits.unflatten(2, grid)
            by_place += of_rows[:, head, queries, :, None]
            by_place += of_columns[:, head, queries, None, :]
            yield head, queries, logits.softmax(-1)
