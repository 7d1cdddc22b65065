"""Principal components as colours against scikit-learn."""

import numpy as np
import torch
from sklearn.decomposition import PCA

from mae_transfer.tasks.ade20k.pca_picture import pca_colours


def test_colours_are_scikit_learns_components_over_all_pictures() -> None:
    torch.manual_seed(0)
    scale = torch.tensor([9.0, 5.0, 3.0, *[0.3] * 9]).view(-1, 1, 1)
    maps = [scale * torch.randn(12, 4, 6), 2 + scale * torch.randn(12, 5, 3)]
    found = pca_colours(maps)
    assert [each.shape for each in found] == [(4, 6, 3), (5, 3, 3)]
    assert all(each.dtype == np.uint8 for each in found)
    patches = np.concatenate([each.flatten(1).T.numpy() for each in maps]).astype(float)
    pca = PCA(3).fit(patches)
    theirs = pca.transform(patches)
    theirs *= np.sign(pca.components_[np.arange(3), np.abs(pca.components_).argmax(1)])
    theirs = 255 * (theirs - theirs.min(0)) / np.ptp(theirs, axis=0)
    ours = np.concatenate([each.reshape(-1, 3) for each in found]).astype(float)
    assert np.abs(ours - theirs).max() <= 0.51


def test_equal_patches_have_one_colour() -> None:
    (found,) = pca_colours([torch.ones(5, 2, 2)])
    assert not found.any()
