"""Do the masks fit the classes they are said to have: which values occur, and which settings would fit better.

Two classes written as 0 and 255, or 0 .. K-1 under `reduce_zero_label`, lose a class without a word: such pixels are
ignored, and what is left scores too well.
"""

from collections.abc import Sequence

import numpy as np

from mae_transfer.engine.distributed import from_rank_zero
from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.config import PairsConfig
from mae_transfer.tasks.ade20k.count_values import VALUES, count_until, count_values
from mae_transfer.tasks.ade20k.data import Segmentation

SAMPLED = 64
"""Masks of each split that are read at the start, evenly spread."""
FAR_BELOW = 4
"""A set whose highest class is below this part of `num_classes` was given another set's number, ADE20K's by default."""
LARGE_ZERO, LARGE_IGNORED = 0.25, 0.05
"""Shares of the pixels from which 0, or another value that is ignored, may be a class that was left out."""
GREY_STEP = 10
"""Grey levels of a picture of classes lie at least so far apart; class numbers do in sets of a few masks alone."""
READ_AT_MOST = 2000
"""Masks of each split that are read to judge whether one class alone occurs, or none beyond the first few. Whether a
single class never occurs is judged by all masks (`count_values.py:count_until`)."""


def check_values(datasets: Sequence[Segmentation], *, trained: bool = False) -> list[str]:
    """Lines that say which values occur in the sampled masks of the splits.

    trained: the classes are those of a trained model, of which a val folder may have few.

    Raises UserError for a value that is no class, for a split without a labelled pixel, and where a class never occurs
    and another setting would explain it. A single class may be rare: it is looked for in all masks of the set.
    """
    config, labels = datasets[0].pairs_config, datasets[0].labels
    counts, read = np.zeros(VALUES, dtype=np.int64), 0
    seen = []
    for dataset in datasets:
        own, masks = count_values(dataset, _sampled(dataset))
        if not (own * (labels.table >= 0)).any():
            raise UserError(
                f"{dataset.pairs.mask_folder}: of {masks} masks read no pixel has a class, all are ignored; set "
                "data.reduce_zero_label and data.ignore_value to fit the masks"
            )
        counts, read = counts + own, read + masks
        seen.append(np.setdiff1d(np.flatnonzero(own), [] if config.ignore_value is None else [config.ignore_value]))
    fault = find_fault(counts, config, trained=trained)
    if fault is not None:
        # is it rare, or in none of the set's masks, whatever the subset?
        more = [np.setdiff1d(_spread(len(each.pairs), READ_AT_MOST), _sampled(each)) for each in datasets]
        for dataset, numbers in zip(datasets, more, strict=True):
            own, masks = count_values(dataset, numbers)
            counts, read = counts + own, read + masks
        if _most_classes(counts, config, trained) is None and _single_class(counts, config, trained) is not None:
            done = [np.union1d(numbers, _sampled(each)) for each, numbers in zip(datasets, more, strict=True)]
            rest = [np.setdiff1d(np.arange(len(each.pairs)), own) for each, own in zip(datasets, done, strict=True)]
            counts, read = from_rank_zero(
                lambda: count_until(
                    datasets, (counts, read), rest, lambda found: _single_class(found, config, trained) is not None
                )
            )
        fault = find_fault(counts, config, trained=trained)
        if fault is not None:
            raise UserError(f"{datasets[0].pairs.mask_folder}: {describe(counts, read, config)}; {fault}")
    odd = [] if trained else odd_values(counts, config) + moved_by_one(*seen)
    return [describe(counts, read, config), *(f"{datasets[0].pairs.mask_folder}: {line}" for line in odd)]


def classes_present(dataset: Segmentation) -> tuple[np.ndarray, int | None]:
    """Bool (K,): whether a pixel of one of the pairs has the class; and how many masks were read, None if all were."""
    numbers = dataset.indices[_spread(len(dataset), READ_AT_MOST)]
    values, _ = count_values(dataset, numbers)
    first = int(dataset.pairs_config.reduce_zero_label)
    present: np.ndarray = values[first : first + dataset.pairs_config.num_classes] > 0
    return present, len(numbers) if len(numbers) < len(dataset) else None


def find_fault(counts: np.ndarray, config: PairsConfig, *, trained: bool = False) -> str | None:
    """What explains that a class of the set never occurs, and what to do; None if nothing does.

    counts: int64 (65536,), pixels of each value in all masks of the set.
    """
    fault = _single_class(counts, config, trained)
    return fault if fault is not None else _most_classes(counts, config, trained)


def _single_class(counts: np.ndarray, config: PairsConfig, trained: bool) -> str | None:
    """The first or the last class never occurs, as if the masks were written by another setting."""
    first = int(config.reduce_zero_label)
    seen = {int(value) for value in np.flatnonzero(counts)}
    missing = set(range(first, first + config.num_classes)) - seen
    if config.reduce_zero_label and 0 in seen and missing == {config.num_classes}:
        return (
            f"the values are 0..{config.num_classes - 1}, of which 0 is ignored and moves the names by one: set "
            f"data.reduce_zero_label=false, or data.num_classes={config.num_classes - 1} if 0 is no class"
        )
    last = first + config.num_classes - 1
    if not trained and _may_be_shifted(counts, config) and counts[0] >= LARGE_ZERO * counts.sum():
        return (
            f"0 is ignored, {share(counts, 0)} of the pixels, and value {last} never occurs, as if the classes were 0.."
            f"{last - 1}: set data.reduce_zero_label=false, or data.num_classes={last - 1} if 0 is no class"
        )
    void = _void(counts, config)
    if not trained and missing == {last} and void is not None and config.num_classes > 2:
        return (
            f"{void} is ignored, {share(counts, void)} of the pixels, and value {last} never occurs: write {void} as "
            f"{last} if it is a class, or set data.num_classes={config.num_classes - 1} if it is none"
        )
    if not config.reduce_zero_label and missing == {0}:
        return (
            f"the values are 1..{config.num_classes - 1}: set data.reduce_zero_label=true and "
            f"data.num_classes={config.num_classes - 1}"
        )
    return None


