"""Masks: how many patches, which ones, how evenly, and that the shuffle is undone. Block-wise ones are in
test_block_masking.py."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from mae_transfer.errors import UserError
from mae_transfer.pretrain.masking import draw_noise, gather_patches, num_visible, shuffle


def noises(kind: str, grid: tuple[int, int], ratio: float, count: int) -> torch.Tensor:
    drawn = [draw_noise(kind, grid, ratio, np.random.default_rng((0, 0, i))) for i in range(count)]
    return torch.from_numpy(np.stack(drawn))


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9])
@pytest.mark.parametrize("kind", ["random", "block"])
def test_exactly_the_released_codes_number_is_kept(kind: str, ratio: float) -> None:
    visible = num_visible((14, 14), ratio)
    assert visible == int(196 * (1 - ratio))
    mask = shuffle(noises(kind, (14, 14), ratio, 20), visible).mask
    assert (~mask).sum(1).tolist() == [visible] * 20


def test_an_unknown_scheme_is_not_taken_for_another() -> None:
    with pytest.raises(ValueError, match="no scheme of masking 'stripes'"):
        draw_noise("stripes", (4, 4), 0.75, np.random.default_rng(0))


def test_random_masks_are_uniform_over_the_patches() -> None:
    """Chi-square: each of 196 patches is visible in 49 of 196 masks on average; positions of one mask exclude each
    other, which takes the statistic down by (L - keep) / (L - 1)."""
    count, patches, visible = 4000, 196, 49
    mask = shuffle(noises("random", (14, 14), 0.75, count), visible).mask
    seen = (~mask).sum(0).numpy()
    expected = count * visible / patches
    statistic = ((seen - expected) ** 2 / expected).sum() * (patches - 1) / (patches - visible)
    low, high = chi2.ppf([0.001, 0.999], patches - 1)
    assert low < statistic < high


def test_order_of_the_visible_patches_is_uniform_too() -> None:
    """The encoder's i-th token is any patch: the first visible one is each of 16 equally often."""
    first = shuffle(noises("random", (4, 4), 0.75, 3200), 4).ids_keep[:, 0]
    counts = torch.bincount(first, minlength=16).numpy()
    assert chi2.sf(((counts - 200) ** 2 / 200).sum(), 15) > 0.001


def test_restore_undoes_the_shuffle() -> None:
    order = shuffle(noises("random", (4, 6), 0.75, 5), 6)
    patches = torch.randn(5, 24, 3)
    assert torch.equal(gather_patches(gather_patches(patches, order.ids_shuffle), order.ids_restore), patches)
    for i in range(5):
        assert order.mask[i].nonzero()[:, 0].tolist() == sorted(order.ids_shuffle[i, 6:].tolist())


def test_shuffle_is_hugging_faces() -> None:
    from transformers import ViTMAEConfig
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

    config = ViTMAEConfig(hidden_size=8, image_size=32, patch_size=8, mask_ratio=0.75)
    noise, sequence = noises("random", (4, 4), 0.75, 6), torch.randn(6, 16, 8)
    kept, mask, restore = ViTMAEEmbeddings(config).random_masking(sequence, noise)
    order = shuffle(noise, num_visible((4, 4), 0.75))
    assert torch.equal(gather_patches(sequence, order.ids_keep), kept)
    assert torch.equal(order.mask, mask.bool())
    assert torch.equal(order.ids_restore, restore)


def test_grid_keeps_one_patch_of_each_square() -> None:
    mask = shuffle(noises("grid", (4, 6), 0.75, 2), 6).mask.view(2, 4, 6)
    squares = (~mask).unfold(1, 2, 2).unfold(2, 2, 2)  # (2, 2, 3, 2, 2)
    assert bool((squares.sum((3, 4)) == 1).all())
    assert bool((~mask)[:, ::2, ::2].all())


