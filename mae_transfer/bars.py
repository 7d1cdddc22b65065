"""How far long work is, on standard error: a bar on a terminal, a line now and then in a redirected output."""

import sys
import time
from collections.abc import Collection, Iterator
from typing import TypeVar

from tqdm import tqdm

EVERY = 30.0
"""Seconds between two lines."""

Item = TypeVar("Item")


class Bar:
    """Use as a context, and call `to` with how much is done. Work that is done within `EVERY` seconds gets no line."""

    def __init__(self, total: int, *, title: str, unit: str, show: bool = True) -> None:
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, unit=unit, desc=title, disable=not (show and terminal), file=sys.stderr)
        self._lines, self._about = show and not terminal, (title, total, unit)
        self._started = self._said = time.monotonic()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def to(self, done: int) -> None:
        """So much of the total is done."""
        self._bar.update(done - self._bar.n)
        now, (title, total, unit) = time.monotonic(), self._about
        if self._lines and done and now - self._said >= EVERY:
            self._said, spent = now, now - self._started
            left = tqdm.format_interval(spent * (total - done) / done)
            line = f"{title}: {done} of {total} {unit}, {tqdm.format_interval(spent)}, about {left} left"
            print(line, file=sys.stderr, flush=True)


def shown(items: Collection[Item], *, title: str, unit: str, show: bool = True) -> Iterator[Item]:
    """The items, one by one, with a bar."""
    with Bar(len(items), title=title, unit=unit, show=show) as bar:
        for done, item in enumerate(items, 1):
            yield item
            bar.to(done)
