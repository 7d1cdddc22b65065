"""Makes the runs of a suite that are not done, through a launcher, and outlives the death of any of them."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_transfer.engine.signals import StopRequest
from mae_transfer.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, StoppedBySignal
from mae_transfer.run_folder.record import read_record
from mae_transfer.suites.launcher import Job, Launcher
from mae_transfer.suites.matrix import duration
from mae_transfer.suites.plan import SuiteRun
from mae_transfer.suites.state import take_claim

POLL = 0.2
"""Seconds between looks at the runs."""


@dataclass
class _Active:
    job: Job
    claim: int
    """Held by the runner until the outcome is noted."""
    started: float


class Runner:
    """retry: also make the runs again that failed before."""

    def __init__(self, runs: Sequence[SuiteRun], launcher: Launcher, *, retry: bool) -> None:
        self._runs, self._launcher, self._retry = list(runs), launcher, retry
        self._pending = list(runs)
        self._active: dict[SuiteRun, _Active] = {}
        self._outcomes: dict[Path, str] = {}
        """Run folder -> done, failed or stopped, of the runs that are settled."""
        self._elsewhere: set[Path] = set()

    def run(self) -> int:
        """Make them; the exit code of the suite. After a signal the runs that were started save and end first."""
        with StopRequest() as stop:
            told = False
            try:
                while True:
                    self._reap(stopping=stop.received is not None)
                    if stop.received is None:
                        self._start()
                    elif not told:
                        told = True
                        self._say("stop", f"{stop.received}: {len(self._active)} runs save and end; again kills them")
                        for active in self._active.values():
                            active.job.stop()
                    if not self._active and (stop.received is not None or not self._pending):
                        break
                    time.sleep(POLL)
            except (KeyboardInterrupt, StoppedBySignal):  # a second signal
                for active in self._active.values():
                    active.job.kill()
                raise StoppedBySignal(
                    f"{len(self._active)} runs were killed by a second signal; the same command goes on from their "
                    "newest checkpoints"
                ) from None
            except BaseException:  # of the runner itself
                for active in self._active.values():
                    active.job.stop()
                raise
        if stop.received is not None:
            left = sum(self._outcomes.get(run.place.path) != "done" for run in self._runs)
            self._say("stop", f"{left} runs are left; the same command goes on with them")
            return EXIT_STOPPED
        outcomes = set(self._outcomes.values())
        return EXIT_FAILED if "failed" in outcomes else EXIT_STOPPED if "stopped" in outcomes else EXIT_DONE

    def _start(self) -> None:
        """Settle the pending runs that need nothing more, and start those that can be."""
        room = self._launcher.room()
        batch: list[tuple[SuiteRun, int]] = []
        for run in list(self._pending):
            before = [self._outcomes.get(path) for path in run.needs]
            if "failed" in before or "stopped" in before:
                self._settle(run, "stopped", f"its pre-training has {'failed' if 'failed' in before else 'stopped'}")
                continue
            if any(outcome != "done" for outcome in before):
                continue
            if run.place.record.exists():
                self._settle(run, "done", "by another runner" if run.place.path in self._elsewhere else "")
                continue
            if len(batch) >= room and run.place.path not in self._elsewhere:
                continue
            claim = take_claim(run.place)
            state = "running" if claim is None else run.place.state()
            if state == "failed" and self._retry and run.place.path not in self._elsewhere:
                run.place.failure.unlink()
                state = run.place.state()
            if claim is not None and state in ("missing", "stopped") and len(batch) < room:
                batch.append((run, claim))
                continue
            if claim is not None:
                os.close(claim)
            if state == "failed":
                self._settle(run, "failed", f"before: {run.place.reason()}; --retry makes it again")
            elif state == "running" and run.place.path not in self._elsewhere:
                self._elsewhere.add(run.place.path)
                self._say("wait", f"{run.title} is being made by another runner or process")
        if not batch:
            return
        for run, _ in batch:
            self._pending.remove(run)
            self._elsewhere.discard(run.place.path)
            self._say("resume" if run.place.begun else "start", f"{run.title}, {run.place.log}")
        for (run, claim), job in zip(batch, self._launcher.start(batch), strict=True):
            self._active[run] = _Active(job, claim, time.monotonic())

    def _reap(self, *, stopping: bool) -> None:
        for run, active in list(self._active.items()):
            code = active.job.poll()
            if code is None:
                continue
            took = duration(time.monotonic() - active.started)
            if run.place.record.exists():
                run.place.failure.unlink(missing_ok=True)
                self._settle(run, "done", f"in {took}: {_metrics(run)}")
            elif code == EXIT_STOPPED or stopping:
                if stopping or not self._launcher.requeues:
                    self._settle(run, "stopped", f"after {took}")
                else:
                    self._pending.append(run)
                    self._say("requeue", run.title)
            elif code == EXIT_BAD_INPUT and run.place.state() == "running":
                self._pending.append(run)  # it lost the folder to a process that is no suite's
            else:
                reason = active.job.reason() if code else "ended without a record"
                run.place.note_failure(reason)
                self._settle(run, "failed", f"after {took}: {reason}")
            del self._active[run]
            os.close(active.claim)

    def _settle(self, run: SuiteRun, outcome: str, detail: str) -> None:
        self._outcomes[run.place.path] = outcome
        if run in self._pending:
            self._pending.remove(run)
        if detail:
            self._say(outcome, f"{run.title} {detail}")

    def _say(self, event: str, text: str) -> None:
        done = sum(outcome == "done" for outcome in self._outcomes.values())
        print(f"{time.strftime('%H:%M:%S')} {done}/{len(self._runs)} {event}: {text}", file=sys.stderr, flush=True)


def _metrics(run: SuiteRun) -> str:
    metrics = read_record(run.place.record)["metrics"]
    shown = [f"{name} {value:.2f}" for name, value in metrics.items() if "/" not in name and value is not None]
    return "  ".join(shown[:3])
