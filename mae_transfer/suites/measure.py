"""A few steps of each kind of run whose time is unknown. They are the run's own: it is stopped and goes on later."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mae_transfer.engine.signals import StopRequest
from mae_transfer.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, StoppedBySignal
from mae_transfer.run_folder.metrics import read_metrics
from mae_transfer.suites.estimate import SKIPPED, Estimator, kind_of
from mae_transfer.suites.launcher import Launcher
from mae_transfer.suites.plan import SuiteRun
from mae_transfer.suites.runner import POLL
from mae_transfer.suites.state import take_claim

STEPS = SKIPPED + 5


def measure(
    runs: Sequence[SuiteRun], launcher: Launcher, estimator: Estimator, steps: Mapping[Path, int | None]
) -> int:
    """Start the first run of each kind that can be started, one at a time, and stop it after `STEPS` steps; the exit
    code. Left out are runs without steps, and those that wait for a pre-training."""
    code, seen = EXIT_DONE, set()
    with StopRequest() as stop:
        for run in runs:
            total, kind = steps.get(run.place.path), kind_of(run.config)
            ready = all((path / "record.json").exists() for path in run.needs)
            if kind in seen or not ready or not total or total <= STEPS or estimator.estimate(run, total) is not None:
                continue
            claim = take_claim(run.place)
            if claim is None:
                continue
            if run.place.state() in ("missing", "stopped"):
                seen.add(kind)
                print(f"measuring {run.title}, {run.place.log}", file=sys.stderr, flush=True)
                (job,) = launcher.start([(run, claim)])
                asked = False
                try:
                    while (ended := job.poll()) is None:
                        if not asked and (stop.received or len(read_metrics(run.place.path)) >= STEPS):
                            asked = True
                            job.stop()
                        time.sleep(POLL)
                except (KeyboardInterrupt, StoppedBySignal):  # a second signal
                    job.kill()
                    raise StoppedBySignal(f"{run.title} was killed by a second signal") from None
                if ended != EXIT_DONE and not asked:
                    run.place.note_failure(job.reason())
                    code = EXIT_FAILED
            os.close(claim)
            if stop.received:
                return EXIT_STOPPED
    return code
