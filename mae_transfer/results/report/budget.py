"""How much of the page pictures and curves may take, and what is left out of it."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def within(sizes: Sequence[Sequence[int]], limit: int) -> list[int]:
    """How many of each run's things fit into `limit` bytes: the first of every run, then the second, and so on.

    sizes: bytes of the things of each run, in order. A run whose next thing does not fit has no more.
    """
    counts = [0] * len(sizes)
    left, open_runs = limit, [i for i, of_run in enumerate(sizes) if of_run]
    while open_runs:
        going_on = []
        for i in open_runs:
            size = sizes[i][counts[i]]
            if size <= left:
                left -= size
                counts[i] += 1
                if counts[i] < len(sizes[i]):
                    going_on.append(i)
        open_runs = going_on
    return counts
