"""Block-wise masking as BEiT does it (arXiv 2106.08254, Algorithm 1; microsoft/unilm `beit/masking_generator.py`).

Rectangles of random area and aspect ratio are masked until `count` patches are. A rectangle that would add no patch, or
too many, is drawn again, ten times at most; when all ten fail the mask stays short of `count`. So the number of masked
patches varies from image to image and is never above `count`.
"""

import math

import numpy as np

ATTEMPTS = 10
MIN_ASPECT = 0.3


def block_mask(
    grid: tuple[int, int],
    count: int,
    rng: np.random.Generator,
    *,
    min_patches: int = 16,
    max_patches: int | None = None,
    exact: bool = False,
) -> np.ndarray:
    """A mask bool (h, w), True where masked, with at most `count` patches masked.

    Args:
        min_patches: least area of a rectangle; the area is uniform up to what is left to mask.
        max_patches: largest area of a rectangle; None is `count`.
        exact: make up `count` by single patches at random. An encoder of the visible patches alone needs as many of
            them in every image of a batch.
    """
    h, w = grid
    mask = np.zeros(grid, dtype=bool)
    left = count
    while left > 0:
        most = left if max_patches is None else min(left, max_patches)
        added = _add_rectangle(mask, min_patches, most, rng)
        if added == 0:
            break
        left -= added
    if exact and left:
        mask.reshape(h * w)[rng.choice(np.flatnonzero(~mask), left, replace=False)] = True
    return mask


def _add_rectangle(mask: np.ndarray, least: int, most: int, rng: np.random.Generator) -> int:
    """Mask a rectangle in place; the number of patches it added, 0 if no attempt did."""
    height, width = mask.shape
    for _ in range(ATTEMPTS):
        area = rng.uniform(min(least, most), max(least, most))
        aspect = math.exp(rng.uniform(math.log(MIN_ASPECT), -math.log(MIN_ASPECT)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h >= height or w >= width:
            continue
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        window = mask[top : top + h, left : left + w]
        added = h * w - int(window.sum())
        if 0 < added <= most:
            window[...] = True
            return added
    return 0
