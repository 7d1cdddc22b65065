"""The loop: gradients of the global batch, stops, precision, switches."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from support.engine_toy import BATCH, IMAGES, Encoder, ToyTask, make_config, outcome, run_ranks, run_toy

from mae_transfer.engine.distributed import Autocast, make_fabric
from mae_transfer.engine.loop import check_plan, train
from mae_transfer.engine.rng import seed_for_model
from mae_transfer.engine.sampler import StreamSampler
from mae_transfer.errors import DivergedError, UserError
from mae_transfer.run_folder.checkpoints import list_checkpoints, load_checkpoint
from mae_transfer.run_folder.metrics import read_metrics
from mae_transfer.runs.run import open_run_folder

PLAIN: dict[str, Any] = {
    "train__global_batch": 8,
    "train__eval_every_epochs": None,
    "schedule__steps": 3,
    "schedule__warmup_steps": 1,
    "optim__clip_grad": None,
    "optim__ema": None,
    "optim__layer_decay": 1.0,
    "optim__betas": (0.0, 0.999),
}


def gradients(folder: Path) -> dict[int, torch.Tensor]:
    """Of the last step: with beta1 = 0 AdamW's first moment IS the gradient."""
    state = load_checkpoint(list_checkpoints(folder / "checkpoints")[-1])
    return {index: moments["exp_avg"] for index, moments in state["optimizer"]["state"].items()}


def test_gradient_is_that_of_the_global_batch_however_it_is_cut(tmp_path: Path) -> None:
    """One forward pass of 8 = 3 + 3 + 2 = two ranks of 4 = two ranks of 3 + 1, in fp32, at the third step; the first
    step's also equals autograd on the eight images put together by hand."""
    task = {"noise": False}
    run_toy(tmp_path / "whole", changes=PLAIN | {"train__micro_batch": 8}, task=task)
    run_toy(tmp_path / "uneven", changes=PLAIN | {"train__micro_batch": 3}, task=task)
    for micro_batch in (4, 3):
        changes = PLAIN | {"train__micro_batch": micro_batch}
        assert run_ranks(tmp_path / f"two{micro_batch}", 2, changes=changes, task=task) == [0, 0]
    want = gradients(tmp_path / "whole")
    assert max(float(gradient.abs().max()) for gradient in want.values()) > 0.01
    for name in ("uneven", "two4", "two3"):
        got = gradients(tmp_path / name)
        assert got.keys() == want.keys()
        for index in want:
            assert (got[index] - want[index]).abs().max() <= 1e-6
        losses = [[line["loss"] for line in read_metrics(tmp_path / folder)] for folder in (name, "whole")]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)

    first = PLAIN | {"schedule__steps": 1, "schedule__warmup_steps": 0, "train__micro_batch": 3}
    run_toy(tmp_path / "first", changes=first, task=task)
    toy = ToyTask(3, noise=False)
    seed_for_model(3)
    model = toy.build_model(Encoder(False))
    sampler = StreamSampler(num_images=IMAGES, global_batch=8, micro_batch=8, seed=3, total=1)
    batch = toy.train_dataset.collate([toy.train_dataset[key] for key in next(iter(sampler))])
    sum(model(batch).values()).backward()
    by_name = {name: p.grad for name, p in model.named_parameters()}
    names = load_checkpoint(list_checkpoints(tmp_path / "first/checkpoints")[-1])["optimizer"]["param_groups"][0][
        "names"
    ]
    for index, gradient in gradients(tmp_path / "first").items():
        assert (gradient - by_name[names[index]]).abs().max() <= 1e-6  # type: ignore[operator]


