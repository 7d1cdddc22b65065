"""The encoder: timm's VisionTransformer giving feature maps of chosen blocks, for any input size.

Follows Li et al. 2021 (arXiv 2111.11429, 2.1 and 3.1) and, where that is silent, ViTDet
(detectron2 `modeling/backbone/vit.py`):
- windowed attention in all blocks but the last of each of `num_global_blocks` equal groups; windows are cut inside the
  attention, after norm1, and padded with zeros that are not masked;
- with windows the prefix tokens (class, registers) and their positions are dropped; without, they are kept;
- no head; no final norm in the maps (`norm` holds it for tasks that use the tokens, if `final_norm` asks for it);
- the absolute position embedding stays a parameter at its own grid and is resampled at every forward: bicubic,
  align_corners=False, no antialiasing (timm's own resampling has antialias=True and so differs off the native grid);
- relative position bias: zero tables, one shared by all windowed blocks and one by all global blocks (Li et al.
  3.1(2)). A backbone with tables of its own (BEiT) keeps them, one per block, resized once to the window or to the grid
  of `img_size` by BEiT's geometric interpolation (timm's); at other grids global tables are resampled bicubically;
- decomposed relative positions, ViTDet's (`decomposed_attention.py`): two zero tables of each block's own, for its
  window or the grid of `img_size`; those that the weights bring are resized to it once, linearly, and at other grids
  at every forward.
"""

import math
import warnings
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerScale, resize_rel_pos_bias_table
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mae_transfer.backbones.checkpoints.report import LoadReport
from mae_transfer.backbones.positions import decomposed
from mae_transfer.backbones.positions import tables as rel
from mae_transfer.backbones.positions.bias_attention import attention
from mae_transfer.backbones.registry import Spec
from mae_transfer.backbones.timm_vit import TABLE, is_standard
from mae_transfer.backbones.windows import merge, partition
from mae_transfer.errors import UserError

Grid = tuple[int, int]


