"""Processes without the seconds of their imports: a fork server imports the package once, and each process is its fork.

They are killed and signalled as those of a shell are. A start costs milliseconds; `import torch` alone costs seconds.
"""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.distributed import TCPStore


def fork_server() -> ForkServerContext:
    """The context that starts such processes; all tests of a worker share its server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.preloaded"])
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # where the server finds it
        forkserver.ensure_running()
    return context


class Ranks(NamedTuple):
    """The processes of one run, in order of rank, and the store where they meet, which torchrun keeps too."""

    processes: list[BaseProcess]
    store: TCPStore | None

    def wait(self, timeout: float = 60.0, grace: float = 1.0) -> list[int | None]:
        """The exit codes. When a rank fails, the others have `grace` seconds and are killed, as by a launcher."""
        deadline = time.monotonic() + timeout
        while any(process.is_alive() for process in self.processes):
            if any(process.exitcode for process in self.processes) or time.monotonic() > deadline:
                for process in self.processes:
                    process.join(grace)
                    process.kill()
            time.sleep(0.02)
        return [process.exitcode for process in self.processes]


def start(work: Callable[..., object], *args: Any, ranks: int = 1, launcher: str = "torchrun") -> Ranks:
    """Start `work(rank, *args)` on gloo ranks; `launcher` says whose environment variables they find.

    They have the test's own environment and working directory too.
    """
    store, address = None, {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    if launcher == "slurm":
        address |= {"MASTER_PORT": str(_free_port()), "SLURM_JOB_ID": "1", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
        address |= dict.fromkeys(("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_NUM_TASKS"), str(ranks))
        of_rank = ("SLURM_PROCID", "SLURM_LOCALID")
    elif ranks > 1:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        address |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        address |= {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        of_rank = ("RANK", "LOCAL_RANK")
    else:
        of_rank = ()
    processes: list[BaseProcess] = []
    for rank in range(ranks):
        environment = os.environ | address | dict.fromkeys(of_rank, str(rank))
        process = fork_server().Process(target=_in_child, args=(environment, os.getcwd(), work, rank, args))
        process.start()
        processes.append(process)
    return Ranks(processes, store)


def _in_child(environment: dict[str, str], folder: str, work: Callable[..., object], rank: int, args: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    multiprocessing.set_start_method("fork", force=True)  # of loader processes: our own children, as in a plain run
    torch.set_num_threads(1)
    work(rank, *args)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
