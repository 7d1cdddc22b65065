"""Global random state as a pure function of the seed and the position in the run.

Before each micro-batch the global generators of torch, numpy and Python are seeded from (seed, stream position of the
micro-batch's first image). So noise does not depend on what ran before: a resumed run needs no saved generator states
(none have to be gathered from the ranks either), and a micro-batch draws the same noise on whichever rank it falls.
Drop path and Dropout2d go further and draw for each sample (`noise.py`). The mix is numpy's `SeedSequence`, made so
that neighbouring inputs give unrelated states.

The last word keeps the streams apart from each other and from a data set's own (seed, epoch, index); four words are
needed for that, because `SeedSequence` treats missing words as zeros.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch

_ORDER, _MICRO_BATCH, _MODEL, _WORKERS, _SAMPLE = 1, 2, 3, 4, 5


def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The permutation of range(num_images) that is the order of an epoch."""
    return np.random.default_rng((seed, epoch, 0, _ORDER)).permutation(num_images)


def seed_for_model(seed: int) -> None:
    """Seed the global generators before weights are drawn; the same on every rank."""
    _seed_globals(seed, 0, 0, _MODEL)


def seed_for_micro_batch(seed: int, position: int) -> None:
    """Seed the global generators for the micro-batch whose first image is at this position of the sample stream."""
    _seed_globals(seed, position, 0, _MICRO_BATCH)


def sample_uniform(seed: int, positions: Sequence[int], layer: int, count: int) -> torch.Tensor:
    """fp32 (images, count) in 0..1 for the images at these positions of the sample stream, a generator for each."""
    generators = [np.random.default_rng((seed, position, layer, _SAMPLE)) for position in positions]
    return torch.from_numpy(np.stack([generator.random(count, dtype=np.float32) for generator in generators]))


def worker_generator(seed: int, rank: int) -> torch.Generator:
    """The generator a DataLoader draws its workers' base seed from (worker i gets base + i)."""
    words = np.random.SeedSequence((seed, rank, 0, _WORKERS)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


def _seed_globals(*words: int) -> None:
    state = np.random.SeedSequence(words).generate_state(4, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))  # all devices; torch takes a signed 64-bit number
    np.random.seed(int(state[1] & np.uint64(0xFFFFFFFF)))
    random.seed(int(state[2]))
