"""Small ViTs of timm with their heads: logits of JPEG files through an evaluation equal timm's own model and transform.

Weights are drawn, since nothing is downloaded. Transform and classes are those that timm states for each name.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support.tiny_models import drawn
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import Tensor

import mae_transfer as mt
from mae_transfer.data.synthetic.classification import draw
from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.protocols.trained import TrainedClassifier

SMALL = re.compile(r"(vit|deit|deit3|eva02|flexivit)\w*_(tiny|small|little|medium|mediumd|betwixt|d?p?wee|xsmall)_")
REFUSED = re.compile(r"relpos|_r26_|_r_s16_|_rpn_")
"""Relative positions by an MLP or their own tables, and hybrids with a ResNet: no plain ViT."""
SYNSETS = ImageNetInfo("imagenet-1k").label_names()
IMAGES = 4


def names() -> list[str]:
    listed = [name for name in timm.list_models(pretrained=True) if SMALL.match(f"{name.split('.')[0]}_")]
    return [name for name in listed if timm.get_pretrained_cfg(name).num_classes == len(SYNSETS)]


def timms(name: str, files: list[Path], weights: Path) -> Tensor:
    """(IMAGES, 1000), image by image, of a model whose weights are left in a file."""
    model = timm.create_model(name).eval()
    model.load_state_dict(drawn(model.state_dict()))
    torch.save(model.state_dict(), weights)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        rows: list[Tensor] = [model(transform(Image.open(file).convert("RGB"))[None])[0] for file in files]
    return torch.stack(rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_logits_and_decisions_are_timms(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{number}.jpg" for number in range(IMAGES)]
    for number, file in enumerate(files):
        height, width = 240 + 130 * number, 500 - 60 * number
        draw(number, height, width, np.random.default_rng(number)).save(file, quality=90)
    wanted = timms(name, files, tmp_path / "model.pth")
    decided = wanted.argmax(1).tolist()
    labels = [decided[0], (decided[1] + 1) % 1000, decided[2], (decided[3] + 1) % 1000]
    order = np.argsort([SYNSETS[label] for label in labels], kind="stable")
    for file, label in zip(files, labels, strict=True):
        folder = tmp_path / "data" / "val" / SYNSETS[label]
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / file.name)
    caught: list[Tensor] = []
    own = TrainedClassifier.logits

    def spy(model: TrainedClassifier, images: Tensor) -> Tensor:
        caught.append(own(model, images))
        return caught[-1]

    monkeypatch.setattr(TrainedClassifier, "logits", spy)
    options = {"task": "imagenet", "backbone": f"timm:{name}", "device": "cpu", "overrides": {"data.workers": 0}}
    if REFUSED.search(name):
        with pytest.raises(UserError) as error:
            mt.evaluate(tmp_path / "model.pth", tmp_path / "data", **options)
        assert "\n" not in str(error.value)
        return
    found = mt.evaluate(tmp_path / "model.pth", tmp_path / "data", **options)
    logits = torch.cat(caught)
    difference = (logits - wanted[order]).abs().max() / wanted.std()
    print(f"{name}: logits differ by {difference:.1e} of their spread")
    assert difference < 0.005
    assert logits.argmax(1).tolist() == [decided[place] for place in order]
    assert found["top1"] == 50.0, "two images are under timm's decision, two under another class"
