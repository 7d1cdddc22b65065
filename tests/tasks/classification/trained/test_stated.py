"""The evaluation's transform is the source's own, on JPEG files, for timm and transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from mae_transfer.config.load import dump_config
from mae_transfer.data.decode import read_rgb
from mae_transfer.data.synthetic.classification import draw
from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.tasks.classification.trained.stated import stated_evaluation, stated_labels
from mae_transfer.tasks.classification.transforms import EvalTransform

SHAPES = ((375, 500), (333, 100), (60, 40), (256, 256))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, found = tmp_path_factory.mktemp("jpegs"), []
    for number, (height, width) in enumerate(SHAPES):
        found.append(folder / f"{number}.jpg")
        draw(number, height, width, np.random.default_rng(number)).save(found[-1], quality=95)
    return found


def ours(config: Any, file: Path) -> torch.Tensor:
    return EvalTransform(config)(read_rgb(str(file)))


TIMM = {
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k": 0.9,
    "deit_tiny_patch16_224.fb_in1k": 0.9,
    "deit3_small_patch16_224.fb_in22k_ft_in1k": 1.0,
    "vit_wee_patch16_reg1_gap_256.sbb_in1k": 0.95,
    "eva02_tiny_patch14_336.mim_in22k_ft_in1k": 1.0,  # squash
}


@pytest.mark.parametrize("name", TIMM)
def test_timms(name: str, files: list[Path]) -> None:
    config: Any = resolve_config("imagenet", f"timm:{name}", protocol="trained", data="x")
    with torch.device("meta"):
        data = resolve_model_data_config(timm.create_model(name))
    assert config.eval.crop_pct == data["crop_pct"] == TIMM[name]
    transform = create_transform(**data, is_training=False, normalize=False)
    for file in files:
        difference = (ours(config, file).int() - transform(Image.open(file).convert("RGB")).int()).abs()
        assert difference.max() <= 2, "one grey level for each of two passes in 8 bits"
        assert difference.float().mean() < 0.05


PROCESSORS: dict[str, dict[str, Any]] = {
    "squashed, bilinear, as ViT": {"size": {"height": 64, "width": 64}, "resample": 2},
    "squashed and cut, as DeiT": {"size": {"height": 80, "width": 80}, "resample": 3, "crop_size": 64},
    "shortest edge and cut, as Dinov2": {"size": {"shortest_edge": 80}, "resample": 3, "crop_size": 64},
    "a quotient just below 118, as Dinov2": {"size": {"shortest_edge": 118}, "resample": 3, "crop_size": 96},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_transformers(name: str, files: list[Path], tmp_path: Path) -> None:
    kind = {"ViT": "ViTImageProcessor", "DeiT": "DeiTImageProcessor", "Dinov2": "BitImageProcessor"}[name.split()[-1]]
    options = {"do_center_crop": "crop_size" in PROCESSORS[name], **PROCESSORS[name]}
    processor = getattr(transformers, kind)(**options)
    processor.save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    config: Any = resolve_config("imagenet", "mae_vit_nano", protocol="trained", checkpoint=tmp_path, data="x")
    for file in files:
        pixels = processor(
            Image.open(file).convert("RGB"), do_normalize=False, do_rescale=False, return_tensors="pt"
        ).pixel_values[0]
        difference = (ours(config, file).int() - pixels.round().int()).abs()
        assert difference.max() <= 1, name
        assert difference.float().mean() < 0.05


def test_the_users_own_settings_win_and_what_states_nothing_leaves_the_recipe(tmp_path: Path) -> None:
    timms = "timm:deit_tiny_patch16_224.fb_in1k"
    config: Any = resolve_config("imagenet", timms, protocol="trained", overrides=["eval.crop_pct=0.5"])
    assert (config.eval.crop_pct, config.eval.interpolation, config.eval.crop_mode) == (0.5, "bicubic", "center")
    torch.save({}, tmp_path / "mae.pth")
    plain: Any = resolve_config("imagenet", "mae_vit_b", protocol="trained", checkpoint=tmp_path / "mae.pth")
    assert (plain.data.image_size, plain.eval.crop_pct) == (224, None)
    assert "crop_mode" not in dump_config(resolve_config("imagenet", "mae_vit_b")), "no setting of other protocols"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"size": {"height": 64, "width": 32}}, "64x32; classification here takes square images"),
        ({"size": 64, "resample": 1}, "resample 1; here are 2"),
        ({"size": {"longest_edge": 3}}, "neither shortest_edge nor height and width"),
        ({"do_resize": False, "size": 64}, "resizes no image"),
        ({"size": {"shortest_edge": 64}}, "crops nothing; images have to be square"),
    ],
)
def test_what_cannot_be_done_is_an_error(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=message):
        stated_evaluation("mae_vit_b", {"backbone.checkpoint": str(tmp_path)})


def test_the_names_of_classes_that_a_file_states(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    config = tmp_path / "config.json"
    assert stated_labels(str(tmp_path)) is None
    config.write_text(json.dumps({"id2label": {"1": "b", "0": "a"}}))
    assert stated_labels(str(tmp_path)) == ["a", "b"]
    config.write_text(json.dumps({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    assert stated_labels(str(tmp_path)) is None
    for wrong in ({"x": "a"}, {"0": "a", "2": "b"}):
        config.write_text(json.dumps({"id2label": wrong}))
        with pytest.raises(UserError, match="id2label"):
            stated_labels(str(tmp_path))
