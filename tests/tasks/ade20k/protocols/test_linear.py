"""Linear segmentation against DINOv2's BNHead written from its formulas; learning rates of both recipes."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from mae_transfer.backbones.load import load_backbone
from mae_transfer.cli.transfer import main
from mae_transfer.config.layers import find_blocks
from mae_transfer.config.schedule import make_schedule
from mae_transfer.engine.optim import param_groups
from mae_transfer.errors import UserError
from mae_transfer.run_folder.record import read_record
from mae_transfer.run_folder.settings import settings_id
from mae_transfer.runs.api import run_transfer
from mae_transfer.runs.plan import plan_runs
from mae_transfer.runs.resolve import load_config
from mae_transfer.runs.settings import make_settings
from mae_transfer.tasks.ade20k.protocols.linear import Linear
from mae_transfer.tasks.ade20k.transforms import IGNORE

CLASSES = 5
SIZES = ["data.image_size=40", "data.short_side=40", "data.long_side=160", "eval.stride=32"]


def build(*overrides, recipe="linear_dinov2"):
    """A model on an encoder whose patch of 16 does not divide the 40 pixels: framed to 48."""
    torch.manual_seed(0)
    config = load_config(
        "ade20k", "random_vit_nano", protocol="linear", overrides=[f"recipe={recipe}", *SIZES, *overrides]
    )
    protocol = Linear(config)
    encoder = load_backbone("random_vit_nano", **protocol.encoder_options(16))
    return protocol.build_model(encoder, CLASSES), config


def batch(images=2):
    generator = torch.Generator().manual_seed(1)
    return {
        "images": [torch.randint(256, (3, 40, 40), generator=generator, dtype=torch.uint8) for _ in range(images)],
        "labels": [
            torch.randint(IGNORE, CLASSES, (40, 40), generator=generator, dtype=torch.int16) for _ in range(images)
        ],
        "file_names": [str(i) for i in range(images)],
    }


def framed(images):
    """Images as ImageNet normalises them, in DINOv2's CenterPadding: 8 zeros shared between both sides."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return F.pad((torch.stack(images) / 255 - mean) / std, (4, 4, 4, 4))


@pytest.mark.parametrize(
    ("layers", "blocks"), [("last", [7]), ("last_four", [4, 5, 6, 7]), ("four_even", [1, 3, 5, 7])]
)
def test_logits_and_gradients_are_those_of_bnhead(layers, blocks):
    model, _ = build(f"probe.layers={layers}")
    model.train()
    data = batch()
    with torch.no_grad():
        model.encoder.vit.pos_embed.zero_()  # timm resamples positions by another rule
        # timm's own forward: get_intermediate_layers(n, reshape=True, norm=True), side by side
        vit = model.encoder.vit.eval()
        vit.norm = model.encoder.norm
        found = vit.forward_intermediates(framed(data["images"]), indices=blocks, norm=True, intermediates_only=True)
        x = torch.cat(found, dim=1)
    assert x.shape == (2, 64 * len(blocks), 3, 3)
    weight, bias = model.classifier.weight.detach().clone(), torch.zeros(CLASSES)
    gamma, beta = torch.ones(x.shape[1]), torch.zeros(x.shape[1])
    parameters = [p.requires_grad_() for p in (gamma, beta, weight, bias)]
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    normed = (x - mean) / (var + 1e-5).sqrt() * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)
    logits = torch.einsum("bchw,kc->bkhw", normed, weight[:, :, 0, 0]) + bias.view(1, -1, 1, 1)
    targets = torch.stack(data["labels"]).long()
    large = F.interpolate(logits, size=(40, 40), mode="bilinear", align_corners=False)
    picked = large.log_softmax(1).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    loss = -(picked * (targets != IGNORE)).sum() / targets.numel()  # ignored pixels count in the number
    loss.backward()

    losses = model(data)
    losses["loss_seg"].backward()
    torch.testing.assert_close(losses["loss_seg"], loss, atol=1e-6, rtol=1e-5)
    ours = [model.norm.weight, model.norm.bias, model.classifier.weight, model.classifier.bias]
    for theirs, parameter in zip(parameters, ours, strict=True):
        torch.testing.assert_close(parameter.grad, theirs.grad, atol=1e-5, rtol=1e-5)
    model.norm.reset_running_stats()
    model.norm.momentum = 1.0
    with torch.no_grad():
        normalised = [model.encoder.normalise(image) for image in data["images"]]
        torch.testing.assert_close(model.logits(torch.stack(normalised)), large.detach(), atol=1e-5, rtol=1e-5)


