"""BEiT's block-wise masks against a plain reading of its generator's rules, and what they promise."""

import math
import random

import numpy as np
import pytest

from mae_transfer.pretrain.block_masking import block_mask


class Draws(random.Random):
    """Python's generator with numpy's name for whole numbers. Where less is left than the least area, the bounds of the
    area come in descending order, which numpy does not take: here they are always ascending."""

    def uniform(self, low, high):
        return super().uniform(min(low, high), max(low, high))

    def integers(self, end):
        return self.randint(0, end - 1)


def reference(height, width, count, least, most, draws):
    """A set of masked cells: rectangles of uniform area and log-uniform aspect in 0.3 .. 1/0.3, until none fits."""
    masked = set()
    while len(masked) < count:
        room = min(count - len(masked), most)
        new = set()
        for _ in range(10):
            area = draws.uniform(least, room)
            aspect = math.exp(draws.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w < width and h < height:
                top, left = draws.randint(0, height - h), draws.randint(0, width - w)
                cells = {(y, x) for y in range(top, top + h) for x in range(left, left + w)}
                if 0 < len(cells - masked) <= room:
                    new = cells - masked
                    break
        if not new:
            break
        masked |= new
    return masked


@pytest.mark.parametrize(("grid", "count", "most"), [((14, 14), 75, None), ((14, 14), 147, 40), ((6, 20), 50, None)])
def test_masks_are_those_of_the_definition(grid, count, most):
    for seed in range(200):
        expected = reference(*grid, count, 16, most or count, Draws(seed))
        mask = block_mask(grid, count, Draws(seed), max_patches=most)
        assert set(zip(*map(np.ndarray.tolist, np.nonzero(mask)), strict=True)) == expected


def test_counts_of_beit_base():
    rng = np.random.default_rng(0)
    counts = [int(block_mask((14, 14), 75, rng).sum()) for _ in range(500)]
    assert max(counts) == 75
    assert 70 <= np.mean(counts) <= 75  # it may stop short, and seldom does by much
    assert min(counts) < 75


def test_exact_masks_have_as_many_patches_in_every_image():
    rng = np.random.default_rng(0)
    for grid, count in (((14, 14), 147), ((4, 4), 12), ((3, 5), 1)):
        assert {int(block_mask(grid, count, rng, exact=True).sum()) for _ in range(50)} == {count}


def test_masks_are_blocks():
    """Neighbours are masked together far more often than by chance, and every place is masked about as often."""
    rng = np.random.default_rng(0)
    masks = np.stack([block_mask((14, 14), 75, rng) for _ in range(500)])
    together = (masks[:, :, 1:] & masks[:, :, :-1]).mean()
    assert together > 1.5 * (75 / 196) ** 2
    assert masks.any(0).all()


def test_the_same_generator_gives_the_same_mask():
    first, second = (block_mask((14, 14), 75, np.random.default_rng((1, 2, 3))) for _ in range(2))
    assert (first == second).all()
