"""Fine-tuning, whole and partial, against timm's VisionTransformer, timm's losses and mixing, and MAE's own numbers."""

import functools
import random
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mae_transfer.backbones.load import load_backbone
from mae_transfer.config.schedule import make_schedule
from mae_transfer.engine.optim import param_groups
from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.protocols import finetune
from mae_transfer.tasks.classification.protocols.finetune import Classifier, Finetune
from mae_transfer.tasks.classification.protocols.partial import Partial

CLASSES = 7


def config(*overrides: str, backbone: str = "random_vit_nano", protocol: str = "finetune") -> ClassificationConfig:
    loaded = load_config("folder", backbone, protocol=protocol, overrides=list(overrides))
    assert isinstance(loaded, ClassificationConfig)
    return loaded


def classifier(*overrides: str, blocks: float | None = None) -> tuple[Classifier, ClassificationConfig]:
    torch.manual_seed(0)
    if blocks is not None:
        overrides = (*overrides, f"model.blocks={blocks}")
    made = config(*overrides, protocol="finetune" if blocks is None else "partial")
    protocol = Finetune(made) if blocks is None else Partial(made)
    encoder = load_backbone("random_vit_nano", drop_path=made.backbone.drop_path, **protocol.encoder_options())
    return protocol.build_model(encoder, CLASSES), made


def batch(count: int = 4, side: int = 224) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator),
        "labels": torch.randint(0, CLASSES, (count,), generator=generator),
    }


def as_timm(model: Classifier) -> VisionTransformer:
    """The same weights in timm's own model with average pooling, as models_vit.py of MAE's code subclasses it."""
    encoder = model.encoder
    vit = VisionTransformer(
        patch_size=16,
        embed_dim=encoder.embed_dim,
        depth=encoder.depth,
        num_heads=encoder.num_heads,
        num_classes=CLASSES,
        global_pool="avg",
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
    )
    state = {name.removeprefix("vit."): value for name, value in encoder.state_dict().items()}
    state |= {f"fc_norm.{name}": value for name, value in model.fc_norm.state_dict().items()}
    vit.load_state_dict(state | {f"head.{name}": value for name, value in model.head.state_dict().items()})
    return vit.eval()


def test_scores_are_timms_with_the_same_weights() -> None:
    model, _ = classifier()
    with torch.no_grad():
        model.head.weight.normal_(std=0.5)
        model.fc_norm.weight.uniform_(0.5, 2)
        scores = model.eval()(batch())
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (model.encoder.mean, model.encoder.std))
        images = (batch()["images"] / 255 - mean) / std
        reference = as_timm(model)(images)
    assert scores.shape == (1, 4, CLASSES)
    torch.testing.assert_close(scores[0], reference, rtol=1e-4, atol=1e-5)
    assert reference.std() > 0.1


def test_the_first_weights_are_mae_s() -> None:
    """main_finetune.py: trunc_normal of std 2e-5 on the head's weight, zero bias; a new fc_norm."""
    torch.manual_seed(0)
    encoder = load_backbone("random_vit_nano", img_size=224)
    head = Finetune(config()).build_model(encoder, 2000).head
    assert float(head.weight.detach().std()) == pytest.approx(2e-5, rel=0.02)
    assert not head.bias.any()
    model, _ = classifier()
    assert torch.equal(model.fc_norm.weight, torch.ones(64))
    assert model.fc_norm.eps == 1e-6
    assert model.encoder.vit.pos_embed.requires_grad


def test_the_position_embedding_is_resampled_once_and_trained() -> None:
    """448 px: as MAE's util/pos_embed.py, bicubic without antialiasing, the class token's row kept."""
    torch.manual_seed(0)
    native = load_backbone("random_vit_nano", img_size=224)
    torch.manual_seed(0)
    larger = load_backbone("random_vit_nano", **Finetune(config("data.image_size=448")).encoder_options())
    old, new = native.vit.pos_embed, larger.vit.pos_embed
    assert new.shape == (1, 1 + 28 * 28, 64)
    grid = old[:, 1:].reshape(1, 14, 14, 64).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(grid, size=(28, 28), mode="bicubic", align_corners=False)
    torch.testing.assert_close(new[:, 1:], resized.permute(0, 2, 3, 1).flatten(1, 2))
    torch.testing.assert_close(new[:, :1], old[:, :1])