def test_the_encoder_takes_no_part_in_the_graph():
    model, config = build("probe.layers=last_four")
    model.train()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        model(batch())["loss_seg"].backward()
    maps, logits = 2 * 4 * 64 * 9, 2 * CLASSES * 40 * 40
    assert max(saved) <= max(maps, logits), "no activation of the encoder is kept"
    trained = {name for group in param_groups(model, config.optim) for name in group["names"]}
    assert trained == {"norm.weight", "norm.bias", "classifier.weight", "classifier.bias"}
    assert all(p.grad is None for p in model.encoder.parameters())


def test_learning_rates_are_the_published_ones_at_every_step():
    poly, cycle = (
        load_config("ade20k", "mae_vit_b", protocol="linear", overrides=[f"recipe={name}"])
        for name in ("linear_dinov2", "linear_dinov3")
    )
    for config in (poly, cycle):
        assert (config.optim.lr, config.train.global_batch, config.schedule.steps) == (1e-3, 16, 40000)
    assert (poly.optim.weight_decay, cycle.optim.weight_decay) == (1e-4, 1e-3)
    of_poly, of_cycle = (make_schedule(config.schedule, 20210, 16) for config in (poly, cycle))
    for step in range(40000):
        # mmcv 0.x: PolyLrUpdaterHook, then its linear warm-up multiplies
        expected = 1 - step / 40000
        if step < 1500:
            expected *= 1 - (1 - step / 1500) * (1 - 1e-6)
        assert of_poly.factor(step) == pytest.approx(expected, abs=1e-12)
        # WarmupOneCycleLR._compute_lr_momentum; train_step calls scheduler.step() after every update but the first
        done = 0 if step == 0 else step - 1
        if done < 1500:
            expected = (1 - (1 - done / 1500) * (1 - 1e-6)) * (1 - done / 40000)
        else:
            expected = (math.cos(math.pi * (done + 1) / 40000) + 1) / 2
        assert of_cycle.factor(step) == pytest.approx(expected, abs=1e-12)


def test_layers_by_name_and_number():
    assert find_blocks("four_even", 24, "") == (4, 11, 17, 23), "as DINOv3 has it for ViT-L"
    assert find_blocks("four_even", 12, "") == (2, 5, 8, 11)
    assert find_blocks("last_four", 12, "") == (8, 9, 10, 11)
    assert find_blocks((0, 3), 4, "") == (0, 3)
    for wrong in ((12,), (3, 2), (1, 1), ()):
        with pytest.raises(UserError, match=r"probe.layers=.* ascending block numbers from 0 to 11 of x"):
            find_blocks(wrong, 12, "x")


