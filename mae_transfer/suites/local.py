"""This machine as a launcher: so many runs at a time, each a process with GPUs or CPU threads of its own."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mae_transfer.errors import UserError
from mae_transfer.suites.launcher import Job, Options
from mae_transfer.suites.plan import SuiteRun
from mae_transfer.suites.state import last_line


class LocalJob:
    def __init__(self, run: SuiteRun, claim: int, environment: dict[str, str], processes: int, free: list[str]) -> None:
        self._log, self._free, self._devices = run.place.log, free, environment.get("CUDA_VISIBLE_DEVICES")
        with self._log.open("ab") as log:
            self._start = log.tell()
            self._process = subprocess.Popen(
                run.command(processes),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(claim,),
                start_new_session=True,  # Ctrl-C is the runner's to pass on
            )
        self._returned = False

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None and not self._returned:
            self._returned = True
            self._free.append(self._devices or "")
        return code

    def reason(self) -> str:
        return why(self._process.returncode, self._log, self._start)

    def stop(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


class LocalLauncher:
    """Args:
        jobs: runs at a time; None is as many as there are GPUs for, or 1 on a CPU.
        gpus: of each run; more than one are processes of torchrun. 0 is the CPU, whose threads the jobs divide.
        visible: the ids of the GPUs that may be used.

    UserError if there are too few GPUs.
    """

    requeues = False

    def __init__(self, *, jobs: int | None, gpus: int, visible: Sequence[str]) -> None:
        self._processes = max(1, gpus)
        groups = [",".join(visible[i : i + gpus]) for i in range(0, len(visible) - gpus + 1, gpus)] if gpus else []
        jobs = jobs or max(1, len(groups))
        if gpus and jobs > len(groups):
            raise UserError(f"--jobs {jobs} of {gpus} GPUs each, but {len(visible)} are visible; lower one of the two")
        self._environment = dict(os.environ)
        if not gpus:
            self._environment["CUDA_VISIBLE_DEVICES"] = ""
            threads = max(1, len(os.sched_getaffinity(0)) // jobs) if hasattr(os, "sched_getaffinity") else 1
            self._environment.setdefault("OMP_NUM_THREADS", str(threads))
        elif jobs > 1:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            self._environment.setdefault("MAE_TRANSFER_CORES", str(max(1, cores // jobs)))
        self._free = groups[:jobs] if gpus else [""] * jobs

    def room(self) -> int:
        return len(self._free)

    def start(self, runs: Sequence[tuple[SuiteRun, int]]) -> list[Job]:
        jobs: list[Job] = []
        for run, claim in runs:
            devices = self._free.pop(0)
            environment = self._environment | ({"CUDA_VISIBLE_DEVICES": devices} if devices else {})
            jobs.append(LocalJob(run, claim, environment, self._processes, self._free))
        return jobs


def local_launcher(options: Options) -> LocalLauncher:
    """The launcher `local` of the command line."""
    if options.nodes > 1:
        raise UserError("--nodes is for --launcher slurm")
    return LocalLauncher(jobs=options.jobs, gpus=options.gpus, visible=options.visible)


def why(code: int, log: Path, start: int) -> str:
    """A failure in one line, from an exit code and what was logged after byte `start`."""
    said = last_line(log, start)
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory, or killed by hand)" if name == "SIGKILL" else ""
        return f"died of {name}{hint}" + (f"; its last line: {said}" if said else "")
    return said or f"exit code {code} without a word"