def test_noise_does_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    """With micro-batches of 2, dropout, batch norm and numpy noise included, one rank and two give the same losses."""
    changes = {"train__micro_batch": 2, "train__eval_every_epochs": None}
    run_toy(tmp_path / "one", changes=changes)
    assert run_ranks(tmp_path / "two", 2, changes=changes, workers=1) == [0, 0]
    losses = [[line["loss"] for line in read_metrics(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    ranks = [torch.load(tmp_path / f"two.rank{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(ranks[0][key], ranks[1][key]) for key in ranks[0] if "num_batches" not in key)


@pytest.mark.parametrize("ranks", [1, 2])
def test_nan_stops_before_the_update_and_names_the_images(ranks: int, tmp_path: Path) -> None:
    """The bad image comes in step 5; checkpoints are due after each second step. Only the images of its own micro-batch
    are named, whichever rank has it."""
    changes = {"train__micro_batch": 1, "train__checkpoint_every": 2, "train__global_batch": 2, "schedule__steps": 5}
    sampler = StreamSampler(num_images=IMAGES, global_batch=2, micro_batch=1, seed=3, total=5)
    epoch, index = sampler.key(2 * 4 + 1)  # the second image of the fifth step: rank 1's, if there are two
    assert epoch == 0
    folder = tmp_path / "run"
    options: dict[str, Any] = {"changes": changes | {"train__eval_every_epochs": None}, "task": {"bad": {index: "nan"}}}
    if ranks == 1:
        with pytest.raises(DivergedError) as error:
            run_toy(folder, **options)
        message = str(error.value)
    else:
        assert run_ranks(folder, 2, **options) == [1, 1]
        message = outcome(folder)["message"]
    assert message.startswith("step 5: loss_x, loss_y, the gradient norm not finite; images: ")
    assert f"images: image{index}.jpg; the last good checkpoint is step_00000004.pt" in message
    assert "\n" not in message
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step_00000002.pt", "step_00000004.pt"]
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_error_of_a_sample_arrives_as_it_is(workers: int, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        run_toy(tmp_path / "run", workers=workers, task={"bad": {4: "error"}})
    assert str(error.value) == "image4.jpg is truncated; replace it"


def test_bf16_autocasts_the_model_but_not_its_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype] = set()
    forward = Encoder.forward

    def spy(self: Encoder, images: torch.Tensor) -> torch.Tensor:
        features = forward(self, images)
        seen.add(images.dtype)
        seen.add(self.blocks[0][1](features).dtype)
        return features

    monkeypatch.setattr(Encoder, "forward", spy)
    result = run_toy(tmp_path / "run", changes={"train__precision": "bf16", "train__eval_every_epochs": None})
    assert seen == {torch.float32, torch.bfloat16}
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}


def test_result_and_history(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """12 steps of 4 of 10 images: 4.8 epochs, evaluations after steps 3, 5, 8 and 10, none by the loop at the end."""
    with caplog.at_level(logging.INFO, logger="mae_transfer"):
        result = run_toy(tmp_path / "run", changes={"train__log_every": 5})
    assert result.steps == 12
    assert not result.model.training
    assert result.peak_memory > 1e6
    assert result.seconds > 0
    assert result.images_per_second
    assert [(entry["epoch"], entry["step"]) for entry in result.history] == [(1, 2), (2, 5), (3, 7), (4, 10), (5, 12)]
    assert ["eval" in entry for entry in result.history] == [False, True, False, True, False]
    assert result.history[3]["eval"]["error"] < result.history[1]["eval"]["error"]
    ema = load_checkpoint(tmp_path / "run/checkpoints/step_00000012.pt")["ema"]
    assert all(torch.equal(ema[f"module.{key}"], value) for key, value in result.model.state_dict().items())
    # The lr of update k (from 1) is that of step k - 1 (from 0): warm-up of 3 steps to the cosine, layers 0.7 apart.
    lrs = [line["lr"] for line in read_metrics(tmp_path / "run") if "lr" in line]
    cosine = [0.01 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    assert lrs[3:] == pytest.approx(cosine[3:])
    assert lrs[:3] == pytest.approx([1e-5 + (cosine[3] - 1e-5) * step / 3 for step in range(3)])
    groups = load_checkpoint(tmp_path / "run/checkpoints/step_00000012.pt")["optimizer"]["param_groups"]
    assert {round(group["lr"] / cosine[11], 9) for group in groups} == {0.343, 0.49, 0.7, 1.0}
    line = read_metrics(tmp_path / "run")[0]
    assert line["loss"] == pytest.approx(line["loss_x"] + line["loss_y"])
    assert 0 <= line["data_wait"] <= 1
    assert {"step", "epoch", "lr", "grad_norm", "images_per_second", "memory", "seconds"} <= line.keys()
    log = (tmp_path / "run/log.txt").read_text()
    assert [f"step {step}/12" in log for step in (4, 5, 10, 12)] == [False, True, True, True]


def test_compile_keeps_the_names_and_tensorboard_is_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    changes = {
        "train__compile": True,
        "train__tensorboard": True,
        "schedule__steps": 4,
        "train__eval_every_epochs": None,
    }
    with torch.compiler.set_stance("force_eager"):
        run_toy(tmp_path / "run", changes=changes)
    assert all(
        "_orig_mod" not in key for key in load_checkpoint(tmp_path / "run/checkpoints/step_00000004.pt")["model"]
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.precision=fp16 needs a CUDA device; on CPU use"):
        make_fabric("cpu", "fp16")
    with pytest.raises(UserError, match="device='tpu': must be auto, cpu or cuda"):
        make_fabric("tpu", "fp32")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch sees no CUDA device"):
            make_fabric("cuda", "fp32")
    with pytest.raises(UserError, match="cannot be reached with 3 processes"):
        check_plan(make_config(), IMAGES, 3)
    assert check_plan(make_config(), IMAGES, BATCH).total == 12


def test_resume_with_other_data_or_another_model_is_refused(tmp_path: Path) -> None:
    changes = {"schedule__steps": 4, "train__eval_every_epochs": None}
    run_toy(tmp_path / "run", changes=changes)
    with pytest.raises(UserError, match="was trained on 10 images, the training set now has 9"):
        run_toy(tmp_path / "run", changes=changes, resume=True, task={"images": 9})
    with pytest.raises(UserError, match=r"step_00000004.pt has other parameter groups than this model"):
        run_toy(tmp_path / "run", changes=changes, resume=True, task={"noise": False})


def test_parameter_without_gradient_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "forward", lambda self, images: self.patch_embed(images).flatten(2).transpose(1, 2))
    with pytest.raises(RuntimeError, match=r"no loss depends on encoder\.pos_embed, encoder\.blocks"):
        run_toy(tmp_path / "run")


def test_make_fabric_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert isinstance(make_fabric("auto", "bf16" if not torch.cuda.is_available() else "fp16"), Fabric)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_fp16_overflow_skips_the_step_until_the_scale_is_hopeless(tmp_path: Path) -> None:
    """fp16 with its gradient scaler, on the CPU so that the test needs no GPU (`make_fabric` offers it on CUDA only).

    The scale starts at 2 ** 127, where every gradient overflows; each such step is skipped and halves it.
    """

    def run(name: str, scale: float, *, resume: bool = False, overflow: bool = False) -> dict[str, Any]:
        plugin = Autocast("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[plugin])
        changes = {"schedule__steps": 6, "schedule__warmup_steps": 0, "train__eval_every_epochs": None}
        config = make_config(**changes, train__checkpoint_every=3, train__keep_checkpoints=9)
        toy = ToyTask(3)
        seed_for_model(3)
        model = toy.build_model(Encoder(True))
        if overflow:
            model.head.weight.register_hook(lambda gradient: gradient + torch.inf)
        with open_run_folder(fabric, tmp_path / name, config, resume=resume) as folder:
            train(fabric, toy, model, config, folder, workers=0, resume=resume)
        return load_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[-1])

    run("overflow", 2.0**127)
    early, late = (load_checkpoint(path) for path in list_checkpoints(tmp_path / "overflow/checkpoints"))
    assert (early["scaler"]["scale"], late["scaler"]["scale"]) == (2.0**124, 2.0**121)
    assert torch.equal(early["model"]["head.weight"], late["model"]["head.weight"])
    assert [line["grad_norm"] for line in read_metrics(tmp_path / "overflow")] == [None] * 6
    (tmp_path / "overflow/checkpoints/step_00000006.pt").unlink()
    assert run("overflow", 1.0, resume=True)["scaler"] == late["scaler"]

    assert run("fine", 1024.0)["optimizer"]["state"][0]["step"] == 6
    assert all(line["grad_norm"] < 100 for line in read_metrics(tmp_path / "fine"))  # unscaled before it is measured
    with pytest.raises(DivergedError, match="step 1: the gradient norm not finite"):
        run("hopeless", 5e-5, overflow=True)
