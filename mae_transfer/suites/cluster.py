"""SLURM as a launcher, through submitit: arrays of jobs, which are put back into the queue when they are preempted.

Imports no torch: this module is what a job imports on its node.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_transfer.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, UserError
from mae_transfer.files import atomic_write
from mae_transfer.suites.state import RunPlace, is_locked, last_line

if TYPE_CHECKING:
    from mae_transfer.suites.launcher import Job, Options
    from mae_transfer.suites.plan import SuiteRun

ENDED_BY_THE_CLUSTER = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REQUEUED")


@dataclass
class RunJob:
    """What a job does on its node, in each of its tasks: the run as a process of its own.

    SLURM's warning (submitit asks for SIGUSR2) stops the run after its step, with a checkpoint; submitit then puts the
    job back into the queue, to go on.
    """

    place: RunPlace
    command: tuple[str, ...]
    _process: subprocess.Popen | None = field(default=None, repr=False)

    def __call__(self) -> int:
        if self.place.record.exists():  # another job or runner has made it while this one was queued
            return EXIT_DONE
        rank = int(os.environ.get("SLURM_PROCID", "0"))
        log = self.place.log if rank == 0 else self.place.log.with_suffix(f".rank{rank}.log")
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the warning is this process's to pass on
            )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._stop)
        while (code := self._process.poll()) is None:
            time.sleep(0.1)
        return code

    def checkpoint(self) -> Any:
        """Called by submitit in its signal handler, on the first task: the collective stop reaches the others."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            # Popen.wait would block on the lock that the interrupted poll may hold
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(replace(self, _process=None))

    def _stop(self, number: int, frame: object) -> None:
        if self._process is not None:
            self._process.terminate()


class ClusterJob:
    def __init__(self, job: Any, place: RunPlace, start: int) -> None:
        self._job, self._place, self._start = job, place, start
        self._reason, self._stopped = "", False

    def poll(self) -> int | None:
        import submitit

        if self._stopped:  # submitit asks SLURM only now and then; the lock tells when the run has saved
            return None if is_locked(self._place.path / "run.lock") else EXIT_STOPPED
        if not self._job.done():
            return None
        self._place.job.unlink(missing_ok=True)
        try:
            codes = self._job.results()
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as error:
            self._reason = f"job {self._job.job_id} ({self._job.state}): {str(error).strip().splitlines()[0]}"
            return EXIT_STOPPED if self._job.state in ENDED_BY_THE_CLUSTER else EXIT_FAILED
        return next((code for code in codes if code), EXIT_DONE)

    def reason(self) -> str:
        return (
            self._reason or last_line(self._place.log, self._start) or f"job {self._job.job_id} failed without a word"
        )

    def stop(self) -> None:
        self._job.cancel(check=False)
        self._stopped = True

    kill = stop


class ClusterLauncher:
    """Args:
        cluster: `slurm`, or `local`, submitit's stand-in on this machine, with one job at a time.
        folder: where submitit keeps its files.
        jobs: how many jobs of an array run at a time, None for all.
        options: of submitit's `AutoExecutor.update_parameters`.

    UserError without submitit, or without the cluster's commands.
    """

    requeues = True

    def __init__(self, cluster: str, folder: Path, *, jobs: int | None, options: dict[str, Any]) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError("this launcher needs submitit: pip install 'mae_transfer[slurm]'") from None
        self._limit = jobs if cluster == "local" else None
        self._active: list[ClusterJob] = []
        try:
            # a run may need any number of time limits, each of which it leaves with a checkpoint; submitit's own is 3
            own = {"slurm_max_num_timeout": sys.maxsize} if cluster == "slurm" else {}
            self._executor = submitit.AutoExecutor(folder=folder / "submitit-%j", cluster=cluster, **own)
            if jobs is not None and cluster == "slurm":
                options = options | {"slurm_array_parallelism": jobs}
            self._executor.update_parameters(**options)
            self._tasks = range(options.get("nodes", 1) * options["tasks_per_node"]) if cluster == "slurm" else None
            self._job_class = submitit.SlurmJob
        except (RuntimeError, ValueError, NameError, TypeError) as error:
            raise UserError(f"--launcher {cluster}: {' '.join(str(error).split())}") from None

    def room(self) -> int:
        self._active = [job for job in self._active if job.poll() is None]
        return sys.maxsize if self._limit is None else self._limit - len(self._active)

    def start(self, runs: Sequence[tuple["SuiteRun", int]]) -> list["Job"]:
        places = [run.place for run, _ in runs]
        starts = [place.log.stat().st_size if place.log.exists() else 0 for place in places]
        found = {place: job for place in places if (job := self._queued(place)) is not None}
        for run, _ in runs:
            if run.place in found:
                print(f"found: {run.title} is in the queue as job {found[run.place].job_id}", file=sys.stderr)
        new = [(run.place, RunJob(run.place, tuple(run.command()))) for run, _ in runs if run.place not in found]
        if new:
            with self._executor.batch():
                submitted = [self._executor.submit(function) for _, function in new]
            for (place, _), job in zip(new, submitted, strict=True):
                found[place] = job
                if self._tasks is not None:
                    with atomic_write(place.job) as file:
                        file.write(str(job.job_id).encode())
        jobs = [ClusterJob(found[place], place, start) for place, start in zip(places, starts, strict=True)]
        self._active += jobs
        return list(jobs)

    def _queued(self, place: RunPlace) -> Any:
        """The job of a run that an earlier runner submitted, if SLURM still has it; else None."""
        if self._tasks is None or not place.job.exists():
            return None
        job_id = place.job.read_text(encoding="utf-8").strip()
        ask = ["squeue", "--noheader", f"--jobs={job_id}", "--format=%T"]
        try:
            asked = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=60)
            failure = asked.stderr if asked.returncode and "Invalid job id" not in asked.stderr else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            failure = str(error)
        if failure:
            words = " ".join(failure.split())
            raise UserError(f"squeue of job {job_id}: {words}; try again, or scancel it and delete {place.job}")
        if asked.returncode or not asked.stdout.strip():
            return None
        return self._job_class(self._executor.folder, job_id, tuple(self._tasks))


def slurm_launcher(options: "Options") -> ClusterLauncher:
    """The launcher `slurm` of the command line: a node's task for each GPU."""
    asked = _asked_of_submitit(options) | dict(options.slurm or {})
    if options.partition is not None:
        asked.setdefault("slurm_partition", options.partition)
    return ClusterLauncher("slurm", options.folder, jobs=options.jobs, options=asked)


def stand_in_launcher(options: "Options") -> ClusterLauncher:
    """The launcher `submitit-local` of the command line."""
    return ClusterLauncher("local", options.folder, jobs=options.jobs or 1, options=_asked_of_submitit(options))


def _asked_of_submitit(options: "Options") -> dict[str, object]:
    return {
        "name": options.name,
        "timeout_min": options.minutes,
        "nodes": options.nodes,
        "tasks_per_node": max(1, options.gpus),
        "gpus_per_node": options.gpus,
    }
