"""The contract of an encoder: what the tasks, the engine and the record read of it, and what is the same for all.

Three classes keep it: `vit.ViTEncoder`, the plain ViTs that this project builds, `stage_encoder.StageEncoder`, timm's
hierarchical ones, and `module_encoder.ModuleEncoder`, any module of a user's own that offers what
`own_module.EncoderModule` lists.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mae_transfer.backbones.checkpoints.report import LoadReport
from mae_transfer.backbones.grid import Grid, grid_of, pair
from mae_transfer.backbones.registry import Spec
from mae_transfer.errors import UserError


class Encoder(nn.Module):
    """Normalised images (B, 3, H, W) -> one map (B, C, H / patch, W / patch) per tap, in the order of the taps; of a
    hierarchical encoder each map with its own channels and stride.

    Any H and W that are multiples of the patch will do. Every trainable parameter takes part in each forward, but for
    those of `norm`.

    Attributes:
        name, embed_dim, depth, num_heads, patch_size, mean, std: of the spec; mean and std in 0..1 units.
        taps: 0-based numbers of the blocks whose maps `forward` gives, ascending.
        map_channels, map_strides: of the maps of the taps, in pixels.
        num_layers: how many numbers `layer_id` gives.
        global_grid: tokens down and across at the size that the task has said it will use.
        prefix: tokens before the patches' own in what `tokens` gives; `has_class_token`: the first of them is one.
        no_weight_decay: names of parameters that have none under any recipe.
        shards: it has a method `shard`, for `train.shard`.
        pools: probes read what `pooled` gives in place of an average of tokens.
        norm: the final norm, which users of tokens apply; None where tokens come without or are normed already.
        load_report: where the weights are from, and what was done to them.
        lr_scale: learning rate of all parameters over optim.lr, where a protocol sets it (`engine/optim.py`).
    """

    pools = False
    shards = False
    no_weight_decay: frozenset[str] = frozenset()
    norm: nn.Module | None
    prefix: int
    has_class_token: bool
    lr_scale: float
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, spec: Spec, report: LoadReport | None, taps: tuple[int, ...] | None, img_size: int | Grid
    ) -> None:
        super().__init__()
        self.spec = spec
        self.load_report = report or LoadReport(spec.name, "random initialisation")
        self.name, self.mean, self.std = spec.name, spec.mean, spec.std
        self.embed_dim, self.depth, self.patch_size = spec.embed_dim, spec.depth, spec.patch_size
        self.num_heads = spec.num_heads
        self.taps = _check_taps(spec, taps)
        self.map_channels = [spec.stages[i] if spec.stages else spec.embed_dim for i in self.taps]
        self.map_strides = [spec.patch_size >> (spec.depth - 1 - i if spec.stages else 0) for i in self.taps]
        self.num_layers = spec.depth + 2
        self.global_grid = self.grid_of(*pair(img_size))
        self.norm = None
        self._resting: list[nn.Module] = []  # frozen, and kept in eval mode
        for name, values in (("pixel_mean", spec.mean), ("pixel_std", spec.std)):
            pixels = torch.tensor([255 * value for value in values]).view(-1, 1, 1)
            self.register_buffer(name, pixels, persistent=False)

    def tokens(self, images: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
        """The tokens (B, prefix + h * w, C), prefix tokens first, after each of `blocks` (0-based, ascending)."""
        raise NotImplementedError

    def class_token(self, tokens: Tensor) -> Tensor:
        """Of tokens (B, prefix + n, C) the class token (B, C), or the mean of several, as Pixio's evaluation has it."""
        count = self.spec.class_tokens
        return tokens[:, 0] if count == 1 else tokens[:, :count].mean(1)

    def pooled(self, images: Tensor) -> Tensor:
        """What probes read of the images, (B, C), of an encoder with `pools`."""
        raise NotImplementedError

    def layer_id(self, name: str) -> int:
        """Layer of a parameter (named relative to the encoder) for layer-wise lr decay, as MAE's `util/lr_decay.py`:
        0 for what comes before the blocks, i + 1 for block i, depth + 1 for the rest."""
        raise NotImplementedError

    def freeze(self, trainable: float) -> None:
        """Let only the last `trainable` blocks learn (0.5: norm2 and MLP of the last); all before them is frozen.

        Frozen parts run without autograd and stay in eval mode. `trainable` equal to the depth freezes nothing: that is
        fine-tuning of everything (as in MAE Figure 9). Raises UserError for a number that the encoder does not take.
        """
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Fields of the spec that differ for the weights of a run of this encoder."""
        return {}

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (..., 3, H, W) on any device -> float32 on the encoder's, in the units of its weights.

        Computed in 0..255 units, as detectron2 and mmsegmentation do it, so that the input is theirs to the last bit.
        """
        return images.to(self.pixel_mean, non_blocking=True, copy=True).sub_(self.pixel_mean).div_(self.pixel_std)

    def grid_of(self, height: int, width: int) -> Grid:
        """Tokens down and across for an image of this size; raises UserError if it is no multiple of the patch."""
        return grid_of((height, width), self.patch_size, self.name)

    def train(self, mode: bool = True) -> "Encoder":
        super().train(mode)
        for module in self._resting:
            module.eval()
        return self


def _check_taps(spec: Spec, taps: tuple[int, ...] | None) -> tuple[int, ...]:
    """By default the blocks that end each quarter; all of fewer than four."""
    if taps is None and spec.depth < 4:
        return tuple(range(spec.depth))
    if taps is None:
        return tuple(spec.depth * (i + 1) // 4 - 1 for i in range(4))
    if not taps or list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] >= spec.depth:
        raise UserError(f"taps {tuple(taps)}: give ascending block numbers from 0 to {spec.depth - 1} of {spec.name}.")
    return tuple(taps)
