"""Trained UperNets of mmsegmentation, BEiT's code and transformers: their logits and labels, from files on disk."""

import io
import json
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support.ade20k_reference import CLASSES, make_mmseg
from support.trained import DEPTH, DIM, HEADS, HF, SIZE, beit_finetuned, randomised
from torch import Tensor, nn

import mae_transfer as mt
from mae_transfer.cli.transfer import main
from mae_transfer.data.synthetic.ade20k import make_ade20k
from mae_transfer.errors import UserError
from mae_transfer.run_folder.record import read_record
from mae_transfer.tasks.ade20k.protocols.upernet import UperNet

TAPS = (2, 3, 4, 7)
BEIT = "timm:beit_verify"
NAMES = [f"thing {number}" for number in range(CLASSES)]
IMAGENET = (torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375]))
UNILM = (
    ("backbone.patch_embed.projection.", "backbone.patch_embed.proj."),
    ("backbone.layers.", "backbone.blocks."),
    (".ln1.", ".norm1."),
    (".ln2.", ".norm2."),
    (".ffn.layers.0.0.", ".mlp.fc1."),
    (".ffn.layers.1.", ".mlp.fc2."),
    ("neck.upsample_4x.", "backbone.fpn1."),
    ("neck.upsample_2x.", "backbone.fpn2."),
)
"""mmsegmentation's names -> those of microsoft/unilm beit/semantic_segmentation/backbone/beit.py, which it ported."""


@dataclass
class Segmentor:
    path: Path
    backbone: str
    logits: Callable[[Tensor], Tensor]
    whole: Any = None
    mean_std: tuple[Tensor, Tensor] = IMAGENET
    taps: tuple[int, ...] | None = TAPS

    @property
    def options(self) -> list[str]:
        return [] if self.taps is None else [f"model.taps={list(self.taps)}"]


def mmseg(kind: str, folder: Path, classes: int = CLASSES, meta: object = None, unilm: bool = False) -> Segmentor:
    shape: Any = SimpleNamespace(embed_dim=DIM, depth=DEPTH, num_heads=HEADS, taps=TAPS)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        model: Any = randomised(make_mmseg(shape, SIZE, kind, classes))
    state = model.state_dict()
    if unilm:
        for theirs, own in UNILM:
            state = {name.replace(theirs, own): tensor for name, tensor in state.items()}
    torch.save({"meta": meta or {"epoch": 3}, "state_dict": state}, folder / "model.pth")
    beit_finetuned(folder)

    def logits(images: Tensor) -> Tensor:
        found: Tensor = model.encode_decode(images, [{"img_shape": images.shape[2:]}])
        return found

    return Segmentor(folder / "model.pth", BEIT if kind == "BEiT" else "mae_vit_nano", logits, model)


def hugging_face(folder: Path) -> Segmentor:
    options = {"out_indices": [3, 5, 7, 8], "use_relative_position_bias": True, "layer_norm_eps": 1e-3}
    config = transformers.BeitConfig(**{**HF, **options})
    model: Any = randomised(transformers.BeitForSemanticSegmentation(config))
    model.save_pretrained(folder)
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    beit_finetuned(folder)
    mean_std = (255 * torch.tensor([0.4, 0.5, 0.6]), 255 * torch.tensor([0.2, 0.3, 0.4]))

    def logits(images: Tensor) -> Tensor:
        found: Tensor = model(images).logits
        return nn.functional.interpolate(found, size=images.shape[2:], mode="bilinear", align_corners=False)

    return Segmentor(folder, BEIT, logits, mean_std=mean_std, taps=None)


