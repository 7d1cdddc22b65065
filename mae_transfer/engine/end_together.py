"""A rank that fails alone ends the others in seconds, with its line as the cause.

The others may be deep in a collective operation: NCCL's waits for ever, gloo's ends in a traceback of its own. So each
rank has a thread that looks into the store by which the ranks have met. A rank that is killed can say nothing; the
launcher has to end the others (torchrun does, `srun --kill-on-bad-exit=1` too).
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from mae_transfer.errors import EXIT_BAD_INPUT, EXIT_FAILED, StoppedBySignal, UserError

POLL = 0.5
"""Seconds between looks."""
GRACE = 2.0
"""Seconds in which a rank may end by an error of its own: most are raised on all ranks."""
PATIENCE = 10.0
"""Seconds that the failed rank waits for the others: its end would look to them like a broken connection."""


@contextmanager
def ranks_end_together() -> Iterator[None]:
    """Inside, an error of one rank ends all processes of the run; without a process group it does nothing."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    watch = _Watch()
    watch.start()
    try:
        yield
    except StoppedBySignal:  # ranks stop together as it is
        raise
    except Exception as error:
        watch.report(error)
        raise
    finally:
        watch.close()


class _Watch(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._store = dist.PrefixStore("end together", _get_default_store().clone())
        self._rank, self._others = dist.get_rank(), dist.get_world_size() - 1
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(POLL):
            try:
                if not self._store.check(["cause"]):
                    continue
                rank, code, line = json.loads(self._store.get("cause"))
            except RuntimeError:  # the store has gone, and its rank with it
                return
            if rank == self._rank or self._over.wait(GRACE):
                return
            if self._rank == 0:  # whose log is the one that people and suites read
                print(f"error: rank {rank}: {line}", file=sys.stderr, flush=True)
            self._store.add("ended", 1)
            os._exit(code)

    def report(self, error: Exception) -> None:
        """Tell the others, unless one has failed before, and wait until they have ended."""
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        code = EXIT_BAD_INPUT if isinstance(error, UserError) else EXIT_FAILED
        try:
            if self._store.add("failed", 1) > 1:
                self._store.add("ended", 1)
                return
            self._store.set("cause", json.dumps([self._rank, code, " ".join(text.split())]))
            deadline = time.monotonic() + PATIENCE
            while self._store.add("ended", 0) < self._others and time.monotonic() < deadline:
                time.sleep(0.05)
        except RuntimeError:
            return

    def close(self) -> None:
        self._over.set()
        self.join(PATIENCE)
