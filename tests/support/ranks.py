"""Two gloo ranks on this machine's CPU, for tests of what ranks do together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.processes import fork_server
from torch import distributed, multiprocessing


def spawn(work: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Run work(rank, *args) on two gloo ranks and return their results."""
    start_method = fork_server().get_start_method()
    multiprocessing.start_processes(_run, (work, str(folder), args), nprocs=2, start_method=start_method)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _run(rank: int, work: Callable[..., Any], folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(work(rank, *args), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
