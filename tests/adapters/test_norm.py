"""BatchNorm: empty batches, and two gloo ranks against one process that holds everything."""

from typing import Any

import pytest
import torch
from support.detector_standin import StandInEncoder, seeded_image, seeded_target, seeded_weights, small_config
from support.ranks import spawn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mae_transfer.adapters.norm import BatchNorm
from mae_transfer.tasks.coco.model import MaskRCNN, build_mask_rcnn

Case = tuple[int, int]


def test_one_process_is_batch_norm() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(4), nn.BatchNorm2d(4)
    for x in (torch.randn(3, 4, 5, 6), torch.randn(2, 4, 7, 7)):
        assert ours(x).equal(theirs(x))
    assert all(a.equal(b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert ours.eval()(x).equal(theirs.eval()(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("training", [True, False])
def test_empty_input_changes_no_statistics_and_has_gradients(training: bool) -> None:
    norm = BatchNorm(4).train(training)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x = torch.zeros(0, 4, 7, 7, requires_grad=True)
    y = norm(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert all(value.equal(before[name]) for name, value in norm.state_dict().items())
    assert not norm.weight.grad.any()
    assert not norm.bias.grad.any()


NORM_CASES = [(3, 1), (0, 2), (0, 0)]
"""RoIs on each rank, one after another through the same layer."""


def norm_inputs() -> list[tuple[Tensor, Tensor]]:
    gen = torch.Generator().manual_seed(0)
    shape = (4, 5, 6)
    return [
        tuple(torch.randn(sum(case), *shape, generator=gen, dtype=torch.float64) + 100 * k for k in (1, 0))
        for case in NORM_CASES
    ]


def normalise(norm: nn.Module, x: Tensor, direction: Tensor) -> dict[str, Tensor]:
    norm.zero_grad()
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * direction).sum().backward()
    return {"output": y.detach(), "x": x.grad, "weight": norm.weight.grad.clone(), "bias": norm.bias.grad.clone()}


def new_norm(kind: type[nn.Module]) -> nn.Module:
    norm = kind(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -0.5, 2.0, 0.1]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 3.0]))
    return norm


def detector() -> MaskRCNN:
    torch.manual_seed(0)
    model = build_mask_rcnn(StandInEncoder(), 3, small_config(128, rpn_convs=1, box_convs=2, mask_convs=1))
    seeded_weights(model, 0)
    return model.double().train()


def detector_batch(objects: list[int], seeds: list[int]) -> dict[str, Any]:
    sizes = [(128, 96), (80, 128)]
    return {
        "images": [seeded_image(seed, *sizes[seed]) for seed in seeds],
        "file_names": ["x"] * len(seeds),
        "targets": [seeded_target(seed, *sizes[seed], objects[seed], 3, bitmaps=False) for seed in seeds],
    }


def train_step(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    losses = model(batch)
    sum(losses.values()).backward()
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    gradients = {f"grad {name}": p.grad.clone() for name, p in inner.named_parameters()}
    buffers = {f"buffer {name}": b.clone() for name, b in inner.named_buffers()}
    return {name: loss.detach() for name, loss in losses.items()} | gradients | buffers


OBJECTS = [[4, 3], [0, 5], [0, 0]]


def rank_work(rank: int) -> tuple[list[dict[str, Tensor]], dict[str, Tensor], list[dict[str, Tensor]]]:
    norm = new_norm(BatchNorm)
    results = []
    for (first, second), (x, direction) in zip(NORM_CASES, norm_inputs(), strict=True):
        mine = slice(0, first) if rank == 0 else slice(first, first + second)
        results.append(normalise(norm, x[mine], direction[mine]))
    steps = [train_step(DistributedDataParallel(detector()), detector_batch(n, [rank])) for n in OBJECTS]
    return results, norm.state_dict(), steps


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return spawn(rank_work, tmp_path_factory.mktemp("gloo"))


def test_two_ranks_are_the_norm_of_the_concatenated_batch(ranks: list[Any]) -> None:
    reference = new_norm(nn.BatchNorm2d)
    for k, (case, (x, direction)) in enumerate(zip(NORM_CASES, norm_inputs(), strict=True)):
        a, b = (rank[0][k] for rank in ranks)
        assert [len(a["output"]), len(b["output"])] == list(case)
        if sum(case) == 0:
            continue
        wanted = normalise(reference, x, direction)
        for name in ("output", "x"):
            torch.testing.assert_close(torch.cat([a[name], b[name]]), wanted[name], atol=1e-9, rtol=1e-9)
        for name in ("weight", "bias"):
            torch.testing.assert_close(a[name] + b[name], wanted[name], atol=1e-9, rtol=1e-9)
    for rank in ranks:
        torch.testing.assert_close(rank[1], reference.state_dict(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("case", range(len(OBJECTS)))
def test_two_ranks_of_one_image_are_one_rank_of_two(case: int, ranks: list[Any]) -> None:
    """Losses, gradients after DDP and norm statistics, also when one or both images have no object."""
    wanted = train_step(detector(), detector_batch(OBJECTS[case], [0, 1]))
    a, b = (rank[2][case] for rank in ranks)
    assert a.keys() == wanted.keys()
    for name, value in wanted.items():
        found = (a[name] + b[name]) / 2 if name.startswith("loss") else a[name]
        torch.testing.assert_close(found, value, atol=1e-6, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
