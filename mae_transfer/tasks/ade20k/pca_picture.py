"""Patch features as colours: their first three principal components are red, green and blue.

As in the figures of DINOv2 (arXiv 2304.07193, Figure 1): one PCA over the patches of all pictures, so that like patches
of two pictures have like colours; each component goes from its least to its largest value. The background is not cut
away, which takes a threshold by eye there.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pca_colours(maps: Sequence[Tensor]) -> list[np.ndarray]:
    """Features (C, h, w) of each image, C >= 3 -> uint8 (h, w, 3) each.

    The sign of a component is such that its largest loading is positive.
    """
    patches = torch.cat([each.detach().cpu().double().flatten(1).T for each in maps])
    patches = patches - patches.mean(0)
    axes = torch.linalg.eigh(patches.T @ patches).eigenvectors[:, -3:].flip(1)
    largest = axes.abs().argmax(0)
    axes = axes * axes[largest, torch.arange(3)].sign()
    values = patches @ axes
    low, high = values.amin(0), values.amax(0)
    colours = (255 * (values - low) / (high - low).clamp(min=1e-12)).round().to(torch.uint8)
    sizes = [each.shape[1:] for each in maps]
    parts = colours.split([height * width for height, width in sizes])
    return [part.view(*size, 3).numpy() for part, size in zip(parts, sizes, strict=True)]