def pixio_masking(noise: torch.Tensor, side: int, ratio: float, square: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Order of the patches and mask by facebookresearch/pixio `models_pixio.py: random_masking`, from the noise of the
    squares (N, n), written out."""
    kept = int(noise.shape[1] * (1 - ratio))
    orders, masks = [], []
    for row in noise:
        ranked = sorted(range(len(row)), key=lambda i: float(row[i]))
        mask, order = torch.ones(side, side, dtype=torch.bool), []
        for place, number in enumerate(ranked):
            top, left = (square * part for part in divmod(number, side // square))
            order += [side * y + x for y in range(top, top + square) for x in range(left, left + square)]
            if place < kept:
                mask[top : top + square, left : left + square] = False
        orders.append(order)
        masks.append(mask.flatten())
    return torch.tensor(orders), torch.stack(masks)


@pytest.mark.parametrize(("side", "square", "ratio", "kept"), [(16, 4, 0.75, 64), (12, 4, 0.75, 32), (8, 2, 0.4, 36)])
def test_squares_are_masked_together_as_pixio_does(side: int, square: int, ratio: float, kept: int) -> None:
    """Of 9 squares int(2.25) = 2 are kept: 32 patches, where single patches would be int(36)."""
    count, grid = (side // square) ** 2, (side, side)
    assert num_visible(grid, ratio, square) == kept == square**2 * int(count * (1 - ratio))
    drawn = np.stack([draw_noise("random", grid, ratio, np.random.default_rng(i), square) for i in range(40)])
    of_squares = np.stack([np.random.default_rng(i).random(count, dtype=np.float32) for i in range(40)])
    order = shuffle(torch.from_numpy(drawn), kept)
    expected, mask = pixio_masking(torch.from_numpy(of_squares), side, ratio, square)
    assert torch.equal(order.ids_shuffle, expected)
    assert torch.equal(order.mask, mask)
    whole = order.mask.view(-1, side, side).unfold(1, square, square).unfold(2, square, square).flatten(3)
    assert torch.equal(whole.all(3), whole.any(3))
    assert whole.all(3).sum((1, 2)).tolist() == [count - kept // square**2] * 40


def test_squares_that_are_as_many_as_other_schemes_want() -> None:
    for kind in ("block", "grid"):
        noise = draw_noise(kind, (8, 8), 0.75, np.random.default_rng(0), 2)
        mask = shuffle(torch.from_numpy(noise)[None], 16).mask.view(8, 8).unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)
        assert torch.equal(mask.all(2), mask.any(2)), kind
        assert int(mask.all(2).sum()) == 12, kind


def test_grids_that_do_not_divide_into_squares() -> None:
    with pytest.raises(UserError, match="mask.patch_grid=4: a grid of 14x14 patches does not divide"):
        num_visible((14, 14), 0.75, 4)
    with pytest.raises(UserError, match="leaves no patch visible of 8x8 in squares of 8x8"):
        num_visible((8, 8), 0.75, 8)


def test_block_masks_are_made_up_to_the_number_and_differ_from_image_to_image() -> None:
    noise = noises("block", (14, 14), 0.5, 10)
    assert set(noise.unique().tolist()) == {0.0, 1.0}
    assert noise.sum(1).tolist() == [98.0] * 10
    assert len({tuple(row) for row in noise.tolist()}) == 10


@pytest.mark.parametrize(
    ("grid", "ratio", "message"), [((2, 2), 0.9, "leaves no patch visible"), ((4, 4), 1e-20, "masks no patch")]
)
def test_ratios_that_leave_or_mask_nothing(grid, ratio, message) -> None:
    with pytest.raises(UserError, match=rf"mask.ratio=\S+ {message} of {grid[0]}x{grid[1]}; .*"):
        num_visible(grid, ratio)


@pytest.mark.parametrize(("grid", "ratio"), [((4, 4), 0.5), ((3, 4), 0.75), ((4, 5), 0.75)])
def test_grids_that_one_of_four_does_not_fit(grid, ratio) -> None:
    with pytest.raises(UserError, match="mask.kind=grid keeps one of every four patches"):
        draw_noise("grid", grid, ratio, np.random.default_rng(0))
