"""`train.shard`: two gloo ranks that share the parameters give what one process gives."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support import processes
from support.layouts.rotary import DINOV3
from support.ranks import spawn
from support.small_encoders import DEPTH, DIM, HEADS, PATCH, SMALL, encoder_of, randomise, small_vit
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

import mae_transfer as mt
from mae_transfer.engine import shard
from mae_transfer.errors import UserError
from mae_transfer.pretrain.card import METHODS
from mae_transfer.run_folder.checkpoints import list_checkpoints, load_checkpoint
from mae_transfer.run_folder.metrics import read_metrics
from mae_transfer.run_folder.record import read_record
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.tasks import task_cards
from mae_transfer.tasks.card import load_object

STEPS = (
    "schedule.steps=4",
    "schedule.warmup_steps=1",
    "train.checkpoint_every=2",
    "train.global_batch=8",
    "train.precision=fp32",
)
SMALL_RUN = ("data.image_size=32", "data.workers=0", "eval.pictures=0")


class Case(NamedTuple):
    task: str
    option: str
    overrides: tuple[str, ...]


CASES = {
    "mae": Case(
        *("pretrain", "mae"),
        (
            *("model.decoder_depth=1", "model.decoder_width=32", "optim.ema=0.9", "optim.clip_grad=0.5"),
            *("eval.pictures=1", "train.micro_batch=8", "backbone.grad_checkpointing=true", "backbone.drop_path=0.2"),
        ),
    ),
    "linear": Case("folder", "linear", ("train.micro_batch=8", "optim.kind=lars")),
    "finetune": Case(
        *("folder", "finetune"),
        # What draws by the micro-batch is left out: it is cut otherwise here.
        (*("train.micro_batch=2", "optim.clip_grad=0.5"), *("model.mixup=0", "model.cutmix=0", "model.erasing=0")),
    ),
}
"""Average, clipping, gradient checkpointing, drop path; a frozen encoder, LARS; accumulation, layer decay, clipping."""


def run(folder: Path, name: str, ranks: int, *overrides: str, kill: int = 0, **how: bool) -> list[int | None]:
    """The exit codes of a run; kill: in the update of that number the last rank kills itself; how: as of mt's."""
    return processes.start(_run, folder, name, ranks, overrides, kill, how, ranks=ranks).wait(timeout=300, grace=3)


def _run(
    rank: int, folder: Path, name: str, ranks: int, more: tuple[str, ...], kill: int, how: dict[str, bool]
) -> None:
    case, updates = CASES[name], 0

    def before_update(optimizer: Optimizer, *_: Any) -> None:
        nonlocal updates
        updates += 1
        if updates == kill and rank == ranks - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        own = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
        (folder.parent / f"{folder.name}.rank{rank}.own").write_text(str(own / sum(p.numel() for p in parameters)))

    register_optimizer_step_pre_hook(before_update)
    overrides = (*STEPS, *SMALL_RUN, *case.overrides, *more)
    overrides += (f"train.shard={str(ranks > 1).lower()}",)
    options: dict[str, Any] = {"data": "synthetic", "preset": "smoke", "subset": 8, "device": "cpu"}
    options |= {"output": folder, "overrides": overrides, **how}
    try:
        if case.task == "pretrain":
            mt.run_pretrain(case.option, "vit_nano_p8", **options)
        else:
            mt.run_transfer(case.task, "random_vit_nano", protocol=case.option, **options)
    except UserError as error:
        (folder.parent / f"{folder.name}.rank{rank}.error").write_text(str(error))
        sys.exit(2)


def state_of(folder: Path) -> dict[str, Any]:
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[-1])


