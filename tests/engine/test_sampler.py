"""The sample stream: the same samples for any number of ranks, micro-batches, workers and restarts."""

import random

import numpy as np
import pytest
import torch

from mae_transfer.engine.rng import seed_for_micro_batch
from mae_transfer.engine.sampler import StreamSampler
from mae_transfer.errors import UserError

Key = tuple[int, int]


def steps_of(ranks: int, micro_batch: int, start: int = 0, total: int = 9) -> list[list[Key]]:
    """The samples of each step, ranks one after the other."""
    samplers = [
        StreamSampler(
            num_images=10,
            global_batch=8,
            micro_batch=micro_batch,
            seed=5,
            rank=rank,
            world_size=ranks,
            start=start,
            total=total,
        )
        for rank in range(ranks)
    ]
    steps: list[list[Key]] = [[] for _ in range(start, total)]
    for sampler in samplers:
        batches = list(sampler)
        assert len(batches) == len(sampler)
        per_step = len(sampler.micro_batches(0))
        for i, batch in enumerate(batches):
            assert len(batch) <= micro_batch
            steps[i // per_step].extend(batch)
    return steps


def test_same_samples_for_any_split() -> None:
    reference = steps_of(1, 8)
    stream = [key for step in reference for key in step]
    assert len(stream) == 72
    for epoch in range(7):  # an epoch is a permutation, another one each time, also across the borders of steps
        assert sorted(stream[10 * epoch : 10 * epoch + 10]) == [(epoch, index) for index in range(10)]
    assert len({tuple(index for _, index in stream[10 * e : 10 * e + 10]) for e in range(7)}) == 7
    for ranks, micro_batch in ((1, 1), (1, 3), (2, 2), (2, 3), (4, 1), (4, 8), (8, 1)):
        assert steps_of(ranks, micro_batch) == reference
        assert steps_of(ranks, micro_batch, start=5) == reference[5:]


def test_uneven_micro_batches_lose_nothing() -> None:
    sampler = StreamSampler(num_images=100, global_batch=16, micro_batch=3, seed=0, rank=1, world_size=2, total=2)
    assert [list(positions) for positions in sampler.micro_batches(1)] == [[24, 25, 26], [27, 28, 29], [30, 31]]


def test_unreachable_batches_show_the_arithmetic() -> None:
    with pytest.raises(UserError) as error:
        StreamSampler(num_images=10, global_batch=64, micro_batch=1, seed=0, world_size=6, total=1)
    assert "train.global_batch=64" in str(error.value)
    assert "64 / 6 = 10.6667" in str(error.value)
    assert "60 or 66" in str(error.value)
    with pytest.raises(UserError, match="no images"):
        StreamSampler(num_images=0, global_batch=4, micro_batch=1, seed=0, total=1)


def test_random_state_is_a_function_of_seed_and_position() -> None:
    def draw(seed: int, position: int) -> tuple[float, float, float]:
        seed_for_micro_batch(seed, position)
        return torch.rand(()).item(), np.random.rand(), random.random()

    first = draw(0, 8)
    torch.rand(7), np.random.rand(7), random.random()
    assert draw(0, 8) == first
    others = [draw(0, 0), draw(0, 9), draw(1, 8), draw(8, 0)]
    assert all(a != b for other in others for a, b in zip(first, other, strict=True))