class ViTEncoder(nn.Module):
    """Normalised images (B, 3, H, W) -> one map (B, C, H / patch, W / patch) per tap; `tokens` gives token sequences.

    Takes over `vit` (as `timm_vit.build` gives it, loaded or not) and edits it in place. `taps` are 0-based block
    numbers, ascending, default the blocks that end each quarter. Blocks after the last tap are frozen and not run.
    Every other parameter takes part in each forward, but for those of `norm`, the weights' final LayerNorm (None
    unless `load_backbone(final_norm=True)`), which the caller applies. Raises UserError for options that do not fit
    the backbone.
    """

    vit: Any
    norm: nn.LayerNorm | None
    rel_pos: str
    rel_pos_window: nn.Parameter | None
    rel_pos_global: nn.Parameter | None
    load_report: LoadReport

    def __init__(
        self,
        vit: VisionTransformer,
        spec: Spec,
        *,
        img_size: int | Grid | None = None,
        window_size: int = 0,
        num_global_blocks: int = 4,
        rel_pos: bool | str = False,
        pos_embed: str = "native",
        layer_scale: float | None = None,
        grad_checkpointing: bool = False,
        taps: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.name, self.mean, self.std = spec.name, spec.mean, spec.std
        self.embed_dim, self.depth, self.patch_size = spec.embed_dim, spec.depth, spec.patch_size
        self.num_heads = spec.num_heads
        self.taps = _check_taps(spec, taps)
        self.window_size = window_size
        self.global_blocks = _global_blocks(spec, window_size, num_global_blocks)
        self.grad_checkpointing = grad_checkpointing
        self.native_grid: Grid = tuple(vit.patch_embed.grid_size)
        self.global_grid = self.native_grid if img_size is None else self.grid_of(*_pair(img_size))
        self.pos_grid = self.native_grid
        self.new_tables = rel_pos == "per_block" and not (spec.rel_pos_tables or spec.decomposed_tables)
        bare = all(isinstance(getattr(block, "ls1", None), nn.Identity) for block in vit.blocks)
        self.new_layer_scale = layer_scale if bare else None  # what the weights bring is never replaced
        self.new_decomposed = rel_pos == "decomposed" and not (spec.rel_pos_tables or spec.decomposed_tables)
        self.rel_pos = _kind(spec, rel_pos)
        edits = {
            "backbone.window_size=0": window_size,
            "backbone.rel_pos=false": self.rel_pos != "none",
            "model.layer_scale=null": self.new_layer_scale is not None,
        }
        if any(edits.values()) and not all(is_standard(block) for block in vit.blocks):
            block = type(vit.blocks[0]).__name__
            raise UserError(
                f"backbone {spec.name!r}: windows, relative positions and a new LayerScale need timm's standard "
                f"blocks, not {block}; set {' and '.join(setting for setting, asked in edits.items() if asked)}."
            )
        self.prefix = 0 if window_size else vit.num_prefix_tokens
        if self.rel_pos == "decomposed" and self.prefix:
            raise UserError(
                f"backbone {spec.name!r}: decomposed relative positions have no entry for its class token; set "
                "backbone.window_size, which drops that, or another backbone.rel_pos."
            )
        self.vit = vit
        self.norm = None
        self.frozen_blocks = 0
        self._resting: list[nn.Module] = []  # frozen, and kept in eval mode
        self.resized_tables: dict[str, tuple[int, int]] = {}  # rows before and after, of decomposed ones
        if window_size:
            self._drop_prefix()
        if pos_embed == "resized":
            self._resize_position()
        if self.new_layer_scale is not None:
            for layer in self.vit.blocks:
                layer.ls1 = LayerScale(self.embed_dim, self.new_layer_scale)
                layer.ls2 = LayerScale(self.embed_dim, self.new_layer_scale)
        if self.new_tables:
            self._new_block_tables()
        elif self.rel_pos == "per block":
            self._resize_tables()
        elif self.rel_pos == "decomposed":
            self._fit_decomposed_tables()
        elif self.rel_pos == "shared":
            self._new_tables()
        self.vit.blocks[self.taps[-1] + 1 :].requires_grad_(False)

    def grid_of(self, height: int, width: int) -> Grid:
        """Tokens down and across for an image of this size; raises UserError if it is no multiple of the patch."""
        p = self.patch_size
        if height % p or width % p:
            near = f"{height // p * p}x{width // p * p} or {-(-height // p) * p}x{-(-width // p) * p}"
            raise UserError(
                f"image size {height}x{width} is not a multiple of the patch {p} of {self.name}; use {near}."
            )
        return height // p, width // p

    def layer_id(self, name: str) -> int:
        """Layer of a parameter (named relative to the encoder) for layer-wise lr decay, as MAE's `util/lr_decay.py`.

        0 for what comes before the blocks, i + 1 for block i and its own tables, depth + 1 for the rest: the final norm
        (as in MAE) and the shared relative position tables, which are new (as in BEiT's `optim_factory.py`).
        """
        parts = name.removeprefix("vit.").split(".")
        if parts[0] in ("patch_embed", "pos_embed", "cls_token", "reg_token", "norm_pre"):
            return 0
        return int(parts[1]) + 1 if parts[0] == "blocks" else self.depth + 1

    def freeze(self, trainable: float) -> None:
        """Let only the last `trainable` blocks learn (0.5: norm2 and MLP of the last); all before them is frozen.

        Frozen parts run without autograd and stay in eval mode, `norm` too while `trainable` is 0. `trainable` equal to
        the depth freezes nothing: that is fine-tuning of everything (as in MAE Figure 9). Raises UserError for another
        number.
        """
        half = trainable == 0.5
        if not half and not (float(trainable).is_integer() and 0 <= trainable <= self.depth):
            raise UserError(f"{trainable:g} trainable blocks: {self.name} takes 0, 0.5, 1, 2, ... {self.depth}.")
        if trainable == self.depth:
            return
        if half and not is_standard(self.vit.blocks[-1]):
            raise UserError(f"0.5 trainable blocks: the last block of {self.name} is no norm, attention, norm, MLP.")
        self.frozen_blocks = self.depth - math.ceil(trainable)
        self.vit.requires_grad_(False)
        self.vit.blocks[self.frozen_blocks : self.taps[-1] + 1].requires_grad_(True)
        self._resting = [module for name, module in self.vit.named_children() if name != "blocks"]
        self._resting += list(self.vit.blocks[: self.frozen_blocks])
        if half:
            last = self.vit.blocks[-1]
            self._resting += [last.norm1, last.attn, last.ls1, last.drop_path1]
        if trainable == 0 and self.norm is not None:
            self._resting.append(self.norm)
        for module in self._resting:
            module.eval().requires_grad_(False)
        for table in (getattr(self, name, None) for name in ("rel_pos_window", "rel_pos_global")):
            if table is not None:
                table.requires_grad_(False)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile in place what the forwards are made of; nn.Module's own would reach `forward` alone."""
        self.tokens = torch.compile(self.tokens, *args, **kwargs)  # type: ignore[method-assign]
        self.visible_tokens = torch.compile(self.visible_tokens, *args, **kwargs)  # type: ignore[method-assign]

    def train(self, mode: bool = True) -> "ViTEncoder":
        super().train(mode)
        for module in self._resting:
            module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        grid = self.grid_of(images.shape[2], images.shape[3])
        tokens = self.tokens(images, self.taps)
        return [x[:, self.prefix :].unflatten(1, grid).permute(0, 3, 1, 2) for x in tokens]

    def tokens(
        self,
        images: Tensor,
        blocks: tuple[int, ...],
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> list[Tensor]:
        """The tokens (B, prefix + h * w, C), prefix tokens first, after each of `blocks` (0-based, ascending).

        Patches where `mask` bool (B, h * w) is true go in as the `mask_token` (C,), before positions are added: the
        pre-training of BEiT, and of MAE with mask tokens in the encoder.
        """
        grid = self.grid_of(images.shape[2], images.shape[3])
        learning = torch.is_grad_enabled()
        with torch.set_grad_enabled(learning and not self._resting):
            patches = self.vit.patch_embed(images)
            if mask is not None and mask_token is not None:
                patches = torch.where(mask.view(len(mask), *grid, 1), mask_token.to(patches.dtype), patches)
            x = self._embed(patches, grid)
        shared = self._shared_tables(grid, x)
        taken = []
        for i, block in enumerate(islice(self.vit.blocks, blocks[-1] + 1)):
            args = (x, block, i not in self.global_blocks, grid, shared)
            with torch.set_grad_enabled(learning and i >= self.frozen_blocks):
                if self.grad_checkpointing and torch.is_grad_enabled():
                    x = checkpoint(self._run_block, *args, use_reentrant=False)
                else:
                    x = self._run_block(*args)
            if i in blocks:
                taken.append(x)
        return taken

    def visible_tokens(self, patches: Tensor, keep: Tensor) -> Tensor:
        """The masked forward of MAE: the tokens (B, prefix + n, C) after the last block, of n patches of each image.

        patches: (B, n, p * p * channels), a patch's pixels row by row with the channels last, normalised.
        keep: int64 (B, n), the places of these patches in the grid, row by row.
        Each token is at its own place's position, at the encoder's native grid; no other patch is ever embedded. Same
        numbers as embedding all patches and then choosing, as MAE's `forward_encoder` does.
        """
        assert self.rel_pos == "none", "relative positions need the whole grid"
        vit = self.vit
        weight = vit.patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
        x = vit.patch_embed.norm(F.linear(patches, weight, vit.patch_embed.proj.bias))
        rows = 0 if vit.no_embed_class else self.prefix
        x = x + vit.pos_embed[0, rows:][keep]
        tokens = torch.cat([token for token in (vit.cls_token, vit.reg_token) if token is not None], dim=1)
        tokens = (tokens + vit.pos_embed[:, :rows]) if rows else tokens
        x = vit.norm_pre(vit.pos_drop(torch.cat([tokens.expand(len(x), -1, -1), x], dim=1)))
        for block in vit.blocks:
            args = (x, block, False, self.native_grid, (None, None))
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self._run_block, *args, use_reentrant=False)
            else:
                x = self._run_block(*args)
        return x

    def _embed(self, patches: Tensor, grid: Grid) -> Tensor:
        """Add positions and put prefix tokens first: (B, h, w, C) -> (B, prefix + h * w, C), as timm's `_pos_embed`."""
        vit = self.vit
        x = patches.flatten(1, 2)
        position = self._position(grid)
        tokens = [token.expand(len(x), -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
        if position is None:
            x = torch.cat([*tokens, x], dim=1)
        elif vit.no_embed_class:
            x = torch.cat([*tokens, x + position], dim=1)
        else:
            x = torch.cat([*tokens, x], dim=1) + position
        return vit.norm_pre(vit.pos_drop(x))

    def _position(self, grid: Grid) -> Tensor | None:
        position = self.vit.pos_embed
        if position is None or grid == self.pos_grid:
            return position
        rows = 0 if self.vit.no_embed_class else self.prefix
        native = position[:, rows:].unflatten(1, self.pos_grid).permute(0, 3, 1, 2)
        resampled = F.interpolate(native, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([position[:, :rows], resampled.flatten(2).transpose(1, 2)], dim=1)

    def _run_block(
        self, x: Tensor, block: Any, windowed: bool, grid: Grid, shared: tuple[Tensor | None, Tensor | None]
    ) -> Tensor:
        if not is_standard(block):
            return block(x)
        normed = block.norm1(x)
        if windowed:
            side = self.window_size
            windows, padded = partition(normed.unflatten(1, grid), side)
            attended = self._attend(block.attn, windows, (side, side), (side, side), shared[0])
            attended = merge(attended, side, padded, grid).flatten(1, 2)
        else:
            attended = self._attend(block.attn, normed, grid, self.global_grid, shared[1])
        x = x + block.drop_path1(block.ls1(attended))
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    def _attend(self, attn: Any, x: Tensor, grid: Grid, table_grid: Grid, shared: Tensor | None) -> Tensor:
        """Attention on (B, prefix + h * w, C); `shared` is what `_shared_tables` gives, tables are for `table_grid`."""
        if self.rel_pos == "decomposed":
            return decomposed.attention(attn, x, grid)
        if self.rel_pos == "per block":
            table = getattr(attn, TABLE)
            if grid != table_grid:
                table = rel.resample(table, table_grid, grid, self.prefix)
            return attention(attn, x, table, grid, self.prefix)
        if shared is not None and shared.ndim == 2:
            return attention(attn, x, shared, grid, self.prefix)
        return attn(x, attn_mask=shared)

    def _shared_tables(self, grid: Grid, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What all windowed and all global blocks share, made once per forward: the table (rows, heads) of the grid, or
        off the CPU the bias (heads, N, N) gathered from it, which is one mask for the fused attention of all blocks."""
        if self.rel_pos != "shared":
            return None, None
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        side = (self.window_size, self.window_size)
        found: list[Tensor | None] = []
        for table, made_for, to in (
            (self.rel_pos_window, side, side),
            (self.rel_pos_global, self.global_grid, grid),
        ):
            if table is None:
                found.append(None)
            elif kind == "cpu":
                found.append(table if made_for == to else rel.resample(table, made_for, to, self.prefix))
            else:
                found.append(rel.bias(table, made_for, to, self.prefix, dtype))
        return found[0], found[1]

    def _drop_prefix(self) -> None:
        vit = self.vit
        if vit.pos_embed is not None and not vit.no_embed_class:
            vit.pos_embed = nn.Parameter(vit.pos_embed.detach()[:, vit.num_prefix_tokens :].clone())
        vit.cls_token, vit.reg_token, vit.num_prefix_tokens = None, None, 0

    def _resize_position(self) -> None:
        """Resample the position embedding to `global_grid` for good."""
        position = self._position(self.global_grid)
        if position is not None:
            self.vit.pos_embed = nn.Parameter(position.detach().clone())
        self.pos_grid = self.global_grid

    def _new_block_tables(self) -> None:
        """Zero tables of every block's own, as in MAE's and BEiT's segmentation."""
        for i, block in enumerate(self.vit.blocks):
            grid = self.global_grid if i in self.global_blocks else (self.window_size, self.window_size)
            rows = rel.table_rows(grid, self.prefix)
            block.attn.register_parameter(TABLE, nn.Parameter(torch.zeros(rows, self.num_heads)))

    def _fit_decomposed_tables(self) -> None:
        for i, block in enumerate(self.vit.blocks):
            grid = self.global_grid if i in self.global_blocks else (self.window_size, self.window_size)
            if self.new_decomposed:
                decomposed.new_tables(block.attn, grid, self.embed_dim // self.num_heads)
                continue
            for name, size in zip(decomposed.TABLES, grid, strict=True):
                table = getattr(block.attn, name).detach()
                if len(table) != 2 * size - 1:
                    block.attn.register_parameter(name, nn.Parameter(decomposed.resize(table, size).contiguous()))
                    self.resized_tables[f"blocks.{i}.attn.{name}"] = (len(table), 2 * size - 1)

    def _new_tables(self) -> None:
        run = self.taps[-1] + 1
        windowed = (self.window_size, self.window_size)
        grids = {
            "rel_pos_window": windowed if any(i not in self.global_blocks for i in range(run)) else None,
            "rel_pos_global": self.global_grid if any(i in self.global_blocks for i in range(run)) else None,
        }
        for name, grid in grids.items():
            rows = 0 if grid is None else rel.table_rows(grid, self.prefix)
            self.register_parameter(name, nn.Parameter(torch.zeros(rows, self.num_heads)) if rows else None)

    def _resize_tables(self) -> None:
        for i, block in enumerate(self.vit.blocks):
            grid = self.global_grid if i in self.global_blocks else (self.window_size, self.window_size)
            table = getattr(block.attn, TABLE).detach()
            rows = rel.table_rows(grid, self.prefix)
            if len(table) != rows:
                block.attn.register_parameter(TABLE, nn.Parameter(self._resized(i, table, grid)[:rows].clone()))

    def _resized(self, block: int, table: Tensor, grid: Grid) -> Tensor:
        if len(table) != rel.table_rows(self.native_grid, prefix=1):
            raise UserError(
                f"relative position table of block {block} has {len(table)} entries, made for another grid than "
                f"{grid[0]}x{grid[1]}; pass the window_size, num_global_blocks and image size of the run it is from."
            )
        if grid == self.native_grid:
            return table
        shape = (rel.table_rows(grid, prefix=1), self.num_heads)
        with warnings.catch_warnings():  # torch's notes on timm's indexing; the values are tested
            warnings.simplefilter("ignore", UserWarning)
            return resize_rel_pos_bias_table(table, new_window_size=grid, new_bias_shape=shape)


def _pair(size: int | Grid) -> Grid:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _kind(spec: Spec, rel_pos: bool | str) -> str:
    """What relative positions an encoder has; what the weights bring is kept."""
    if spec.rel_pos_tables:
        return "per block"
    if spec.decomposed_tables or rel_pos == "decomposed":
        return "decomposed"
    return {"per_block": "per block", True: "shared", False: "none"}[rel_pos]


def _check_taps(spec: Spec, taps: tuple[int, ...] | None) -> tuple[int, ...]:
    if taps is None:
        return tuple(spec.depth * (i + 1) // 4 - 1 for i in range(4))
    if not taps or list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] >= spec.depth:
        raise UserError(f"taps {tuple(taps)}: give ascending block numbers from 0 to {spec.depth - 1} of {spec.name}.")
    return tuple(taps)


def _global_blocks(spec: Spec, window_size: int, groups: int) -> frozenset[int]:
    if not window_size:
        return frozenset(range(spec.depth))
    if groups and spec.depth % groups:
        raise UserError(
            f"backbone.num_global_blocks={groups}: the {spec.depth} blocks of {spec.name} do not fall into that many "
            "equal groups; use a divisor, or 0 for windows only."
        )
    return frozenset(spec.depth * (i + 1) // groups - 1 for i in range(groups))