def test_losses_without_mixing_are_timms() -> None:
    model, _ = classifier("model.mixup=0", "model.cutmix=0", "model.erasing=0", "backbone.drop_path=0")
    with torch.no_grad():
        model.head.weight.normal_()
        scores = model.eval()(batch())[0]
        loss = model.train()(batch())["loss_ce"]
    reference = LabelSmoothingCrossEntropy(0.1)(scores, batch()["labels"])
    torch.testing.assert_close(loss, reference)


def seeded(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.mark.parametrize("seed", range(6))
def test_erasing_and_mixing_are_timms_objects_in_timms_order(seed: int) -> None:
    """The loss equals that of timm's RandomErasing, Mixup and SoftTargetCrossEntropy, made here by MAE's arguments."""
    model, _ = classifier("backbone.drop_path=0")
    data = batch(4)
    with torch.no_grad():
        model.head.weight.normal_()
        seeded(seed)
        loss = model.train()(data)["loss_ce"]
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (model.encoder.mean, model.encoder.std))
        images = (data["images"] / 255 - mean) / std
        seeded(seed)
        images = RandomErasing(0.25, mode="pixel", max_count=1, device="cpu")(images)
        mixup = Mixup(
            mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=CLASSES
        )
        images, targets = mixup(images, data["labels"])
        reference = SoftTargetCrossEntropy()(as_timm(model).train()(images), targets)
    torch.testing.assert_close(loss, reference, rtol=1e-4, atol=1e-5)


def test_mixed_images_and_targets_have_their_closed_form() -> None:
    """Image and target are lam of the one and 1 - lam of its mirror in the batch; smoothing 0.1 over the classes."""
    mix = finetune.make_mixup(config("model.cutmix=0").model, CLASSES)
    assert mix is not None
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 3, 3, 6])
    before = images.clone()
    np.random.seed(3)
    lam = np.random.RandomState(3)
    lam.rand()  # timm asks whether to mix at all before it draws the ratio
    share = float(lam.beta(0.8, 0.8))
    mixed, targets = mix(images, labels)
    torch.testing.assert_close(mixed, before * share + before.flip(0) * (1 - share))
    one_hot = torch.full((4, CLASSES), 0.1 / CLASSES)
    one_hot[range(4), labels] += 0.9
    torch.testing.assert_close(targets, one_hot * share + one_hot.flip(0) * (1 - share))
    assert finetune.make_mixup(config("model.mixup=0", "model.cutmix=0").model, CLASSES) is None
    assert finetune.make_erasing(config("model.erasing=0").model) is None


def test_layer_decay_and_weight_decay_are_those_of_mae_and_of_timm() -> None:
    """MAE's util/lr_decay.py in closed form, and timm's function on the same model (which has no final norm)."""
    model, made = classifier()
    ours = {
        name: (group["lr_scale"], group["weight_decay"])
        for group in param_groups(model, made.optim)
        for name in group["names"]
    }
    vit = as_timm(model)
    groups = timm.optim.param_groups_layer_decay(
        vit, weight_decay=0.05, layer_decay=0.65, no_weight_decay_list=vit.no_weight_decay()
    )
    names = {id(parameter): name for name, parameter in vit.named_parameters()}
    reference = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert {name.removeprefix("encoder.vit."): values for name, values in ours.items()} == {
        name: (pytest.approx(scale), decay) for name, (scale, decay) in reference.items()
    }
    depth = model.encoder.depth
    assert ours["encoder.vit.pos_embed"] == (pytest.approx(0.65 ** (depth + 1)), 0.0)
    assert ours["encoder.vit.blocks.0.attn.qkv.weight"] == (pytest.approx(0.65**depth), 0.05)
    assert ours[f"encoder.vit.blocks.{depth - 1}.norm1.weight"] == (pytest.approx(0.65), 0.0)
    assert ours["head.weight"] == (1.0, 0.05)
    assert ours["fc_norm.weight"] == (1.0, 0.0)


