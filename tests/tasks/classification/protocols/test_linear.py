"""The linear probe against MAE's own module written out, its folding, and the sweep against each head trained alone."""

import math

import pytest
import torch
from support.ranks import spawn
from torch import nn
from torch.nn import functional as F

from mae_transfer.backbones.load import load_backbone
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.engine.optim import build_optimizer
from mae_transfer.errors import UserError
from mae_transfer.runs.api import run_transfer
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.classification.protocols import linear

SWEEP = ("recipe=linear_sweep", "data.image_size=32", "data.workers=0", "schedule.steps=12", "train.global_batch=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_classification(tmp_path_factory.mktemp("set") / "set", "folder", classes=3, train_images=8)


def build(*overrides, num_classes=4, recipe="linear_mae"):
    torch.manual_seed(0)
    config = load_config(
        "imagenet",
        "random_vit_nano",
        protocol="linear",
        overrides=[f"recipe={recipe}", "data.image_size=32", *overrides],
    )
    protocol = linear.Linear(config)
    encoder = load_backbone("random_vit_nano", **protocol.encoder_options())
    return protocol.build_model(encoder, num_classes), config


def batch(size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return {"images": images, "labels": torch.randint(4, (size,), generator=generator)}


def test_the_feature_is_timms_class_token_of_the_normalised_image():
    model, _ = build("data.image_size=224")
    images = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = model.encoder.norm(model.encoder.vit.eval().forward_features((images / 255 - mean) / std))[:, 0]
        torch.testing.assert_close(model.frozen({"images": images})[:, 0, 0], expected, rtol=1e-4, atol=1e-5)


def test_it_is_maes_linear_probe():
    """main_linprobe.py: Sequential(BatchNorm1d(affine=False, eps=1e-6), head) trained by util/lars.py."""
    model, config = build()
    head = nn.Sequential(nn.BatchNorm1d(64, affine=False, eps=1e-6), nn.Linear(64, 4))
    head[1].load_state_dict(model.heads[0].linear.state_dict())
    assert model.heads[0].linear.weight.std().item() == pytest.approx(0.01, rel=0.2)
    optimizer = build_optimizer(model, config.optim)
    mus = [torch.zeros_like(p) for p in head.parameters()]
    for step in range(4):
        data = batch(seed=step)
        loss = F.cross_entropy(head.train()(model.frozen(data)[:, 0, 0]), data["labels"])
        head.zero_grad()
        loss.backward()
        optimizer.zero_grad()
        got = model.train()(data)["loss_heads"]
        got.backward()
        optimizer.step()
        torch.testing.assert_close(got, loss)
        with torch.no_grad():
            for mu, p in zip(mus, head.parameters(), strict=True):
                mu.mul_(0.9).add_(p.grad * (0.001 * p.norm() / p.grad.norm() if p.ndim > 1 else 1.0))
                p -= 6.4 * mu
    with torch.no_grad():
        expected = head.eval()(model.frozen(batch())[:, 0, 0])
        torch.testing.assert_close(model.eval()(batch())[0], expected, rtol=1e-4, atol=1e-5)


def test_nothing_but_the_heads_learns():
    model, _ = build("probe.pooling=[cls,avg]", "data.holdout=0.1")
    model.train()(batch())["loss_heads"].backward()
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learned == {f"heads.{i}.linear.{part}" for i in (0, 1) for part in ("weight", "bias")}
    assert not any(module.training for block in model.encoder.vit.blocks for module in block.modules())
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("overrides", [(), ("probe.batch_norm=false",)])
def test_folded_into_one_linear_layer_the_scores_are_the_same(overrides):
    model, config = build("probe.pooling=[cls,cls+avg]", "probe.blocks=[1,3]", "data.holdout=0.1", *overrides)
    optimizer = build_optimizer(model, config.optim)
    for step in range(5):  # so that statistics and weights are not the first ones
        model.train()(batch(seed=step))["loss_heads"].backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        features, scores = model.frozen(batch()), model(batch())
        for i, head in enumerate(model.heads):
            folded = model.folded(i)
            assert type(folded) is nn.Linear
            inputs = model.frozen.select(features, head.blocks, head.pooling)
            torch.testing.assert_close(folded(inputs), scores[i], rtol=1e-5, atol=1e-5)


def test_features_of_blocks_and_poolings_are_what_they_say():
    """DINOv2's create_linear_input, from timm's intermediate layers."""
    model, _ = build("probe.blocks=[1,3]", "probe.pooling=[cls,avg,cls+avg]", "data.holdout=0.1")
    encoder = model.encoder.eval()
    with torch.no_grad():
        features = model.frozen(batch())
        images = model.frozen.tokens(batch())
        cls = [x[:, 0] for x in images]
        average = [x[:, 1:].mean(1) for x in images]
        expected = {
            (1, "cls"): cls[2], (3, "cls"): torch.cat(cls, 1),
            (1, "avg"): average[2], (3, "avg"): torch.cat(average, 1),
            (1, "cls+avg"): torch.cat([cls[2], average[2]], 1), (3, "cls+avg"): torch.cat([*cls, average[2]], 1),
        }  # fmt: skip
        for (blocks, pooling), want in expected.items():
            assert torch.equal(model.frozen.select(features, blocks, pooling), want)
            assert model.frozen.width(blocks, pooling) == want.shape[1]
        assert model.frozen.blocks == (encoder.depth - 3, encoder.depth - 2, encoder.depth - 1)


def test_first_weights_depend_on_seed_and_head_alone():
    many, _ = build("probe.lrs=[0.1,6.4]", "probe.pooling=[avg,cls]", "data.holdout=0.1")
    one, _ = build()
    other, _ = build("seed=1")
    assert many.head_names == (
        "blocks1-avg-lr0.1", "blocks1-avg-lr6.4", "blocks1-cls-lr0.1", "blocks1-cls-lr6.4"
    )  # fmt: skip
    assert torch.equal(many.heads[3].linear.weight, one.heads[0].linear.weight)
    assert not torch.equal(many.heads[2].linear.weight, one.heads[0].linear.weight)
    assert not torch.equal(other.heads[0].linear.weight, one.heads[0].linear.weight)


def run(folder, output, *overrides):
    return run_transfer(
        "folder", "random_vit_nano", protocol="linear", data=folder, output=output, overrides=[*SWEEP, *overrides]
    )


def heads_of(record, prefix):
    return {name.removeprefix(prefix): value for name, value in record["metrics"].items() if name.startswith(prefix)}


def test_each_head_of_a_sweep_ends_as_trained_alone(folder, tmp_path):
    """Through the whole run, in training with augmentation: final weights and accuracies of 12 heads."""
    axes = {"blocks": (1, 2), "pooling": ("cls", "avg", "cls+avg"), "lrs": (1e-5, 0.4)}
    sweep = [f"probe.{name}=[{','.join(map(str, values))}]" for name, values in axes.items()]
    record = run(folder, tmp_path / "sweep", *sweep)
    accuracy, held = heads_of(record, "top1/"), heads_of(record, "holdout_top1/")
    assert len(accuracy) == len(held) == 12
    best = max(held, key=held.__getitem__)
    assert record["data"]["selected_head"] == best
    assert record["metrics"]["top1"] == accuracy[best]
    together = torch.load(tmp_path / "sweep/checkpoints/step_00000012.pt", weights_only=True)["model"]
    names = list(accuracy)
    for blocks, pooling, lr in [(1, "cls", 0.4), (2, "cls+avg", 1e-5), (2, "avg", 0.4)]:
        name = f"blocks{blocks}-{pooling}-lr{lr:g}"
        only = [f"probe.blocks=[{blocks}]", f"probe.pooling=[{pooling}]", f"probe.lrs=[{lr}]"]
        alone = run(folder, tmp_path / name, *only)
        assert alone["metrics"]["top1"] == pytest.approx(accuracy[name], abs=1e-6)
        weights = torch.load(tmp_path / name / "checkpoints/step_00000012.pt", weights_only=True)["model"]
        here = together[f"heads.{names.index(name)}.linear.weight"]
        torch.testing.assert_close(weights["heads.0.linear.weight"], here, rtol=1e-6, atol=1e-7)
    assert len(set(accuracy.values())) > 1


def test_a_sweep_without_images_to_choose_by_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="78 heads need images to choose by .* data.holdout"):
        run(folder, tmp_path / "run", "data.holdout=0")
    with pytest.raises(UserError, match="the last 9 blocks of random_vit_nano, which has 8"):
        run(folder, tmp_path / "run", "probe.blocks=[9]")
    with pytest.raises(UserError, match="BatchNorm needs more than one image"):
        run(folder, tmp_path / "run", "train.micro_batch=7")
    assert not (tmp_path / "run").exists()


def test_norm_over_ranks_is_the_norm_of_the_whole_batch(tmp_path):
    """Two processes with unequal shares: outputs and running statistics of nn.BatchNorm1d on all of it."""
    torch.manual_seed(0)
    whole = [torch.randn(10, 5) * 3 + 7 for _ in range(3)]
    reference = nn.BatchNorm1d(5, affine=False, eps=1e-6)
    expected = [reference(x) for x in whole]
    parts = (slice(0, 4), slice(4, 10))
    for part, (outputs, state) in zip(parts, spawn(_normalise, tmp_path, whole, parts), strict=True):
        for ours, theirs in zip(outputs, expected, strict=True):
            torch.testing.assert_close(ours, theirs[part], rtol=1e-5, atol=1e-6)
        for name, value in reference.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)


def _normalise(rank, whole, parts):
    norm = linear.FeatureNorm(5)
    return [norm(x[parts[rank]]) for x in whole], norm.state_dict()


def test_lrs_of_the_recipes_are_the_sources_scaled():
    _, config = build(recipe="linear_sweep")
    dinov2 = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
    assert config.probe.lrs == pytest.approx([lr * config.train.global_batch / 256 for lr in dinov2])
    assert config.optim.lr == max(config.probe.lrs)
    _, config = build()
    assert config.optim.lr == pytest.approx(0.1 * config.train.global_batch / 256)
    assert math.isclose(config.optim.lr, 6.4)
