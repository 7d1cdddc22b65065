"""LARS and SGD against MAE's and torch's formulas written out, lr scales of modules, and MAE's cosine at each step."""

import math

import pytest
import torch
from torch import nn

from mae_transfer.config.schedule import make_schedule
from mae_transfer.config.sections import OptimConfig, ScheduleConfig
from mae_transfer.engine.optim import build_optimizer, set_lr


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    model[2].weight.data.zero_()  # a weight of norm zero is not adapted
    return model, torch.randn(8, 6), torch.randint(3, (8,))


def written_out(kind, lrs):
    """MAE's util/lars.py (facebookresearch/mae) or plain SGD with momentum, from their formulas."""
    model, x, y = problem()
    mus = {}
    for lr in lrs:
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                update = p.grad.clone()
                if kind == "lars" and p.ndim > 1:
                    size, step = p.norm().item(), update.norm().item()
                    update *= 0.001 * size / step if size > 0 and step > 0 else 1.0
                mus[name] = 0.9 * mus.get(name, 0) + update
                p -= lr * mus[name]
    return model


@pytest.mark.parametrize("kind", ["lars", "sgd"])
def test_updates_equal_the_formula(kind):
    lrs = [0.5, 3.0, 6.4, 1.0, 0.1] if kind == "lars" else [0.05, 0.3, 0.1]
    model, x, y = problem()
    optimizer = build_optimizer(model, OptimConfig(kind=kind, lr=6.4, weight_decay=0.0, momentum=0.9))
    for lr in lrs:
        set_lr(optimizer, lr)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    for (name, ours), theirs in zip(model.named_parameters(), written_out(kind, lrs).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7, msg=name)


def test_lars_never_adapts_or_decays_biases_and_norms():
    optimizer = build_optimizer(problem()[0], OptimConfig(kind="lars", lr=1.0, weight_decay=0.1))
    found = {name: (g["weight_decay"], g["always_adapt"]) for g in optimizer.param_groups for name in g["names"]}
    weights, rest = (0.1, True), (0.0, False)
    assert found == {
        "0.weight": weights, "0.bias": rest, "1.weight": rest, "1.bias": rest, "2.weight": weights, "2.bias": rest
    }  # fmt: skip


def test_a_module_can_scale_the_lr_of_its_parameters():
    model = problem()[0]
    model[2].lr_scale = 0.25
    optimizer = build_optimizer(model, OptimConfig(kind="sgd", lr=2.0, weight_decay=0.0))
    set_lr(optimizer, 1.0)
    assert {name: g["lr"] for g in optimizer.param_groups for name in g["names"] if "weight" in name} == {
        "0.weight": 1.0, "1.weight": 1.0, "2.weight": 0.25
    }  # fmt: skip


@pytest.mark.parametrize(("epochs", "warmup", "lr", "min_lr"), [(100, 5, 2e-3, 1e-6), (90, 10, 6.4, 0.0)])
def test_the_cosine_is_maes_at_each_fractional_epoch(epochs, warmup, lr, min_lr):
    """util/lr_sched.py, adjust_learning_rate(optimizer, data_iter_step / len(data_loader) + epoch, args)."""
    per_epoch = 13
    config = ScheduleConfig(
        kind="cosine", epochs=epochs, warmup_epochs=warmup, warmup_factor=0.0, after_warmup="restart",
        min_lr_ratio=min_lr / lr,
    )  # fmt: skip
    schedule = make_schedule(config, per_epoch * 8, 8)
    assert schedule.total == epochs * per_epoch
    for step in range(schedule.total):
        epoch = step / per_epoch
        if epoch < warmup:
            expected = lr * epoch / warmup
        else:
            expected = min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
        assert lr * schedule.factor(step) == pytest.approx(expected, rel=1e-9, abs=1e-12), step
