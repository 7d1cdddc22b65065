"""Few labels: which training images a percentage of them is, and what their record says.

Our rule takes the first images in the order of a hash of draw and name: the same on every machine, and fewer are a part
of more. mmdetection's rule makes the published folds of COCO (tools/misc/split_coco.py): of all images in the order of
the annotation file, int(percent / 100 * N) draws with replacement, so that there are somewhat fewer; the fold, from 1
on, is numpy's seed.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from mae_transfer.errors import UserError


def hash_fraction(names: Sequence[str], percent: float, draw: int) -> np.ndarray:
    """Indices of round(percent / 100 * N) of the names, ascending, by our rule; UserError if they are none."""
    number = round(percent / 100 * len(names))
    if not number:
        raise UserError(
            f"data.fraction={percent:g}: {percent:g} % of {len(names)} training images is no image; give "
            f"{least_percent(len(names)):g} or more"
        )
    digests = [hashlib.sha256(f"{draw}:{name}".encode(errors="surrogateescape")).digest() for name in names]
    return np.sort(np.array(sorted(range(len(names)), key=digests.__getitem__)[:number], dtype=np.int64))


def least_percent(images: int, wanted: int = 1) -> float:
    """The least percentage, of three digits, of which so many images have those that are wanted; at most 100."""
    exact = 100 * (wanted - 0.5) / max(images, 1)
    digits = 2 - math.floor(math.log10(exact))
    units = math.ceil(exact * 10**digits)
    while round(units / 10**digits / 100 * images) < wanted and units < 100 * 10**digits:
        units += 1
    return min(units / 10**digits, 100.0)


def mmdetection_fold(images: int, percent: float, draw: int) -> np.ndarray:
    """Places of the images of fold draw + 1 by mmdetection's rule, ascending, each once."""
    number = int(percent / 100.0 * images)
    return np.unique(np.random.RandomState(draw + 1).choice(images, size=number))


def titled(name: str, percent: float | None) -> str:
    """The name of a data set of which a percentage is trained on."""
    return name if percent is None else f"{name}, {percent:g} % of the training images"


def left_out(classes: Sequence[str], present: np.ndarray, percent: float, sample: int | None = None) -> list[str]:
    """A line for classes that no chosen training image has.

    Args:
        present: bool (K,).
        sample: only so many of the images were looked at.
    """
    missing = [name for name, there in zip(classes, present.tolist(), strict=True) if not there]
    if not missing:
        return []
    some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    if sample is not None:
        seen = f"none of {sample} training images that were looked at"
        return [f"data.fraction={percent:g}: {len(missing)} of {len(classes)} classes are in {seen} ({some})"]
    return [
        f"data.fraction={percent:g} leaves {len(missing)} of {len(classes)} classes without a training image ({some})"
    ]
