"""What the evaluations of all tasks share: each image once over any number of processes, and a progress bar."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

from mae_transfer.bars import Bar
from mae_transfer.config.sections import Workers
from mae_transfer.engine.loader import allow_open_files, init_worker, loader_processes


class EvalDataset(Protocol):
    """A map-style data set keyed by 0 .. len - 1."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...

    def collate(self, samples: list[Any], /) -> Any: ...


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; the model is left in the mode it came in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def drawing(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, and no compilation for the few batches of other shapes."""
    with evaluating(model), torch.compiler.set_stance("force_eager"):
        yield


def evaluation_batches(
    dataset: EvalDataset,
    *,
    batch_size: int,
    workers: Workers,
    fabric: Fabric,
    progress: bool,
    title: str = "evaluate",
    mine: Sequence[int] | None = None,
) -> Iterator[Any]:
    """This rank's collated batches, on the CPU: rank r has images r, r + world, ..., so none is padded or doubled; or
    those of `mine`, in that order."""
    if mine is None:
        mine = range(fabric.global_rank, len(dataset), fabric.world_size)
    processes = loader_processes(workers, fabric.device)
    if processes:
        allow_open_files()
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=mine,
        num_workers=processes,
        collate_fn=dataset.collate,
        pin_memory=fabric.device.type == "cuda",
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # else workers' seeds are drawn from the generator that training uses
    )
    with Bar(len(dataset), title=title, unit="img", show=progress and fabric.is_global_zero) as bar:
        for number, batch in enumerate(loader, start=1):
            yield batch
            done = min(number * batch_size, len(mine)) * fabric.world_size
            bar.to(min(done, len(dataset)))
