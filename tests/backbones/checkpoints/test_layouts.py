"""Every layout: the encoder's output is its source's, no other reader takes it, and no tensor of it can go astray."""

import functools
import re

import pytest
import torch
from support.layouts import LAYOUTS, SIZE, layout

from mae_transfer.backbones.checkpoints import loader
from mae_transfer.backbones.checkpoints.state_dict import unwrap
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.errors import UserError

FIRST_BLOCK = re.compile(r"(?!.*decoder)(.*\.)?(blocks|layers?|resblocks)\.0\.|.*encoderblock_0/")


def encoder_of(case, content=None, **options):
    vit, report = loader.load(case.spec, case.content if content is None else content, "some.pth")
    encoder = ViTEncoder(vit, report.spec, taps=(0, 1), **options).eval()
    encoder.load_report = report
    return encoder


@pytest.mark.parametrize("name", LAYOUTS)
def test_output_is_the_sources(name):
    case = layout(name)
    generator = torch.Generator().manual_seed(3)
    for size in ((SIZE, SIZE), *case.sizes):
        images = torch.randn(2, 3, *size, generator=generator)
        per_size = {"img_size": size} if case.spec.rel_pos_tables else {}
        with torch.no_grad():
            maps = encoder_of(case, **per_size, **case.options)(images)
        for ours, theirs in zip(maps, case.maps(images), strict=True):
            assert theirs.std() > 0.1
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_reader_and_no_other_takes_it(name):
    case = layout(name)
    state, _ = unwrap(case.content, "test")
    assert [reader.NAME for reader in loader.READERS if reader.detects(state)] == [case.reader]


def damages(key, tensor, rest):
    yield "dropped", rest
    yield "renamed", rest | {f"{key}x": tensor}
    if tensor.ndim:
        yield "cut", rest | {key: tensor[..., :-1]}
        yield "flattened", rest | {key: tensor.reshape(-1, 1, 1)}
    if tensor.is_floating_point():
        bad = tensor.clone(memory_format=torch.contiguous_format)
        bad.view(-1)[-1] = float("nan")
        yield "corrupt", rest | {key: bad}


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_tensor_is_lost_silently(name, monkeypatch):
    """Dropping, renaming, reshaping or corrupting any one tensor is an error that names it.

    Of block 0, which is like block 1, tensors are only dropped. `spare` ones may be gone if the weights stay the same.
    """
    case = layout(name)
    expected = [p.clone() for p in loader.load(case.spec, case.content, "some.pth")[0].parameters()]
    # one empty model for all the attempts; what a successful one loads into it is compared at once
    monkeypatch.setattr(loader, "build", functools.cache(loader.build))
    silent = []
    if name != "own run":  # which may hold any task's modules
        with pytest.raises(UserError, match=r"unexpected (\S+\.)?extra\.weight|with extra\.\* beside it"):
            loader.load(case.spec, case.with_state(case.state | {"extra.weight": torch.ones(3)}), "some.pth")
    for key, tensor in case.state.items():
        rest = {other: t for other, t in case.state.items() if other != key}
        all_damages = list(damages(key, tensor, rest))
        for damage, state in all_damages[: 1 if FIRST_BLOCK.match(key) else None]:
            try:
                vit, _ = loader.load(case.spec, case.with_state(state), "some.pth")
            except UserError as error:
                message = str(error)
                if (
                    key.removeprefix("module.").removeprefix("backbone.") not in message
                    or "\n" in message
                    or "some.pth" not in message
                ):
                    silent.append((damage, key, message))
                continue
            same = all(torch.equal(a, b) for a, b in zip(vit.parameters(), expected, strict=True))
            if key not in case.spare or not same:
                silent.append((damage, key, "loaded"))
    assert not silent, f"{len(silent)}: {silent[:6]}"