def tensors(value: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(inner, f"{place}/{key}")


def assert_same(folder: Path, reference: Path, tolerance: float = 1e-5) -> None:
    """Losses, gradient norms, metrics, and the last checkpoint: weights, average, optimizer."""
    got, want = (read_metrics(f) for f in (folder, reference))
    assert [line["step"] for line in got] == [line["step"] for line in want] == [1, 2, 3, 4]
    for a, b in zip(got, want, strict=True):
        chosen = [key for key in b if key.startswith(("loss", "grad_norm"))]
        assert {key: a[key] for key in chosen} == pytest.approx({key: b[key] for key in chosen}, rel=tolerance)
    records = [read_record(f / "record.json") for f in (folder, reference)]
    assert records[0]["metrics"] == pytest.approx(records[1]["metrics"], rel=tolerance)
    assert all(records[0][key] == records[1][key] for key in ("parameters", "encoder_flops"))
    found, expected = (state_of(f) for f in (folder, reference))
    for part in ("model", "ema", "optimizer"):
        mine, other = (dict(tensors(state[part])) for state in (found, expected))
        assert list(mine) == list(other)
        for place in other:
            torch.testing.assert_close(mine[place], other[place], rtol=0, atol=tolerance, msg=f"{part}{place}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """The folder of each case's run by one process and by two ranks."""
    folders = {}
    for name in CASES:
        for ranks in (1, 2):
            folders[name, ranks] = tmp_path_factory.mktemp(name) / str(ranks)
            assert run(folders[name, ranks], name, ranks) == [0] * ranks
    return folders


@pytest.mark.process
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one(name: str, runs: dict[tuple[str, int], Path]) -> None:
    folder = runs[name, 2]
    assert_same(folder, runs[name, 1])
    shares = [float((folder.parent / f"2.rank{rank}.own").read_text()) for rank in range(2)]
    assert sum(shares) == pytest.approx(1)
    assert max(shares) <= 0.6  # the head of 5 classes has 5 rows; positions and tokens have one row, which is not cut


@pytest.mark.process
def test_resume(runs: dict[tuple[str, int], Path], tmp_path: Path) -> None:
    """From the checkpoint of the second step of a killed run with as many ranks; of one, and of two, with the other."""
    folders = {others: tmp_path / others for others in ("2 to 2", "2 to 1", "1 to 2")}
    assert run(folders["2 to 2"], "mae", 2, kill=3)[-1] == -signal.SIGKILL
    shutil.copytree(folders["2 to 2"], folders["2 to 1"])
    shutil.copytree(runs["mae", 1], folders["1 to 2"])
    list_checkpoints(folders["1 to 2"] / "checkpoints")[-1].unlink()
    for name, folder in folders.items():
        assert state_of(folder)["step"] == 2
        ranks = int(name[-1])
        assert run(folder, "mae", ranks, resume=True) == [0] * ranks
        assert_same(folder, runs["mae", ranks], 0 if name == "2 to 2" else 1e-5)


@pytest.mark.process
def test_evaluation_alone(runs: dict[tuple[str, int], Path], tmp_path: Path) -> None:
    shutil.copytree(runs["mae", 2], tmp_path / "run")
    (tmp_path / "run" / "record.json").unlink()
    assert run(tmp_path / "run", "mae", 2, eval_only=True) == [0, 0]
    metrics = [read_record(f / "record.json")["metrics"] for f in (tmp_path / "run", runs["mae", 2])]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
@pytest.mark.process
def test_mixed_precision(tmp_path: Path) -> None:
    """Weights and their gradients are shared in fp32, so that bf16 differs by the order of a sum alone."""
    for ranks in (1, 2):
        assert run(tmp_path / str(ranks), "mae", ranks, "train.precision=bf16", "train.micro_batch=2") == [0] * ranks
    assert_same(tmp_path / "2", tmp_path / "1", 1e-3)


def test_cases_are_all_that_is_allowed() -> None:
    classes = {("pretrain", method.name): load_object(method.code) for method in METHODS}
    folder = next(card for card in task_cards() if card.name == "folder")
    classes |= {("folder", protocol.name): load_object(protocol.code) for protocol in folder.protocols}
    allowed = {key for key, each in classes.items() if each.shards}
    assert allowed == {(case.task, case.option) for case in CASES.values()}


@pytest.mark.parametrize(
    ("ranks", "shards", "override", "why"),
    [
        (2, False, "train.compile=false", "pretrain beit has not been compared with a run without"),
        (1, True, "train.compile=false", "there is one process; start one per GPU by torchrun or srun"),
        (2, True, "train.precision=fp16", "use train.precision=bf16"),
        (2, True, "train.compile=true", "use train.compile=false"),
    ],
)
def test_refused(ranks: int, shards: bool, override: str, why: str) -> None:
    for sharded in (True, False):
        overrides = [override, f"train.shard={str(sharded).lower()}"]
        config = resolve_config("pretrain", "vit_nano_p8", protocol="mae", data="synthetic", overrides=overrides)
        if sharded:
            with pytest.raises(UserError, match=why) as raised:
                shard.check_shard(config, ranks, shards, "pretrain beit")
            assert str(raised.value).startswith("train.shard=true: ")
            assert "\n" not in str(raised.value)
        else:
            shard.check_shard(config, ranks, shards, "pretrain beit")


def test_a_run_is_refused_before_it_makes_a_file(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": "synthetic", "preset": "smoke", "overrides": ["train.shard=true"]}
    with pytest.raises(UserError, match="train.shard=true: there is one process"):
        mt.run_pretrain("mae", "vit_nano_p8", output=tmp_path / "run", **options)
    with pytest.raises(UserError, match="train.shard=true: folder attentive has not been compared"):
        mt.run_transfer("folder", "random_vit_nano", protocol="attentive", output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


# ---- the encoder


class Wrapped(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return sum(x.square().mean() for x in self.encoder(images))  # type: ignore[return-value]


def encoders() -> dict[str, nn.Module]:
    shape = {
        "img_size": 16,
        "patch_size": PATCH,
        "embed_dim": DIM,
        "depth": DEPTH,
        "num_heads": HEADS,
        "num_classes": 0,
    }
    eva = randomise(Eva(**shape, **DINOV3, dynamic_img_size=True))
    return {
        "windows": encoder_of(small_vit(), window_size=2, num_global_blocks=2, rel_pos=True),
        "per block": encoder_of(small_vit(), window_size=2, num_global_blocks=2, rel_pos="decomposed"),
        "rotary": encoder_of(eva, SMALL, grad_checkpointing=True),
    }


def test_blocks_run_in_parts(tmp_path: Path) -> None:
    """With windows and positions of several kinds; and no block is whole while another runs."""
    for ranks in spawn(_encoder_work, tmp_path):
        for name, found in ranks.items():
            torch.testing.assert_close(*found["loss"])
            torch.testing.assert_close(found["got"], found["want"])
            depth = list(range(DEPTH))
            assert found["whole"][:DEPTH] == [[i] for i in depth], name
            assert found["whole"][DEPTH:] == ([[i] for i in reversed(depth)] if name == "rotary" else []), name


def _encoder_work(rank: int) -> dict[str, Any]:
    mesh, found = init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",)), {}
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for name, encoder in encoders().items():
        model = Wrapped(encoder).train()
        loss = model(images)
        loss.backward()
        want = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        shard.shard(model, mesh)
        whole: list[list[int]] = []
        seen = partial(_note_whole_blocks, encoder, whole)
        for block in encoder.vit.blocks:
            block.norm1.register_forward_hook(seen)
        sharded = model(images)
        sharded.backward()
        got = {key: shard.whole(p.grad) for key, p in model.named_parameters() if p.grad is not None}
        found[name] = {"loss": (sharded.detach(), loss.detach()), "want": want, "got": got, "whole": whole}
    return found


def _note_whole_blocks(encoder: Any, whole: list[list[int]], *_: Any) -> None:
    blocks = enumerate(encoder.vit.blocks)
    whole.append([i for i, b in blocks if not all(isinstance(p, DTensor) for p in b.parameters())])
