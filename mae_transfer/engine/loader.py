"""Loader processes: how they are set up, and their failures as one line instead of a wait for ever or a traceback.

A batch leaves a loader process in a thread of its queue. What goes wrong there, such as a full /dev/shm, Python prints
and forgets, and the run would wait for that batch for ever. Here it ends the process, which torch notices.
"""

import errno
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue

import torch

from mae_transfer.config.sections import Workers
from mae_transfer.engine.signals import ignore_in_worker
from mae_transfer.errors import UserError

_reason = mmap.mmap(-1, 256)
"""Shared with the loader processes: why one of them could not send a batch, then zeros."""
CORES = "MAE_TRANSFER_CORES"
"""Environment variable: cores of a run that shares its machine with other runs of a suite."""
MOST_PROCESSES = 16
"""Of `data.workers=auto`: what frozen features of a ViT-B take on the fastest GPUs."""
_FILES = "raise the limit of open files (ulimit -n 65536), or set data.workers=0"


def init_worker(_: int) -> None:
    """For a DataLoader's `worker_init_fn`."""
    ignore_in_worker()
    Queue._on_queue_feeder_error = staticmethod(_cannot_send)  # type: ignore[attr-defined]


def _cannot_send(error: Exception, batch: object) -> None:
    text = " ".join(str(error).split()).encode()[: len(_reason)]
    _reason[: len(text)] = text
    os._exit(1)


def loader_processes(workers: Workers, device: torch.device) -> int:
    """What `data.workers` comes to in this process; `auto` is its share of the cores that the run may use."""
    if workers != "auto":
        return workers
    if device.type == "cpu":
        return 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    of_run = int(os.environ.get(CORES) or cores)
    if ranks := os.environ.get("LOCAL_WORLD_SIZE"):  # torchrun
        of_run //= int(ranks)
    elif of_rank := os.environ.get("SLURM_CPUS_PER_TASK"):
        of_run = min(of_run, int(of_rank))
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        of_run //= int(os.environ.get("SLURM_NTASKS_PER_NODE", "1"))
    return max(1, min(of_run, MOST_PROCESSES))


def allow_open_files() -> None:
    """Raise the soft limit: a tensor that comes from a loader process is an open file here until it is freed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def loader_failures() -> Iterator[None]:
    """Turn what torch raises for its loader processes, at any moment of a run, into a UserError."""
    try:
        yield
    except RuntimeError as error:
        message = _explain(str(error))
        if message is None:
            raise
        raise UserError(message) from error
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise UserError(f"too many open files; {_FILES}") from error


def _explain(text: str) -> str | None:
    """None for what is not about loader processes."""
    if "Too many open files" in text or "received 0 items of ancdata" in text:
        return f"a loader process and the run cannot share more files; {_FILES}"
    if "unable to open shared memory" in text or "unable to allocate shared memory" in text:
        return _no_room()
    if not text.startswith("DataLoader worker"):
        return None
    if _reason[0] or "Bus error" in text:
        return _no_room()
    if "Killed" in text:
        return (
            "a loader process was killed, as the system does when memory is short; set fewer data.workers=, or 0, and "
            "--resume goes on from the newest checkpoint, if there is one"
        )
    return f"a loader process ended ({' '.join(text.split())[:200]}); --resume goes on, data.workers=0 shows its error"


def _no_room() -> str:
    try:
        state = os.statvfs("/dev/shm")
        size = f" (/dev/shm has {state.f_blocks * state.f_frsize / 2**20:.3g} MB)"
    except OSError:
        size = ""
    text = _reason[:].rstrip(b"\0").decode(errors="replace")
    reason = f" ({text})" if text else ""
    return (
        f"a loader process could not send a batch{reason}; make shared memory larger{size}, with docker by "
        f"--shm-size=8g; {_FILES}"
    )
