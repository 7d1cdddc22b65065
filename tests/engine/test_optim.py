"""Parameter groups: every parameter once, with the lr and weight decay of the recipe at every step."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from mae_transfer.config.schedule import make_schedule
from mae_transfer.config.sections import OptimConfig, ScheduleConfig
from mae_transfer.engine.ema import make_ema
from mae_transfer.engine.optim import build_optimizer, param_groups, set_lr
from mae_transfer.errors import UserError

ALL_KINDS = ("norm", "encoder_norm", "bias", "pos_embed", "rel_pos", "token", "layer_scale")


class ChannelLayerNorm(nn.Module):
    """A norm of a project's own, not one of torch's classes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))


class Encoder(nn.Module):
    """timm's ViT under `vit.`, with LayerScale, register tokens, BEiT's biases and a table of relative position."""

    depth, num_layers = 3, 5

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.models.VisionTransformer(
            img_size=32, patch_size=16, embed_dim=8, depth=3, num_heads=2, num_classes=0, init_values=0.1, reg_tokens=2
        )
        self.vit.mask_token = nn.Parameter(torch.zeros(1, 1, 8))
        attention: Any = self.vit.blocks[1].attn
        attention.q_bias = nn.Parameter(torch.zeros(8))
        attention.rel_pos_bias = nn.Parameter(torch.zeros(9, 2))

    def layer_id(self, name: str) -> int:
        parts = name.split(".")
        if parts[1] == "blocks":
            return int(parts[2]) + 1
        return 4 if parts[1] == "norm" else 0


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.pyramid = nn.Sequential(nn.Conv2d(8, 8, 1), nn.SyncBatchNorm(8), ChannelLayerNorm(), nn.GroupNorm(2, 8))
        self.head = nn.Linear(8, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def kinds_by_hand(name: str) -> set[str]:
    """Written for this model, from its parameter names alone."""
    leaf = name.split(".")[-1]
    kinds = set()
    if ".norm" in name or name.split(".")[:2] in (["pyramid", "1"], ["pyramid", "2"], ["pyramid", "3"]):
        kinds.add("norm")
        if name.startswith("encoder."):
            kinds.add("encoder_norm")
    if leaf in ("bias", "q_bias"):
        kinds.add("bias")
    if leaf == "gamma":
        kinds.add("layer_scale")
    return kinds | {
        "pos_embed": {"pos_embed"},
        "rel_pos_bias": {"rel_pos"},
        "cls_token": {"token"},
        "reg_token": {"token"},
        "mask_token": {"token"},
    }.get(leaf, set())


@pytest.mark.parametrize("exceptions", [(), *((kind,) for kind in ALL_KINDS), ("norm", "pos_embed"), ALL_KINDS])
def test_lr_and_weight_decay_of_every_parameter_at_every_step(exceptions: Any) -> None:
    """lr = peak * factor(step) * decay ** (depth + 1 - layer), weight decay 0.05 but for the exceptions."""
    model = Model()
    config = OptimConfig(lr=1e-3, weight_decay=0.05, layer_decay=0.65, no_weight_decay=exceptions)
    optimizer = build_optimizer(model, config)
    schedule = make_schedule(ScheduleConfig(kind="cosine", steps=20, warmup_steps=4), 10, 2)

    layers = {f"encoder.vit.blocks.{i}.": i + 1 for i in range(3)} | {"encoder.vit.norm.": 4, "encoder.": 0, "": 4}
    expected = {}
    for name, parameter in model.named_parameters():
        if not name.startswith("frozen."):
            layer = next(layer for prefix, layer in layers.items() if name.startswith(prefix))
            decay = 0.0 if kinds_by_hand(name) & set(exceptions) else 0.05
            expected[id(parameter)] = (name, 0.65 ** (4 - layer), decay)
    assert {layer for _, layer, _ in expected.values()} == {0.65**i for i in range(5)}

    for step in range(20):
        set_lr(optimizer, config.lr * schedule.factor(step))
        seen: dict[int, tuple[str, float, float]] = {}
        for group in optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                assert id(parameter) not in seen
                seen[id(parameter)] = (name, group["lr"], group["weight_decay"])
        assert seen.keys() == expected.keys()
        for key, (name, scale, decay) in expected.items():
            assert seen[key][0] == name
            assert seen[key][1] == pytest.approx(1e-3 * schedule.factor(step) * scale, rel=1e-12)
            assert seen[key][2] == decay, name


def test_no_layer_decay_gives_two_groups_and_shared_weights_count_once() -> None:
    model = Model()
    model.head.weight = nn.Parameter(model.encoder.vit.blocks[0].mlp.fc1.weight.data[:2])
    model.pyramid.add_module("tied", model.head)
    config = OptimConfig(lr=1.0, weight_decay=0.1, no_weight_decay=("norm", "bias"))
    groups = param_groups(model, config)
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.1]
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
    with pytest.raises(UserError, match="no trainable parameter"):
        param_groups(model.requires_grad_(False), config)


def test_ema_averages_weights_and_statistics_and_copies_whole_numbers() -> None:
    """After t updates with decay d: e_t = d e_{t-1} + (1 - d) w_t, e_1 = w_1; an index table stays what it is."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model.register_buffer("index", torch.arange(1000))
    ema = make_ema(model, 0.9)
    weight, mean = None, None
    for _ in range(5):
        with torch.no_grad():
            model[0].weight.normal_()
        model(torch.randn(4, 2))
        ema.update_parameters(model)
        now, running = model[0].weight.detach().clone(), model[1].running_mean.clone()
        weight = now if weight is None else 0.9 * weight + 0.1 * now
        mean = running if mean is None else 0.9 * mean + 0.1 * running
    torch.testing.assert_close(ema.module[0].weight, weight)
    torch.testing.assert_close(ema.module[1].running_mean, mean)
    assert torch.equal(ema.module.index, torch.arange(1000))
    assert int(ema.module[1].num_batches_tracked) == 5
    assert not any(p.requires_grad for p in ema.parameters())
