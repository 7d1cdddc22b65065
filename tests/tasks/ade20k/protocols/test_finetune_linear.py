"""Fine-tuning under a linear layer against benchmark-vfm-ss written from its formulas; rates of every step; sizes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import ADE20K, weights
from torch import Tensor
from torch.nn import functional as F

from mae_transfer.backbones.load import load_backbone
from mae_transfer.cli.transfer import main
from mae_transfer.config.schedule import make_schedule
from mae_transfer.data.synthetic.ade20k import cached_ade20k
from mae_transfer.engine.optim import build_optimizer, set_lr
from mae_transfer.run_folder.record import read_record
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.ade20k.pairs import find_pairs
from mae_transfer.tasks.ade20k.protocols.config import FinetuneLinearConfig
from mae_transfer.tasks.ade20k.protocols.finetune_linear import FinetuneLinear, TunedLinear
from mae_transfer.tasks.ade20k.transforms import IGNORE, augment, resize_for_evaluation

CLASSES = 5
SIZES = ["data.image_size=40", "data.fit_side=40", "data.short_side=40", "data.long_side=1280", "eval.stride=40"]


def build(*overrides: str) -> tuple[TunedLinear, FinetuneLinearConfig]:
    """A model on an encoder whose patch of 16 does not divide the 40 pixels: framed to 48."""
    torch.manual_seed(0)
    config = load_config("ade20k", "random_vit_nano", protocol="finetune_linear", overrides=[*SIZES, *overrides])
    assert isinstance(config, FinetuneLinearConfig)
    protocol = FinetuneLinear(config)
    encoder = load_backbone("random_vit_nano", **protocol.encoder_options(16))  # type: ignore[arg-type]
    return protocol.build_model(encoder, CLASSES), config


def batch(images: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(IGNORE, CLASSES, (images, 40, 40), generator=generator, dtype=torch.int16)
    labels[0, 10:] = IGNORE  # unlike numbers of labelled pixels: the mean is of each image
    return {
        "images": [torch.randint(256, (3, 40, 40), generator=generator, dtype=torch.uint8) for _ in range(images)],
        "labels": list(labels),
        "file_names": [str(i) for i in range(images)],
    }


def test_loss_and_gradients_are_those_of_the_published_code() -> None:
    model, _ = build()
    model.train()
    data = batch()
    vit, norm = model.encoder.vit, model.encoder.norm
    vit.patch_embed.grid_size = (3, 3)  # as there: timm's forward then takes the resampled positions as they are
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = F.pad((torch.stack(data["images"]) / 255 - mean) / std, (4, 4, 4, 4))

    def published() -> Tensor:
        """timm's forward_features, nn.Linear on the patch tokens; one image a batch, 2 batches accumulated."""
        found = vit.forward_intermediates(images, indices=[7], norm=False, intermediates_only=True)
        tokens = norm(found[0].flatten(2).transpose(1, 2))
        logits = tokens @ model.classifier.weight[:, :, 0, 0].T + model.classifier.bias
        logits = logits.transpose(1, 2).reshape(2, -1, 3, 3)
        large = F.interpolate(logits, (40, 40), mode="bilinear")
        targets = torch.stack(data["labels"]).long()
        each = [F.cross_entropy(large[i : i + 1], targets[i : i + 1], ignore_index=IGNORE) for i in range(2)]
        return (each[0] + each[1]) / 2

    found = []
    for loss in (published(), model(data)["loss_seg"]):
        model.zero_grad()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), gradients))
    (theirs, expected), (ours, gradients) = found
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert gradients.keys() == names
    assert {"encoder.norm.weight", "encoder.vit.pos_embed", "encoder.vit.cls_token", "classifier.bias"} <= names
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_an_image_without_labels_adds_nothing_and_a_split_changes_nothing() -> None:
    model, _ = build()
    model.train()
    data = batch(4)
    data["labels"][3] = torch.full((40, 40), IGNORE, dtype=torch.int16)
    parts = [{key: value[i : i + 1] for key, value in data.items()} for i in range(4)]
    with torch.no_grad():
        whole, each = model(data)["loss_seg"], torch.stack([model(part)["loss_seg"] for part in parts])
    assert each[3] == 0
    torch.testing.assert_close(whole, each.mean())


def test_rates_and_decay_of_every_parameter_at_every_step() -> None:
    model, config = build()
    assert (config.train.global_batch, config.schedule.steps) == (16, 40000)
    optimizer, schedule = build_optimizer(model, config.optim), make_schedule(config.schedule, 20210, 16)
    names = {id(p): name for name, p in model.named_parameters()}
    for step in (0, 1, 1500, 20000, 39999):
        set_lr(optimizer, config.optim.lr * schedule.factor(step))
        for group in optimizer.param_groups:
            of_encoder = {names[id(p)].startswith("encoder.") for p in group["params"]}
            assert len(of_encoder) == 1
            expected = (1e-5 if of_encoder.pop() else 1e-4) * (1 - step / 40000) ** 0.9
            assert group["lr"] == pytest.approx(expected, rel=1e-12)
            assert group["weight_decay"] == 0.05
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    for step in range(40000):
        assert schedule.factor(step) == pytest.approx((1 - step / 40000) ** 0.9, abs=1e-12)


def test_training_fits_the_longer_side_and_evaluation_the_shorter() -> None:
    _, config = build("data.ratio_min=1", "data.ratio_max=1", "data.flip=0", "data.photometric=false")
    data = config.data.model_copy(update={"root": str(cached_ade20k())})
    train, val = FinetuneLinear(config).datasets(find_pairs(data, "train"), find_pairs(data, "val"))
    image, label = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), np.int16)
    assert augment(image, label, train.config, np.random.default_rng(0))[0].shape == (30, 40, 3)  # type: ignore[attr-defined]
    assert resize_for_evaluation(image, val.config).shape == (40, 53, 3)  # type: ignore[attr-defined]


def test_a_run_trains_all_of_it(tmp_path: Path) -> None:
    torch.manual_seed(7)
    encoder = load_backbone("random_vit_nano", final_norm=True)
    before = encoder.vit.state_dict() | {f"norm.{k}": v for k, v in encoder.norm.state_dict().items()}
    torch.save({"model": before}, tmp_path / "encoder.pt")
    options = ["mae_vit_nano" if word == "random_vit_nano" else word for word in ADE20K]
    options += [
        "--checkpoint",
        str(tmp_path / "encoder.pt"),
        "--protocol",
        "finetune_linear",
        "eval.pictures=0",
        *SIZES,
    ]
    assert main([*options, "schedule.steps=2", "--output", str(tmp_path / "run")]) == 0
    record, after = read_record(tmp_path / "run" / "record.json"), weights(tmp_path / "run")
    assert record["row"] == {"name": "finetune_linear", "frozen": False, "rank": 6}
    assert record["metrics"].keys() >= {"mIoU", "mAcc", "aAcc"}
    for name in ("norm.weight", "vit.blocks.0.attn.qkv.weight", "vit.cls_token"):
        assert not torch.equal(after[f"encoder.{name}"], before[name.removeprefix("vit.")]), name


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("optim.layer_decay=0.65", "protocol=finetune_linear never reads it"),
        ("model.encoder_lr=0", "model.encoder_lr"),
        ("probe.layers=last", "unknown config key 'probe.layers'"),
    ],
)
def test_bad_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, expected: str
) -> None:
    arguments = [*ADE20K, "--protocol", "finetune_linear", "--output", str(tmp_path / "run"), *SIZES, option]
    assert main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(expected, errors[0]), errors[0]
    assert not (tmp_path / "run").exists()
