"""The stream of training samples, and the loader over it.

Training samples form one infinite stream: position p is image `epoch_order(seed, p // n)[p % n]` of epoch p // n. A
step takes `global_batch` consecutive positions; rank r of R takes the r-th of R equal parts of them, cut into
micro-batches of `micro_batch` with a smaller one at the end if it does not divide. So the samples of a step, and the
position to resume from, are functions of the step alone: any number of ranks, workers and restarts sees the same ones.
"""

from collections.abc import Generator, Iterator
from functools import lru_cache
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from mae_transfer.engine.loader import allow_open_files, init_worker
from mae_transfer.engine.rng import epoch_order, worker_generator
from mae_transfer.engine.task import SampleKey, TrainDataset
from mae_transfer.errors import UserError


class StreamSampler(Sampler[list[SampleKey]]):
    """This rank's micro-batches of the steps start..total-1, in order, each a list of sample keys."""

    def __init__(
        self,
        *,
        num_images: int,
        global_batch: int,
        micro_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        total: int,
    ) -> None:
        if num_images == 0:
            raise UserError("the training set has no images; check the annotation file and --subset")
        if global_batch % world_size:
            lower = global_batch // world_size * world_size
            raise UserError(
                f"train.global_batch={global_batch} cannot be reached with {world_size} processes: {global_batch} / "
                f"{world_size} = {global_batch / world_size:g} images each; use a number of processes that divides "
                f"{global_batch}, or a global batch of {f'{lower} or ' if lower else ''}{lower + world_size}"
            )
        self.num_images, self.global_batch, self.seed = num_images, global_batch, seed
        self.start, self.total = start, total
        self.per_rank = global_batch // world_size
        self.micro_batch = min(micro_batch, self.per_rank)
        self._first = rank * self.per_rank
        self._order = lru_cache(maxsize=2)(lambda epoch: epoch_order(seed, epoch, num_images))

    def micro_batches(self, step: int) -> list[range]:
        """The stream positions of each of this rank's micro-batches of a step."""
        first = step * self.global_batch + self._first
        end = first + self.per_rank
        return [range(i, min(i + self.micro_batch, end)) for i in range(first, end, self.micro_batch)]

    def key(self, position: int) -> SampleKey:
        """The sample at a position of the stream."""
        epoch, place = divmod(position, self.num_images)
        return epoch, int(self._order(epoch)[place])

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in range(self.start, self.total):
            for positions in self.micro_batches(step):
                yield [self.key(position) for position in positions]

    def __len__(self) -> int:
        return (self.total - self.start) * len(self.micro_batches(0))


def load_batches(
    dataset: TrainDataset, sampler: StreamSampler, *, workers: int, rank: int, pin_memory: bool
) -> Generator[Any, None, None]:
    """The sampler's micro-batches, collated.

    The loader has its own generator, so that the global one is never drawn from. Its processes live until the
    generator is closed. A UserError of the data set is raised here as it was raised there.
    """
    if workers:
        allow_open_files()
    samples = _Samples(dataset)
    loader: DataLoader[object] = DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=samples.collate,
        pin_memory=pin_memory,
        worker_init_fn=init_worker,
        generator=worker_generator(sampler.seed, rank),
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class _Samples(Dataset[Any]):
    """Hands a UserError through as a value: raised in a worker, torch would bury its line in a traceback."""

    def __init__(self, dataset: TrainDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: SampleKey) -> Any:
        try:
            return self.dataset[key]
        except UserError as error:
            return error

    def collate(self, samples: list[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, UserError):
                return sample
        return self.dataset.collate(samples)
