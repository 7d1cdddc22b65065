"""Supervised training from scratch: the recipe of MAE Table 11, its samples, and what its run gives to transfer."""

import json
import math

import numpy as np
import pytest
import torch
from support.pretraining import resolve_pretrain
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as vision

from mae_transfer.backbones.load import load_backbone
from mae_transfer.config.schedule import make_schedule
from mae_transfer.data.augment import make_randaugment, seeded_globals
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.engine.optim import param_groups
from mae_transfer.engine.rng import seed_for_model
from mae_transfer.errors import UserError
from mae_transfer.pretrain.methods import supervised
from mae_transfer.run_folder.checkpoints import list_checkpoints, load_checkpoint
from mae_transfer.runs.api import run_pretrain
from mae_transfer.tasks.classification.protocols.finetune import Classifier


def config_of(*overrides: str, backbone: str = "vit_nano_p8"):
    return resolve_pretrain("supervised", backbone, data="synthetic", overrides=["data.image_size=32", *overrides])


def model_of(config, classes: int = 5):
    seed_for_model(0)
    method = supervised.SupervisedMethod(config)
    return method.build_model(method.build_encoder(), classes)


@pytest.mark.parametrize(
    ("backbone", "drop_path", "epochs"), [("vit_b", 0.1, 300), ("vit_l", 0.2, 200), ("vit_h", 0.2, 200)]
)
def test_full_recipe_is_that_of_table_11(backbone, drop_path, epochs) -> None:
    config = resolve_pretrain("supervised", backbone, data="x")
    assert config.optim.lr == pytest.approx(1e-4 * 4096 / 256, rel=1e-12)
    assert (config.optim.weight_decay, config.optim.betas, config.optim.ema) == (0.3, (0.9, 0.95), 0.9999)
    assert (config.optim.layer_decay, config.train.global_batch) == (1.0, 4096)
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (epochs, 20)
    model = config.model
    assert (model.label_smoothing, model.mixup, model.cutmix) == (0.1, 0.8, 1.0)
    assert (config.backbone.drop_path, config.data.randaugment) == (drop_path, "rand-m9-mstd0.5-inc1")


def test_learning_rate_at_every_step_is_the_released_codes() -> None:
    config = resolve_pretrain(
        "supervised", "vit_b", data="x", overrides=["schedule.epochs=20", "schedule.warmup_epochs=4"]
    )
    schedule = make_schedule(config.schedule, 4096 * 25, 4096)
    for step in range(schedule.total):
        epoch = step / 25
        falling = 1e-6 + (1.6e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * (epoch - 4) / 16))
        expected = 1.6e-3 * epoch / 4 if epoch < 4 else falling
        assert config.optim.lr * schedule.factor(step) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_parameter_groups_are_those_of_the_released_code() -> None:
    """util/lr_decay.py without layer decay: no decay in one dimension, for class token and positions."""
    config = config_of()
    model = model_of(config)
    groups = param_groups(model, config.optim)
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decay == {
        name: 0.0 if p.ndim == 1 or name.endswith(("cls_token", "pos_embed")) else 0.3
        for name, p in model.named_parameters()
    }
    assert {group["lr_scale"] for group in groups} == {1.0}
    assert "encoder.vit.pos_embed" in decay  # learned, unlike in MAE


def test_initial_weights_are_timms() -> None:
    config = config_of("data.image_size=64", backbone="vit_ti_p8")
    model = model_of(config, classes=1000).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name == "encoder.vit.patch_embed.proj.weight" or name == "encoder.vit.patch_embed.proj.bias":
            assert float(parameter.abs().max()) <= 1 / math.sqrt(3 * 8 * 8)  # torch's own of a convolution
        elif "norm" in name and name.endswith("weight"):
            assert bool((parameter == 1).all()), name
        elif name.endswith("bias"):
            assert not bool(parameter.any()), name
        else:
            assert parameter.detach().std().item() == pytest.approx(0.02, rel=0.15), name