def hugging_face_upernet(folder: Path, **changes: Any) -> Segmentor:
    options = {"out_indices": [2, 4, 5, 8], "use_relative_position_bias": True, "layer_norm_eps": 1e-3, "add_fpn": True}
    shape = {**HF, "num_labels": 2, "reshape_hidden_states": True, **options}
    heads = {"hidden_size": DIM, "auxiliary_in_channels": DIM, "num_labels": CLASSES, **changes}
    backbone = heads.pop("backbone_config", transformers.BeitConfig(**shape))
    config = transformers.UperNetConfig(backbone_config=backbone, **heads)
    model: Any = randomised(transformers.UperNetForSemanticSegmentation(config))
    model.save_pretrained(folder)
    beit_finetuned(folder)

    def logits(images: Tensor) -> Tensor:
        found: Tensor = model(images).logits
        return found

    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.2] * 3}))
    mean_std = (255 * torch.full((3,), 0.4), 255 * torch.full((3,), 0.2))
    return Segmentor(folder, BEIT, logits, mean_std=mean_std, taps=None)


SOURCES: dict[str, Callable[[Path], Segmentor]] = {
    "mmsegmentation MAE": lambda folder: mmseg("MAE", folder),
    "mmsegmentation BEiT": lambda folder: mmseg("BEiT", folder),
    "BEiT's code": lambda folder: mmseg("BEiT", folder, unilm=True),
    "transformers BEiT": hugging_face,
    "transformers UperNet": hugging_face_upernet,
}


