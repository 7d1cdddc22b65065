"""What a run says while it trains: a bar on a terminal, plain lines elsewhere and in log.txt.

Lines go through `logging` under `mae_transfer`. `console` sends them to standard error as well; on a terminal
the bar stands for the lines of single steps, and other lines are written above it.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

_LOG = logging.getLogger(__name__)
_GIB = 1024**3
LONG_WAIT = 0.2
"""Share of a step's time spent in waiting for data from which on a line says so."""
SETTLED, JUDGED = 20, 80
"""Steps of a process that are left out, and those that the share is of."""


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if not (getattr(record, "of_step", False) and sys.stderr.isatty()):
            tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def console() -> Iterator[None]:
    """Show what is logged under `mae_transfer` on standard error while in the context."""
    logger, handler = logging.getLogger("mae_transfer"), _Console()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class Progress:
    """Shows the lines of metrics.jsonl as they are made; only rank 0 makes one. Use as a context."""

    def __init__(self, *, start: int, total: int, log_every: int) -> None:
        self._total, self._log_every = total, log_every
        self._waits: list[float] = []
        self._bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _advise(self, wait: float) -> None:
        """One line if the steps behind the first few, while loader processes start, have waited long for data."""
        self._waits.append(wait)
        if len(self._waits) != SETTLED + JUDGED:
            return
        share = sum(self._waits[SETTLED:]) / JUDGED
        if share > LONG_WAIT:
            _LOG.warning(
                "the last %d steps waited for data %.0f %% of their time: raise data.workers= if there are cores, else "
                "put the data on a faster disk (docs/performance.md)",
                *(JUDGED, 100 * share),
            )

    def show(self, line: dict[str, Any], seconds_per_step: float) -> None:
        """Take the line of a step; `seconds_per_step` is the mean so far, for the time left."""
        step = line["step"]
        self._advise(line["data_wait"])
        figures = {
            "loss": f"{line['loss']:.4f}",
            "lr": f"{line['lr']:.3g}",
            "img/s": f"{line['images_per_second']:.3g}",
            "data": f"{line['data_wait']:.0%}",
            "mem": f"{line['memory'] / _GIB:.2f}GiB",
        }
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update(1)
        if step % self._log_every == 0 or step == self._total:
            eta = tqdm.format_interval((self._total - step) * seconds_per_step)
            text = "  ".join(f"{name} {value}" for name, value in figures.items())
            _LOG.info(
                "step %d/%d  epoch %.2f  %s  eta %s",
                step,
                self._total,
                line["epoch"],
                text,
                eta,
                extra={"of_step": True},
            )
