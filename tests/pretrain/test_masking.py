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