@pytest.mark.parametrize(
    ("backbone", "peak", "decay", "drop_path", "epochs"),
    [
        ("mae_vit_b", 5e-4 * 1024 / 256, 0.65, 0.1, 100),
        ("mae_vit_l", 1e-3 * 1024 / 256, 0.75, 0.2, 50),
        ("mae_vit_h", 1e-3 * 1024 / 256, 0.75, 0.3, 50),
    ],
)
def test_the_recipe_is_the_released_one(
    backbone: str, peak: float, decay: float, drop_path: float, epochs: int
) -> None:
    """FINETUNE.md's table, and the rate of util/lr_sched.py at every step of a run on ImageNet-1K."""
    made = load_config("imagenet", backbone)
    assert (made.optim.lr, made.optim.layer_decay) == (pytest.approx(peak), decay)
    assert (made.backbone.drop_path, made.schedule.epochs) == (drop_path, epochs)
    schedule = make_schedule(made.schedule, 1281167, 1024)
    per_epoch = 1281167 / 1024
    for step in (0, 1, 500, int(5 * per_epoch) + 1, 30000, schedule.total - 1):
        epoch = step / per_epoch
        if epoch < 5:
            rate = peak * epoch / 5
        else:
            rate = 1e-6 + (peak - 1e-6) * 0.5 * (1 + np.cos(np.pi * (epoch - 5) / (epochs - 5)))
        assert made.optim.lr * schedule.factor(step) == pytest.approx(rate, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("blocks", [0.5, 1, 3, 8])
def test_partial_fine_tuning_changes_its_blocks_and_nothing_else(blocks: float) -> None:
    model, made = classifier(blocks=blocks)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(param_groups(model, made.optim), lr=1.0)
    with torch.no_grad():
        model.head.weight.normal_()
        before["head.weight"] = model.head.weight.clone()
    model(batch())["loss_ce"].backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    depth = model.encoder.depth
    if blocks == 0.5:
        wanted = {f"encoder.vit.blocks.{depth - 1}.{part}." for part in ("norm2", "mlp")}
    elif blocks == depth:
        wanted = {"encoder."}
    else:
        wanted = {f"encoder.vit.blocks.{depth - 1 - i}." for i in range(int(blocks))}
    wanted |= {"head.", "fc_norm."}
    for name in changed:
        assert any(name.startswith(part) for part in wanted), name
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name in before if any(name.startswith(part) for part in wanted)}
    assert changed >= {name for name in trainable if name.endswith(".weight")}


def test_frozen_blocks_make_no_graph_and_rest_in_eval_mode() -> None:
    model, _ = classifier("backbone.drop_path=0.5", blocks=1)
    model.train()
    recorded: list[bool] = []
    for block in model.encoder.vit.blocks:
        block.mlp.register_forward_hook(lambda module, args, out: recorded.append(out.requires_grad))
    model(batch())
    depth = model.encoder.depth
    assert recorded == [False] * (depth - 1) + [True]
    assert [block.training for block in model.encoder.vit.blocks] == [False] * (depth - 1) + [True]


@pytest.mark.parametrize("blocks", [9, 1.5])
def test_a_number_of_blocks_that_is_not_there_is_one_line(blocks: float) -> None:
    with pytest.raises(UserError, match=f"{blocks:g} trainable blocks: random_vit_nano takes 0, 0.5, 1, 2, ... 8"):
        classifier(blocks=blocks)


def test_blocks_and_protocol_have_to_fit() -> None:
    with pytest.raises(UserError, match=r"the protocol partial needs model.blocks \(--blocks\)"):
        Partial(config(protocol="partial"))
    with pytest.raises(UserError, match="greater than 0"):
        config("model.blocks=0", protocol="partial")