def test_training_loss_is_finetunings_and_evaluation_counts_each_image() -> None:
    config = config_of("model.mixup=0", "model.cutmix=0", "backbone.drop_path=0")
    model = model_of(config, classes=7)
    with torch.no_grad():
        model.head.weight.normal_()
    generator = torch.Generator().manual_seed(0)
    batch = {
        "images": torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=generator),
        "labels": torch.tensor([0, 1, 2, 3, 4, 6]),
    }
    with torch.no_grad():
        scores = Classifier.forward(model.eval(), batch)[0]
        values = model(batch)
        training = model.train()(batch)["loss_ce"]
    order = scores.argsort(1, descending=True)
    for i, label in enumerate(batch["labels"]):
        assert values["top1"][i] == 100 * float(order[i, 0] == label)
        assert values["top5"][i] == 100 * float(label in order[i, :5])
        assert values["loss"][i].item() == pytest.approx(-scores[i].log_softmax(0)[label].item(), rel=1e-5)
    smoothed = F.cross_entropy(scores, batch["labels"], label_smoothing=0.1)
    assert training.item() == pytest.approx(smoothed.item(), rel=1e-5)
    assert 0 < values["top5"].mean() < 100


def test_samples_are_cropped_flipped_and_then_augmented() -> None:
    plain = supervised.SupervisedViews(config_of("data.randaugment=null"))
    views = supervised.SupervisedViews(config_of())
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    augment = make_randaugment("rand-m9-mstd0.5-inc1", 32, (0.485, 0.456, 0.406))
    changed = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        before = plain.train(image, rng)["image"]
        with seeded_globals(int(rng.integers(2**32))):
            expected = vision.pil_to_tensor(augment(vision.to_pil_image(before)))
        assert torch.equal(views.train(image, np.random.default_rng(seed))["image"], expected)
        changed += not torch.equal(before, expected)
    assert changed >= 4
    rng = np.random.default_rng(0)
    assert torch.equal(views.test(image, rng)["image"], plain.test(image, rng)["image"])


def test_without_labels_there_is_one_line(tmp_path) -> None:
    images = make_classification(tmp_path / "set", "folder", train_images=2, val_images=1)
    for number, file in enumerate(sorted((images / "train").rglob("*.JPEG"))):
        file.rename(images / "train" / f"{number}.JPEG")
    with pytest.raises(UserError, match="--method supervised needs labels: class folders"):
        run_pretrain("supervised", "vit_nano", preset="smoke", data=images, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_odd_batches_cannot_be_mixed(tmp_path) -> None:
    overrides = ["train.micro_batch=1", "data.image_size=32"]
    with pytest.raises(UserError, match="mixup and cutmix mix images in pairs"):
        run_pretrain("supervised", "vit_nano_p8", preset="smoke", overrides=overrides, output=tmp_path / "run")


def test_a_run_learns_and_its_averaged_weights_transfer(tmp_path) -> None:
    images = make_classification(tmp_path / "set", "folder", train_images=8, val_images=4)
    overrides = ["data.image_size=32", "subset=null", "schedule.steps=60", "train.global_batch=20"]
    overrides += ["train.micro_batch=20", "optim.lr=1e-3", "optim.ema=0.8", "data.randaugment=null", "eval.knn=5"]
    overrides += ["model.mixup=0", "model.cutmix=0"]
    record = run_pretrain(
        "supervised", "vit_nano_p8", preset="smoke", data=images, output=tmp_path / "run", overrides=overrides
    )
    assert record["metrics"]["val_top1"] >= 60  # of five classes
    assert set(record["metrics"]) == {"val_loss", "val_top1", "val_top5", "knn_top1"}
    assert json.loads((tmp_path / "run" / "record.json").read_text())["metrics"] == record["metrics"]

    state = load_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    encoder = load_backbone("vit_nano_p8", checkpoint=tmp_path / "run", final_norm=True, img_size=32)
    average = {name.removeprefix("module."): value for name, value in state["ema"].items()}
    assert torch.equal(encoder.vit.blocks[3].mlp.fc1.weight, average["encoder.vit.blocks.3.mlp.fc1.weight"])
    assert not torch.equal(encoder.vit.blocks[3].mlp.fc1.weight, state["model"]["encoder.vit.blocks.3.mlp.fc1.weight"])
    assert torch.equal(encoder.norm.weight, average["fc_norm.weight"])
    assert encoder.load_report.trained_by == "supervised (this project)"
    ignored = {name: why for name, why in encoder.load_report.ignored.items() if name.startswith("head")}
    assert set(ignored) == {"head.weight", "head.bias"}
