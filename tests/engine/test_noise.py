"""Drop path and Dropout2d by sample: the distribution of timm's and torch's, and the same however a batch is cut."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from support.engine_toy import Encoder, Model, ToyTask, make_config
from timm.layers import DropPath
from torch import nn
from torch.utils.checkpoint import checkpoint

from mae_transfer.engine.distributed import make_fabric
from mae_transfer.engine.loop import train
from mae_transfer.engine.noise import SampleNoise
from mae_transfer.engine.rng import seed_for_model
from mae_transfer.runs.run import open_run_folder

CPU = torch.device("cpu")


def dropped(model: nn.Module, noise: SampleNoise, positions: range, seed: int = 3, channels: int = 5) -> torch.Tensor:
    noise.draw(seed, positions, CPU)
    return model(torch.ones(len(positions), channels, 2, 2))


@pytest.mark.parametrize(("layer", "kept"), [(DropPath(0.3), 0.7), (nn.Dropout2d(0.1), 0.9)])
def test_numbers_are_those_of_the_original_layer(layer: nn.Module, kept: float) -> None:
    """0 or 1 / kept, whole rows or whole channels, each with its probability; independent between layers and seeds."""
    model = nn.Sequential(layer)
    noise = SampleNoise(model)
    assert list(model.state_dict()) == []
    found = dropped(model, noise, range(4000))
    assert torch.equal(found.unique(), torch.tensor([0, 1 / kept]))
    assert torch.equal(found, found[:, :, :1, :1].expand_as(found)), "whole channels"
    rows = found[:, 0, 0, 0] > 0
    others = found[:, 1, 0, 0] > 0
    assert bool((rows == others).all()) == isinstance(layer, DropPath), "whole rows"
    spread = 4 * (kept * (1 - kept) / 4000) ** 0.5
    both = [rows, others] if isinstance(layer, nn.Dropout2d) else [rows]
    both.append(dropped(model, noise, range(4000), seed=4)[:, 0, 0, 0] > 0)
    both.append(dropped(model, noise, range(4000, 8000))[:, 0, 0, 0] > 0)
    for one in both:
        assert one.float().mean().item() == pytest.approx(kept, abs=spread)
    for one, other in itertools.combinations(both, 2):
        assert (one & other).float().mean().item() == pytest.approx(kept * kept, abs=spread), "independent"
    model.eval()
    assert (dropped(model, noise, range(4)) == 1).all()


def test_a_batch_in_pieces_a_layer_run_again_and_rows_that_are_no_images() -> None:
    model = nn.Sequential(DropPath(0.5), nn.Dropout2d(0.3), DropPath(0.5), nn.Dropout2d(0.3))
    noise = SampleNoise(model)
    whole = dropped(model, noise, range(40, 56))
    for size in (1, 3, 16):
        pieces = [dropped(model, noise, range(i, min(i + size, 56))) for i in range(40, 56, size)]
        assert torch.equal(torch.cat(pieces), whole)
    noise.draw(3, range(40, 56), CPU)
    images = torch.ones(16, 5, 2, 2, requires_grad=True)
    again = checkpoint(model, images, use_reentrant=False)
    again.sum().backward()
    assert torch.equal(again, whole)
    assert torch.equal(images.grad, whole), "recomputed with the same noise"
    assert torch.equal(model(torch.ones(32, 5, 2, 2)).unique().ne(0).sum(), torch.tensor(1)), "left to the originals"


class SplitTransposeBlock(nn.Module):
    """Named as EdgeNeXt's block, which calls its DropPath twice."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_path = DropPath(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.drop_path(x), self.drop_path(x)])


def test_a_layer_at_rest_stays_so_and_one_called_twice_draws_twice() -> None:
    resting = DropPath(0.5)
    model = nn.Sequential(resting, DropPath(0.5))
    noise = SampleNoise(model)
    model.train()
    resting.eval()  # as an encoder does after each train()
    assert torch.equal(dropped(model, noise, range(64)).unique(), torch.tensor([0.0, 2.0])), "not 4: dropped once"
    twice = nn.Sequential(SplitTransposeBlock())
    one, other = dropped(twice, SampleNoise(twice), range(64))
    assert not torch.equal(one, other)


class Dropping(ToyTask):
    """Without batch norm, which goes by the micro-batch."""

    def build_model(self, encoder: Encoder) -> Model:
        encoder.patch_embed = nn.Sequential(encoder.patch_embed, nn.Dropout2d(0.3))
        for block in encoder.blocks:
            block.append(DropPath(0.5))
        return super().build_model(encoder)


def test_a_training_has_the_same_losses_in_any_micro_batches(tmp_path: Path) -> None:
    losses: dict[Any, list[float]] = {}
    for kind, size in ((Dropping, 8), (Dropping, 3), (Dropping, 1), (ToyTask, 8)):
        config = make_config(train__global_batch=8, train__micro_batch=size, train__eval_every_epochs=None)
        task = kind(config.seed, noise=False)
        seed_for_model(config.seed)
        model = task.build_model(Encoder(False))
        fabric = make_fabric("cpu", "fp32")
        seen: list[float] = []
        model.register_forward_hook(
            lambda model, args, out, seen=seen: seen.append(len(args[0]["images"]) * sum(out.values()).item())
        )
        with open_run_folder(fabric, tmp_path / f"{kind.__name__}{size}", config) as folder:
            train(fabric, task, model, config, folder, workers=0)
        steps = len(seen) // 12
        losses[kind, size] = [sum(seen[i : i + steps]) / 8 for i in range(0, len(seen), steps)]
    assert losses[Dropping, 3] == pytest.approx(losses[Dropping, 8], abs=1e-5)
    assert losses[Dropping, 1] == pytest.approx(losses[Dropping, 8], abs=1e-5)
    assert losses[ToyTask, 8] != pytest.approx(losses[Dropping, 8], abs=1e-2)