@pytest.mark.parametrize("recipe", ["linear_dinov2", "linear_dinov3"])
def test_a_run_leaves_the_encoder_as_it_was(tmp_path, recipe):
    checkpoint = tmp_path / "encoder.pt"
    torch.manual_seed(7)
    encoder = load_backbone("random_vit_nano", final_norm=True)
    weights = encoder.vit.state_dict() | {f"norm.{k}": v + 0.25 for k, v in encoder.norm.state_dict().items()}
    torch.save({"model": weights}, checkpoint)
    record = run_transfer(
        "ade20k",
        "mae_vit_nano",
        protocol="linear",
        preset="smoke",
        checkpoint=checkpoint,
        device="cpu",
        output=tmp_path / "run",
        overrides=[f"recipe={recipe}", *SIZES, "schedule.steps=4", "eval.pictures=1"],
    )
    assert record["row"] == {"name": "linear", "frozen": True, "rank": 1}
    assert record["metrics"].keys() >= {"mIoU", "mAcc", "aAcc"}
    (newest,) = sorted((tmp_path / "run" / "checkpoints").glob("step_*.pt"))[-1:]
    after = torch.load(newest, weights_only=False)["model"]
    for name, value in weights.items():
        key = f"encoder.{name}" if name.startswith("norm.") else f"encoder.vit.{name}"
        assert torch.equal(after[key], value), name
    assert not torch.equal(after["norm.weight"], torch.ones(64)), "the head has learned"


def test_runs_of_upernet_are_named_as_before(tmp_path):
    """Their configuration has no protocol; the settings id is that of an earlier version."""
    (run,) = plan_runs("ade20k", "mae_vit_b", preset="mini", data="/data/ade")
    settings = make_settings(run.config, data_fingerprint="f", norm_batch=16)
    assert run.path.name.startswith("ade20k-mae_vit_b-mini-seed0-")
    assert settings_id(settings) == "349704501521"
    (named,) = plan_runs("ade20k", "mae_vit_b", protocol="upernet", preset="mini", data="/data/ade")
    assert (named.config, named.path) == (run.config, run.path)
    (probe,) = plan_runs("ade20k", "mae_vit_b", protocol="linear", preset="mini", data="/data/ade")
    assert probe.path.name.startswith("ade20k-linear-mae_vit_b-mini-seed0-")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--protocol", "attentive"], "unknown protocol 'attentive'.*protocols of ade20k: upernet, linear"),
        (["--protocol", "linear", "probe.layers=[8]"], r"probe.layers=\[8\]: give ascending block numbers from 0 to 7"),
        (["--protocol", "linear", "model.aux_weight=0"], "unknown config key 'model.aux_weight'"),
        (["--protocol", "linear", "backbone.drop_path=0.1"], "protocol=linear never reads it .upernet"),
        (["--protocol", "linear", "recipe=upernet_mae"], "recipe upernet_mae is for the protocol upernet, not linear"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, options, expected):
    arguments = ["--task", "ade20k", "--backbone", "random_vit_nano", "--preset", "smoke", "--device", "cpu"]
    assert main([*arguments, "--output", str(tmp_path / "run"), *options]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(expected, errors[0]), errors[0]
    assert not (tmp_path / "run").exists()


def test_records_of_both_protocols_make_a_table_with_a_column_each(tmp_path, capsys):
    from mae_transfer.cli.tables import main as tables

    arguments = ["--task", "ade20k", "--backbone", "random_vit_nano", "--preset", "smoke", "--device", "cpu", *SIZES]
    more = ["--subset", "4", "schedule.steps=1", "schedule.warmup_steps=0", "eval.pictures=0"]
    assert main([*arguments, "--output", str(tmp_path / "runs"), "--protocol", "upernet,linear", *more]) == 2
    assert "data.image_size=40 is no multiple of the patch 16" in capsys.readouterr().err
    more += ["data.image_size=32", "data.short_side=32", "eval.stride=24"]
    assert main([*arguments, "--output", str(tmp_path / "runs"), "--protocol", "upernet,linear", *more]) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["linear", "upernet"]
    assert read_record(tmp_path / "runs" / "upernet" / "record.json")["row"]["name"] == ""
    capsys.readouterr()
    assert tables(["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "t.md")]) == 0
    text = capsys.readouterr().out
    assert "## Segmentation, smoke: generated images, by protocol\n" in text
    assert "| initialisation | mIoU upernet_mae nano | mIoU linear_dinov2 nano |" in text
    assert "## Segmentation, smoke: generated images, recipe upernet_mae\n" in text
