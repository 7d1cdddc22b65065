"""The encoder: timm's VisionTransformer or Eva giving feature maps of chosen blocks, for any input size.

Follows Li et al. 2021 (arXiv 2111.11429, 2.1 and 3.1) and, where that is silent, ViTDet
(detectron2 `modeling/backbone/vit.py`):
- windowed attention in all blocks but the last of each of `num_global_blocks` equal groups; windows are cut inside the
  attention, after norm1, and padded with zeros that are not masked;
- with windows the prefix tokens (class, registers) and their positions are dropped; without, they are kept;
- no head; no final norm in the maps (`norm` holds it for tasks that use the tokens, if `final_norm` asks for it);
- the absolute position embedding stays a parameter at its own grid and is resampled at every forward, as in ViTDet, or
  (`pos_embed="resized"`) is resampled once to the grid of `img_size` and trained there, as in Li et al.: bicubic, by
  the rule of the code that the weights are from (`positions/resampling.py`; timm's own has antialias=True for all);
- relative and rotary positions, of several kinds: `positions/`, one file each.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint

from mae_transfer.backbones.blocks import (
    add_layer_scale,
    comes_apart,
    freeze_attention,
    is_standard,
    lacks_layer_scale,
    scaled,
)
from mae_transfer.backbones.checkpoints.report import LoadReport
from mae_transfer.backbones.encoder import Encoder
from mae_transfer.backbones.grid import Grid, text
from mae_transfer.backbones.initialise import cut_normal
from mae_transfer.backbones.positions.kinds import kind_of
from mae_transfer.backbones.positions.position import OfForward
from mae_transfer.backbones.positions.resampling import RULES, resample
from mae_transfer.backbones.registry import Spec
from mae_transfer.backbones.windows import merge, partition
from mae_transfer.errors import UserError


class ViTEncoder(Encoder):
    """A plain ViT of timm as an encoder.

    Takes over `vit` (as `timm_vit.build` gives it, loaded or not) and edits it in place; each edit adds its line to
    `report`. Blocks after the last tap are frozen and not run. `norm` is the weights' final norm, None unless
    `load_backbone(final_norm=True)`. Raises UserError for options that do not fit the backbone.
    """

    shards = True
    vit: Any
    rel_pos_window: nn.Parameter | None
    rel_pos_global: nn.Parameter | None

    def __init__(
        self,
        vit: VisionTransformer,
        spec: Spec,
        report: LoadReport | None = None,
        *,
        img_size: int | Grid | None = None,
        window_size: int = 0,
        num_global_blocks: int = 4,
        rel_pos: bool | str = False,
        window_rope: str = "window",
        pos_embed: str = "native",
        abs_pos: bool = False,
        layer_scale: float | None = None,
        grad_checkpointing: bool = False,
        taps: tuple[int, ...] | None = None,
    ) -> None:
        native_grid: Any = vit.patch_embed.grid_size
        native_size = (native_grid[0] * spec.patch_size, native_grid[1] * spec.patch_size)
        super().__init__(spec, report, taps, native_size if img_size is None else img_size)
        self.native_grid: Grid = tuple(native_grid)
        self.window_size = window_size
        self.global_blocks = _global_blocks(spec, window_size, num_global_blocks)
        self.grad_checkpointing = grad_checkpointing
        self.pos_grid = self.native_grid
        self.prefix = 0 if window_size else vit.num_prefix_tokens
        self.has_class_token = not window_size and vit.cls_token is not None
        bare = all(lacks_layer_scale(block) for block in vit.blocks)
        new_layer_scale = layer_scale if bare else None  # what the weights bring is never replaced
        kind = kind_of(spec, rel_pos, vit)
        whole, other = (not all(map(fits, vit.blocks)) for fits in (comes_apart, is_standard))
        edits = {
            "backbone.window_size=0": window_size and whole,
            "backbone.rel_pos=false": kind.has_tables and other,
            "model.layer_scale=null": new_layer_scale is not None and whole,
        }
        if any(edits.values()):
            block = type(vit.blocks[0]).__name__
            raise UserError(
                f"backbone {spec.name!r}: windows, relative positions and a new LayerScale need timm's standard "
                f"blocks, not {block}; set {' and '.join(setting for setting, asked in edits.items() if asked)}."
            )
        self.vit = vit
        self.window_rope = window_rope
        self.rel_pos = rel_pos  # as asked for; `position` is what the weights and this came to
        self.position = kind(self)
        self.frozen_blocks = 0
        if window_size:
            self._drop_prefix()
        if abs_pos and vit.pos_embed is None and spec.rel_pos_tables:
            self._add_position_embedding()
        else:
            self._fit_position_embedding(once=pos_embed == "resized")
        self.position.fit(self, self.load_report)
        if new_layer_scale is not None:
            self._add_layer_scale(new_layer_scale)
        self.vit.blocks[self.taps[-1] + 1 :].requires_grad_(False)

    def grid_of_block(self, block: int) -> Grid:
        """The grid that a block attends over at `img_size`: the image's, or a window's."""
        return self.global_grid if block in self.global_blocks else (self.window_size, self.window_size)

    def layer_id(self, name: str) -> int:
        """A block's own tables count as of the block; the final norm (as in MAE) and the relative position tables that
        blocks share, which are new (as in BEiT's `optim_factory.py`), are of the rest."""
        parts = name.removeprefix("vit.").split(".")
        if parts[0] in ("patch_embed", "pos_embed", "cls_token", "reg_token", "norm_pre"):
            return 0
        return int(parts[1]) + 1 if parts[0] == "blocks" else self.depth + 1

    def freeze(self, trainable: float) -> None:
        """As the contract says; 0.5 needs timm's standard block. `norm` rests too while `trainable` is 0."""
        half = trainable == 0.5
        if not half and not (float(trainable).is_integer() and 0 <= trainable <= self.depth):
            raise UserError(f"{trainable:g} trainable blocks: {self.name} takes 0, 0.5, 1, 2, ... {self.depth}.")
        if trainable == self.depth:
            return
        if half and not comes_apart(self.vit.blocks[-1]):
            raise UserError(f"0.5 trainable blocks: the last block of {self.name} is no norm, attention, norm, MLP.")
        self.frozen_blocks = self.depth - math.ceil(trainable)
        self.vit.requires_grad_(False)
        self.vit.blocks[self.frozen_blocks : self.taps[-1] + 1].requires_grad_(True)
        self._resting = [module for name, module in self.vit.named_children() if name != "blocks"]
        self._resting += list(self.vit.blocks[: self.frozen_blocks])
        if half:
            last = self.vit.blocks[-1]
            self._resting += freeze_attention(last)
        if trainable == 0 and self.norm is not None:
            self._resting.append(self.norm)
        for module in self._resting:
            module.eval().requires_grad_(False)
        for table in self.parameters(recurse=False):
            table.requires_grad_(False)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks in place, each for itself, so that DDP sums the gradients of one while the backward pass
        is in the next; nn.Module's own would reach `forward` alone, as one graph."""
        limits = torch._dynamo.config  # blocks differ in drop path and windows; beyond the limit they would run eagerly
        limits.recompile_limit = max(limits.recompile_limit, 8 * self.depth)
        self._run_block = torch.compile(self._run_block, *args, **kwargs)  # type: ignore[method-assign]

    def shard(self, mesh: DeviceMesh) -> None:
        """Cut each block over the ranks of a mesh, in place. Blocks are run in parts, so FSDP2 has to be told where one
        begins and ends."""
        run = self._run_block
        for block in self.vit.blocks:
            fully_shard(block, mesh=mesh)
            block.run = partial(_swapped, run, block)
            register_fsdp_forward_method(block, "run")
        self._run_block = lambda x, block, *args: block.run(x, *args)  # type: ignore[method-assign]

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
        """As the contract says.

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
        shared = self.position.of_forward(self, x, grid)
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

    def facts(self) -> dict[str, Any]:
        grid = self.global_grid if self.vit.pos_embed is None else self.pos_grid
        return {"img_size": [side * self.patch_size for side in grid]} | self.position.facts()

    def visible_tokens(self, patches: Tensor, keep: Tensor) -> Tensor:
        """The masked forward of MAE: the tokens (B, prefix + n, C) after the last block, of n patches of each image.

        patches: (B, n, p * p * channels), a patch's pixels row by row with the channels last, normalised.
        keep: int64 (B, n), the places of these patches in the grid, row by row.
        Each token is at its own place's position, at the encoder's native grid; no other patch is ever embedded. Same
        numbers as embedding all patches and then choosing, as MAE's `forward_encoder` does.
        """
        assert not self.position.has_tables, "tables of relative positions need the whole grid"
        vit = self.vit
        weight = vit.patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
        x = vit.patch_embed.norm(F.linear(patches, weight, vit.patch_embed.proj.bias))
        tokens = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        if vit.pos_embed is not None:
            rows = 0 if vit.no_embed_class else self.prefix
            x = x + vit.pos_embed[0, rows:][keep]
            tokens = [torch.cat(tokens, dim=1) + vit.pos_embed[:, :rows]] if rows else tokens
        x = vit.norm_pre(vit.pos_drop(torch.cat([*(token.expand(len(x), -1, -1) for token in tokens), x], dim=1)))
        shared = (None, self.position.of_kept(self, keep))
        for block in vit.blocks:
            args = (x, block, False, self.native_grid, shared)
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
        resampled = resample(native, grid, self.spec.pos_resampling)
        return torch.cat([position[:, :rows], resampled.flatten(2).transpose(1, 2)], dim=1)

    def _run_block(self, x: Tensor, block: Any, windowed: bool, grid: Grid, shared: OfForward) -> Tensor:
        if not comes_apart(block):
            return block(x)
        normed = block.norm1(x)
        if windowed:
            side = self.window_size
            windows, padded = partition(normed.unflatten(1, grid), side)
            attended = self.position.attend(block.attn, windows, (side, side), True, shared[0])
            attended = merge(attended, side, padded, grid).flatten(1, 2)
        else:
            attended = self.position.attend(block.attn, normed, grid, False, shared[1])
        x = x + block.drop_path1(scaled(block, 1, attended))
        return x + block.drop_path2(scaled(block, 2, block.mlp(block.norm2(x))))

    def _drop_prefix(self) -> None:
        vit, report = self.vit, self.load_report
        if vit.pos_embed is not None and not vit.no_embed_class:
            vit.pos_embed = nn.Parameter(vit.pos_embed.detach()[:, vit.num_prefix_tokens :].clone())
        vit.cls_token, vit.reg_token, vit.num_prefix_tokens = None, None, 0
        for name in ("cls_token", "reg_token"):
            if name in report.loaded:
                report.loaded.remove(name)
                report.ignored[name] = "prefix token and its position, dropped with windowed attention"

    def _fit_position_embedding(self, once: bool) -> None:
        """Resample the position embedding to `global_grid` for good, or leave it as it is for every forward to do."""
        position = self._position(self.global_grid) if once else self.vit.pos_embed
        if position is not None and self.global_grid != self.native_grid:
            when = "once" if once else "at every forward"
            grids = f"{text(self.native_grid)} -> {text(self.global_grid)}"
            self.load_report.resized["pos_embed"] = f"{grids}, {RULES[self.spec.pos_resampling]} {when}"
        if once:
            self.vit.pos_embed = None if position is None else nn.Parameter(position.detach().clone())
            self.pos_grid = self.global_grid

    def _add_position_embedding(self) -> None:
        """Give weights that have none (BEiT's) new absolute positions at `global_grid`, drawn as BEiT draws them."""
        rows = (0 if self.vit.no_embed_class else self.prefix) + self.global_grid[0] * self.global_grid[1]
        self.vit.pos_embed = nn.Parameter(torch.empty(1, rows, self.embed_dim))
        cut_normal(self.vit.pos_embed)
        self.pos_grid = self.global_grid
        self.load_report.new["pos_embed"] = f"{text(self.global_grid)}, normal"

    def _add_layer_scale(self, value: float) -> None:
        for block in self.vit.blocks:
            names = add_layer_scale(block, self.embed_dim, value)
        self.load_report.new[", ".join(f"blocks.*.{name}" for name in names)] = f"{value:g}"


def _swapped(run: Callable[..., Tensor], block: nn.Module, x: Tensor, *args: object) -> Tensor:
    return run(x, block, *args)


def _global_blocks(spec: Spec, window_size: int, groups: int) -> frozenset[int]:
    if not window_size:
        return frozenset(range(spec.depth))
    if groups and spec.depth % groups:
        raise UserError(
            f"backbone.num_global_blocks={groups}: the {spec.depth} blocks of {spec.name} do not fall into that many "
            "equal groups; use a divisor, or 0 for windows only."
        )
    return frozenset(spec.depth * (i + 1) // groups - 1 for i in range(groups))