@pytest.mark.reference
@pytest.mark.parametrize("name", SOURCES)
def test_logits_and_labels_are_those_of_the_source(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path)
    model, task = mt.load_model(source.path, task="ade20k", backbone=source.backbone, overrides=source.options)
    assert task == "ade20k"
    assert isinstance(model, UperNet)
    raw = torch.randint(256, (3, SIZE, 101), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    mean, std = (value[:, None, None] for value in source.mean_std)
    images = ((raw.float() - mean) / std)[None]
    with torch.no_grad():
        wanted, found = source.logits(images[..., :SIZE]), model.logits(model.encoder.normalise(raw[None, :, :, :SIZE]))
        assert wanted.std() > 0.05
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        labels = model({"views": [[raw]], "sizes": [(70, 90)]})[0]
        if source.whole is not None:
            sizes = {"ori_shape": (SIZE, 101), "img_shape": (SIZE, 101)}
            logits = source.whole.slide_inference(images, [sizes])
            resized = nn.functional.interpolate(logits, size=(70, 90), mode="bilinear", align_corners=False)
            assert labels.unique().numel() > 1
            assert (labels != resized[0].argmax(0)).sum() == 0
    assert model.image_size == SIZE
    assert model.predictor.config.stride == 2 * SIZE // 3, "as in the configurations of 512 and 640 pixels"


@pytest.mark.reference
def test_the_command_line_gives_the_miou_of_mmsegmentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import mmcv

    data = make_ade20k(tmp_path / "ade", train_images=1, val_images=3, size=(40, 64))
    for part in ("images", "annotations"):
        for file in (data / part / "training").iterdir():
            file.unlink()
        (data / part / "training").rmdir()
    source = mmseg("MAE", tmp_path, classes=150)
    pairs = np.zeros((150, 150), np.int64)
    for path in sorted((data / "images" / "validation").iterdir()):
        mask = np.asarray(Image.open(data / "annotations" / "validation" / f"{path.stem}.png")).astype(int)
        image = mmcv.imrescale(np.asarray(Image.open(path).convert("RGB")), (4 * SIZE, SIZE))
        pixels = ((torch.from_numpy(image).float() - IMAGENET[0]) / IMAGENET[1]).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = source.whole.slide_inference(pixels, [{"img_shape": pixels.shape[2:]}])
        found = nn.functional.interpolate(logits, size=mask.shape, mode="bilinear", align_corners=False)[0].argmax(0)
        np.add.at(pairs, (mask[mask > 0] - 1, found.numpy()[mask > 0]), 1)
    with np.errstate(invalid="ignore"):
        iou = np.diag(pairs) / (pairs.sum(0) + pairs.sum(1) - np.diag(pairs))
    output, options = tmp_path / "run", [*source.options, "data.workers=0", "eval.pictures=0"]
    command = ["--task", "ade20k", "--eval-only", "--backbone", source.backbone, "--checkpoint", str(source.path)]
    assert main([*command, "--data", str(data), "--device", "cpu", "--output", str(output), *options]) == 0
    record = read_record(output / "record.json")
    assert record["metrics"]["mIoU"] == pytest.approx(100 * np.nanmean(iou), abs=1e-9)
    assert (record["row"]["name"], record["steps"], record["data"]["train_images"]) == ("trained", 0, 0)
    said = capsys.readouterr().err
    assert "class order: 150 outputs taken as classes wall to flag; nothing in the file names them" in said


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    source = mmseg("MAE", tmp_path, meta={"CLASSES": NAMES})
    content = torch.load(source.path, weights_only=True)
    state, names = content["state_dict"], tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    data = make_ade20k(tmp_path / "ade", train_images=1, val_images=1, size=(40, 64))
    (mask,) = (data / "annotations" / "validation").iterdir()
    Image.fromarray(np.asarray(Image.open(mask)) % CLASSES + 1).save(mask)

    def refused(text: str, changed: dict[str, Tensor] = state, labels: object = None, *more: str) -> None:
        meta = {"CLASSES": NAMES} if labels is None else labels
        torch.save({"meta": meta, "state_dict": changed}, source.path)
        options = [*source.options, *(more or (f"data.num_classes={CLASSES}", f"data.class_names={names}"))]
        with pytest.raises(UserError, match=text) as error:
            mt.evaluate(source.path, data, task="ade20k", backbone=source.backbone, device="cpu", overrides=options)
        assert "\n" not in str(error.value)

    heads = [key for key in state if key.startswith(("decode_head.", "neck.", "auxiliary_head."))]
    for key in (heads[0], heads[-1], "neck.upsample_2x.0.bias", "backbone.layers.7.gamma_2", "backbone.pos_embed"):
        refused("does not fit the UperNet of mae_vit_nano", {k: v for k, v in state.items() if k != key})
    refused("unexpected .*extra", {**state, "decode_head.extra": torch.zeros(2)})
    narrow = {**state, "decode_head.bottleneck.conv.weight": state["decode_head.bottleneck.conv.weight"][:-1].clone()}
    refused(r"decode_head.bottleneck.conv.weight is \(63, ", narrow)
    refused("has 7 classes .* and the data have 150", state, None, "data.num_classes=150")
    refused(r"conv_seg.weight is \(7, 64, 1, 1\), not \(150", state, {"epoch": 1}, "data.num_classes=150")
    swapped = [NAMES[1], NAMES[0], *NAMES[2:]]
    for labels in ({"CLASSES": swapped}, {"dataset_meta": {"classes": tuple(swapped)}}):
        refused("its output 0 is 'thing 1', where the masks have 'thing 0': another order", state, labels)
    refused("is no UperNet of mmsegmentation", {"blocks.0.weight": torch.zeros(2), "decode_head.bias": torch.zeros(2)})


def test_other_upernets_of_transformers_are_refused(tmp_path: Path) -> None:
    def refused(text: str, name: str, **changes: Any) -> None:
        path = hugging_face_upernet(tmp_path / name, **changes).path
        with pytest.raises(UserError, match=text) as error:
            mt.load_model(path, task="ade20k", backbone=BEIT)
        assert "\n" not in str(error.value)

    (tmp_path / "scales").mkdir()
    (tmp_path / "dinov2").mkdir()
    refused(r"pool_scales \[1, 2, 3, 4\]; heads of \[1, 2, 3, 6\] are read", "scales", pool_scales=[1, 2, 3, 4])
    dinov2 = transformers.Dinov2Config(**HF, out_features=["stage3", "stage5", "stage6", "stage8"])
    refused("is a UperNet on dinov2; of transformers those on BEiT with add_fpn", "dinov2", backbone_config=dinov2)
