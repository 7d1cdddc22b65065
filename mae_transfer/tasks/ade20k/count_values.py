"""Pixels of each value in the masks of a set: of some masks, or of all until what is missing is found."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from mae_transfer.bars import Bar
from mae_transfer.data.identity import combine, identify
from mae_transfer.data.images import UndecodableImageError
from mae_transfer.data.index_cache import THREADS
from mae_transfer.data.synthetic.folder import cache_folder
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write
from mae_transfer.tasks.ade20k.data import Segmentation

VALUES = 65536
PART = 256
"""Masks that are read between two looks at what is still missing."""


def count_values(dataset: Segmentation, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, int]:
    """Pixels of each value, int64 (65536,), in the masks of these pairs, and how many could be read."""
    return _count([(dataset, int(number)) for number in numbers])


def count_until(
    datasets: Sequence[Segmentation],
    known: tuple[np.ndarray, int],
    rest: Sequence[np.ndarray],
    missing: Callable[[np.ndarray], bool],
) -> tuple[np.ndarray, int]:
    """The counts of `known` and of further masks, in a random order, until nothing is missing or all have been read.

    What it found is kept in the user's cache under the identity of the masks, so that a later start reads none.

    Args:
        known: counts and number of the masks that were read.
        rest: for each data set the numbers of the others.
        missing: whether, by these counts, it goes on.
    """
    masks = [(dataset, int(number)) for dataset, numbers in zip(datasets, rest, strict=True) for number in numbers]
    masks = [masks[i] for i in np.random.default_rng(0).permutation(len(masks)).tolist()]
    file = cache_folder("mask_values") / _key(datasets, known, len(masks))
    kept = _read(file)
    if kept is not None:
        return kept
    counts, read = known[0].copy(), known[1]
    with Bar(len(masks), title="masks: looking for the class that is missing", unit="masks") as bar:
        for start in range(0, len(masks), PART):
            own, count = _count(masks[start : start + PART])
            counts, read = counts + own, read + count
            bar.to(min(start + PART, len(masks)))
            if not missing(counts):
                break
    with suppress(OSError, UserError):  # a cache that cannot be written costs time alone
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as out:
            np.save(out, np.append(counts, read))
    return counts, read


def _count(masks: Sequence[tuple[Segmentation, int]]) -> tuple[np.ndarray, int]:
    counts, read = np.zeros(VALUES, dtype=np.int64), 0
    with ThreadPoolExecutor(THREADS) as pool:  # a network disk answers many at once
        for own in pool.map(_one, masks):
            if own is not None:
                counts[: len(own)] += own
                read += 1
    return counts, read


def _one(mask: tuple[Segmentation, int]) -> np.ndarray | None:
    """Of one mask, as far as its highest value; None if it cannot be decoded and such are skipped."""
    dataset, number = mask
    pairs = dataset.pairs
    try:
        return np.bincount(dataset.labels.read_values(pairs.mask(number), pairs.sizes[number]).ravel())
    except UndecodableImageError:
        if dataset.on_bad_image == "error":
            raise
        return None


def _key(datasets: Sequence[Segmentation], known: tuple[np.ndarray, int], left: int) -> str:
    config = datasets[0].pairs_config
    sets = [
        identify(each.pairs.mask_folder, [f"{name}{each.pairs.mask_suffix}" for name in each.pairs.names])
        for each in datasets
    ]
    settings = (config.num_classes, config.reduce_zero_label, config.ignore_value)
    return combine("mask values 1", *sets, *settings, known[1], left)


def _read(file: Path) -> tuple[np.ndarray, int] | None:
    with suppress(OSError, ValueError, EOFError):
        stored = np.load(file, allow_pickle=False)
        if stored.shape == (VALUES + 1,) and stored.dtype == np.int64:
            return stored[:VALUES], int(stored[VALUES])
    return None
