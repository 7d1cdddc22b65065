"""Which patches are masked: random, block-wise or on a grid (MAE Figure 6), drawn for each sample by its own generator.

A mask is given as `noise`, a number for each patch: the patches of the lowest noise are visible, and the encoder sees
them in the order of their noise. MAE shuffles so (facebookresearch/mae `models_mae.py`, whose names are used here).

With `patch_grid` g the scheme draws squares of g x g patches in place of patches: a square is wholly visible or wholly
masked. The number kept and the order are those of Pixio (facebookresearch/pixio `models_pixio.py: random_masking`).
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mae_transfer.backbones.grid import Grid
from mae_transfer.errors import UserError
from mae_transfer.pretrain.block_masking import block_mask


def squares(grid: Grid, patch_grid: int) -> Grid:
    """Squares of patch_grid x patch_grid patches down and across; UserError if the grid is not made of such."""
    if grid[0] % patch_grid or grid[1] % patch_grid:
        raise UserError(
            f"mask.patch_grid={patch_grid}: a grid of {grid[0]}x{grid[1]} patches does not divide into such squares; "
            "choose another, or another data.image_size"
        )
    return grid[0] // patch_grid, grid[1] // patch_grid


def num_visible(grid: Grid, ratio: float, patch_grid: int = 1) -> int:
    """Patches that stay visible: those of int(n * (1 - ratio)) of n squares. UserError if that leaves or masks none."""
    height, width = squares(grid, patch_grid)
    count = height * width
    visible = int(count * (1 - ratio))
    if not 0 < visible < count:
        what = "leaves no patch visible" if visible == 0 else "masks no patch"
        of = f"{grid[0]}x{grid[1]}" + (f" in squares of {patch_grid}x{patch_grid}" if patch_grid > 1 else "")
        raise UserError(f"mask.ratio={ratio:g} {what} of {of}; choose one between 0 and 1 that does not")
    return visible * patch_grid**2


def check_mask(kind: str, grid: Grid, ratio: float, patch_grid: int = 1) -> None:
    """UserError if no such mask fits the grid and the ratio."""
    num_visible(grid, ratio, patch_grid)
    if kind != "grid":
        return
    grid = squares(grid, patch_grid)
    if ratio != 0.75 or grid[0] % 2 or grid[1] % 2:
        raise UserError(
            f"mask.kind=grid keeps one of every four patches: it needs mask.ratio=0.75 and an even grid, not {ratio:g} "
            f"and {grid[0]}x{grid[1]}"
        )


def draw_noise(kind: str, grid: Grid, ratio: float, rng: np.random.Generator, patch_grid: int = 1) -> np.ndarray:
    """float32 (L,); of squares of patches if `patch_grid` is not 1. See `_noise`."""
    if patch_grid == 1:
        return _noise(kind, grid, ratio, rng)
    coarse = squares(grid, patch_grid)
    ranks = _noise(kind, coarse, ratio, rng).argsort(kind="stable").argsort()  # no two squares share a number
    whole = np.ones((patch_grid, patch_grid), dtype=np.float32)
    return np.kron(ranks.reshape(coarse).astype(np.float32), whole).reshape(-1)


def _noise(kind: str, grid: Grid, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """float32 (L,); the `num_visible` patches of the lowest noise are visible.

    random: uniform.
    block: BEiT's rectangles, and single patches up to the number that the ratio masks, since every image of a batch
        needs as many visible ones. Visible patches come in the order of the grid.
    grid: the upper left patch of each 2x2 square is visible, in every image. The paper says no more than "regularly
        keeps one of every four".
    """
    if kind == "random":
        return rng.random(grid[0] * grid[1], dtype=np.float32)
    if kind == "block":
        masked = grid[0] * grid[1] - num_visible(grid, ratio)
        return block_mask(grid, masked, rng, exact=True).reshape(-1).astype(np.float32)
    if kind != "grid":
        raise ValueError(f"no scheme of masking {kind!r}")
    check_mask(kind, grid, ratio)
    noise = np.ones(grid, dtype=np.float32)
    noise[::2, ::2] = 0
    return noise.reshape(-1)


@dataclass(frozen=True)
class Shuffle:
    """The patches of a batch in the order of their noise: the first `len_keep` are visible, the others masked."""

    ids_shuffle: Tensor
    """int64 (B, L): ids_shuffle[b, i] is the place in the grid of the i-th patch."""
    len_keep: int

    @property
    def ids_keep(self) -> Tensor:
        """(B, len_keep): places of the visible patches."""
        return self.ids_shuffle[:, : self.len_keep]

    @property
    def ids_restore(self) -> Tensor:
        """(B, L): where each patch of the grid is in the order; undoes the shuffle."""
        return self.ids_shuffle.argsort(1)

    @property
    def mask(self) -> Tensor:
        """bool (B, L) in the order of the grid, true where masked."""
        return self.ids_restore >= self.len_keep


def shuffle(noise: Tensor, len_keep: int) -> Shuffle:
    """The shuffle of noise float32 (B, L); among patches of equal noise the first comes first."""
    return Shuffle(noise.argsort(dim=1, stable=True), len_keep)


def gather_patches(patches: Tensor, ids: Tensor) -> Tensor:
    """The patches at these places: (B, L, C) and int64 (B, n) -> (B, n, C)."""
    return patches.gather(1, ids[:, :, None].expand(-1, -1, patches.shape[2]))
