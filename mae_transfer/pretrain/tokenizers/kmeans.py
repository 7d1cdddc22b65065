"""Patches of pixels by their nearest of V centres: a tokenizer that needs nothing but clustering (scikit-learn's).

The distance is Euclidean over the patch's pixel values in 0 .. 1, all channels.
"""

import logging
import time
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from mae_transfer.errors import UserError
from mae_transfer.pretrain.tokenizers.base import Tokenizer

_LOG = logging.getLogger(__name__)
PIECE = 2**26
"""Distances computed at once: 256 MiB."""


class KMeansTokenizer(Tokenizer):
    """`centres`: float32 (V, C * p * p), pixels in the order (channel, row, column)."""

    kind = "kmeans"
    centres: Tensor
    half_norms: Tensor

    def __init__(self, centres: Tensor, *, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.vocab_size = len(centres)
        self.channels = centres.shape[1] // patch_size**2
        self.register_buffer("centres", centres.float())
        self.register_buffer("half_norms", centres.float().square().sum(1) / 2, persistent=False)

    def ids(self, images: Tensor) -> Tensor:
        patches = to_patches(images, self.patch_size)
        rows = max(PIECE // self.vocab_size, 1)
        # the nearest centre: |x - c|^2 = |x|^2 - 2 (x c - |c|^2 / 2)
        found = [(piece @ self.centres.T - self.half_norms).argmax(1) for piece in patches.flatten(0, 1).split(rows)]
        return torch.cat(found).view(len(images), -1)

    def facts(self) -> dict[str, int]:
        return {"patch_size": self.patch_size}


def to_patches(images: Tensor, patch_size: int) -> Tensor:
    """uint8 (B, C, H, W) -> float32 (B, h * w, C * p * p) in 0 .. 1."""
    patches = torch.nn.functional.pixel_unshuffle(images, patch_size)  # (B, C * p * p, h, w)
    return patches.flatten(2).transpose(1, 2).float() / 255


def fit_kmeans(
    images: Iterable[Tensor], *, vocab_size: int, patch_size: int, patches_per_image: int, seed: int
) -> KMeansTokenizer:
    """Cluster a sample of the patches of `images`, each uint8 (C, H, W).

    UserError if that is fewer patches than `vocab_size`.
    """
    rng = np.random.default_rng((seed, vocab_size))
    sample = []
    for image in images:
        patches = to_patches(image[None], patch_size)[0]
        chosen = rng.permutation(len(patches))[:patches_per_image]
        sample.append(patches[torch.from_numpy(chosen)].numpy())
    points = np.concatenate(sample)
    if len(points) < vocab_size:
        raise UserError(
            f"k-means: {vocab_size} tokens cannot be made of {len(points)} patches ({len(sample)} images); lower "
            "tokenizer.vocab_size or raise tokenizer.fit_images"
        )
    _LOG.info("k-means: %d centres of %d patches; up to 20 passes over them", vocab_size, len(points))
    started = time.perf_counter()
    from sklearn.cluster import MiniBatchKMeans  # here: slow to import, and only fitting needs it

    clusters = MiniBatchKMeans(
        vocab_size,
        random_state=seed,
        batch_size=max(vocab_size, 1024),
        init_size=min(max(3 * vocab_size, 1024), len(points)),
        max_iter=20,
        n_init=1,
        compute_labels=False,
    ).fit(points)
    _LOG.info("k-means: %d steps, %.1f s", clusters.n_steps_, time.perf_counter() - started)
    return KMeansTokenizer(torch.from_numpy(clusters.cluster_centers_), patch_size=patch_size)