def _most_classes(counts: np.ndarray, config: PairsConfig, trained: bool) -> str | None:
    """One class alone occurs, or no class beyond the first few."""
    first = int(config.reduce_zero_label)
    seen = {int(value) for value in np.flatnonzero(counts)}
    classes = set(range(first, first + config.num_classes))
    used = classes & seen
    if not trained and len(used) > 1 and max(used) - first + 1 < config.num_classes / FAR_BELOW:
        highest = max(used)
        or_zero = f", or data.num_classes={highest + 1} and data.reduce_zero_label=false if 0 is a class"
        return (
            f"the highest value of a class is {highest}, far below data.num_classes={config.num_classes}: set "
            f"data.num_classes={highest - first + 1}{or_zero if first and 0 in seen else ''}"
        )
    if len(used) == 1:
        ignored = sorted(seen - classes)
        if ignored == [0]:
            return (
                f"0 is ignored: set data.reduce_zero_label=false and data.num_classes={max(seen) + 1} if it is a class"
            )
        if ignored:
            return (
                f"{ignored[-1]} is ignored: if it is a class, write the masks with the class numbers {first}.."
                f"{first + config.num_classes - 1}"
            )
        return "with one class every prediction is right; write the masks with class numbers"
    return None


def odd_values(counts: np.ndarray, config: PairsConfig) -> list[str]:
    """What else may be wrong where classes never occur, a line each."""
    first, last = int(config.reduce_zero_label), int(config.reduce_zero_label) + config.num_classes - 1
    seen = np.flatnonzero(counts)
    void, lines = _void(counts, config), []
    if np.isin(np.arange(first, last + 1), seen).all():
        return []
    if len(seen) * FAR_BELOW <= config.num_classes and np.diff(seen).min(initial=65536) >= GREY_STEP:
        lines.append(
            f"the values are {ranges(seen)}, like the grey levels of a picture; if they are, write the masks with "
            f"class numbers {first}..{last}"
        )
    if void is not None:
        lines.append(
            f"{void} is ignored, {share(counts, void)} of the pixels, while classes never occur; if it is a class, "
            f"write it as one of {first}..{last}"
        )
    if _may_be_shifted(counts, config):
        lines.append(
            f"0 is ignored, {share(counts, 0)} of the pixels, and value {last} never occurs; if 0 is a class, set "
            "data.reduce_zero_label=false"
        )
    return lines


def moved_by_one(train: np.ndarray, val: np.ndarray) -> list[str]:
    """A line if the values of one split begin and end one below those of the other, as if it counts classes from 0."""
    if len(train) < 2 or len(val) < 2 or abs(val[0] - train[0]) != 1 or val[-1] - train[-1] != val[0] - train[0]:
        return []
    return [
        f"the values of training masks are {ranges(train)} and those of val masks {ranges(val)}; if one split counts "
        "classes from 0 and the other from 1, write them alike"
    ]


def _may_be_shifted(counts: np.ndarray, config: PairsConfig) -> bool:
    """Whether most of 0 .. K-1 occur, its ends among them, and K does not, under `reduce_zero_label`."""
    present = counts[: config.num_classes + 1] > 0
    ends = bool(present[0] and present[-2] and not present[-1])
    return config.reduce_zero_label and ends and 2 * int(present.sum()) > config.num_classes


def _void(counts: np.ndarray, config: PairsConfig) -> int | None:
    """`ignore_value`, where it is a large share of the pixels."""
    value = config.ignore_value
    return value if value and counts[value] >= LARGE_IGNORED * counts.sum() else None


def share(counts: np.ndarray, value: int) -> str:
    return f"{100 * counts[value] / counts.sum():.1f} %"


def describe(counts: np.ndarray, masks: int, config: PairsConfig) -> str:
    """Which values occur, which classes never do, what share is ignored."""
    first, last = int(config.reduce_zero_label), int(config.reduce_zero_label) + config.num_classes - 1
    seen = np.flatnonzero(counts)
    missing = np.setdiff1d(np.arange(first, last + 1), seen)
    inside = (seen >= first) & (seen <= last)
    ignored = seen[~inside]
    line = f"masks: of {masks} read the values are {ranges(seen)}"
    if len(ignored):
        line += f"; {100 * counts[ignored].sum() / counts.sum():.1f} % of the pixels are ignored ({ranges(ignored)})"
    if len(missing):
        line += f"; {len(missing)} of {config.num_classes} classes never occur, values {ranges(missing)}"
        if missing[-1] == last:
            line += f": data.num_classes={config.num_classes} is more than is seen"
    return line


def ranges(values: np.ndarray) -> str:
    """[0, 1, 2, 255] -> "0..2, 255", no more than 6 parts."""
    parts = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    texts = [f"{p[0]}" if len(p) == 1 else f"{p[0]}..{p[-1]}" for p in parts if len(p)]
    return ", ".join(texts[:6]) + (", ..." if len(texts) > 6 else "")


def _spread(length: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, count).astype(int))


def _sampled(dataset: Segmentation) -> np.ndarray:
    """Numbers of the pairs, of those that the run uses."""
    numbers: np.ndarray = dataset.indices[_spread(len(dataset), SAMPLED)]
    return numbers
