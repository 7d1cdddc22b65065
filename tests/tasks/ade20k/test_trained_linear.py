"""Linear segmentation heads of DINOv2 and DINOv3 from files on disk, against models written from their source."""

import io
import itertools
import math
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.layouts import rotary
from support.layouts.pretraining import interpolated_by_dino
from support.trained import DIM, arch, randomised
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

import mae_transfer as mt
from mae_transfer.cli.transfer import main
from mae_transfer.cli.verify import main as verify
from mae_transfer.data.synthetic.ade20k import make_ade20k
from mae_transfer.errors import UserError
from mae_transfer.run_folder.record import read_record
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.ade20k.data import Ade20kEval
from mae_transfer.tasks.ade20k.pairs import find_pairs
from mae_transfer.tasks.ade20k.protocols.linear import LinearSegmentor

DINOV2, DINOV3 = "timm:vit_verify_seg_dinov2", "timm:eva_verify_seg_dinov3"
SIDE = 61  # the patch of 14 does not divide it: 9 pixels of frame, 4 before and 5 after
CLASSES = 7
MEAN, STD = (torch.tensor(x)[:, None, None] for x in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
RATIOS = [1.0, 1.32, 1.73, 2.28, 3.0]
KEYS = (
    *("data.image_size", "data.short_side", "data.long_side", "eval.stride"),
    *("eval.ratios", "eval.flip", "eval.resize", "model.layers"),
)
SMALL = [f"data.image_size={SIDE}", f"data.short_side={SIDE}", "eval.stride=41"]
"""Instead of 512 and 341, or 640 and 320."""


@dataclass
class Files:
    """The two files, and the source's own logits of normalised images in windows, (1, K, H, W)."""

    encoder: Path
    head: Path
    backbone: str
    logits: Callable[[Tensor], Tensor]
    in_windows: Callable[[Tensor], Tensor]

    def options(self, *more: str) -> list[str]:
        return ["recipe=trained_linear", f"model.classifier={self.head}", *SMALL, *more]

    def load(self, *more: str) -> Any:
        return mt.load_model(self.encoder, task="ade20k", backbone=self.backbone, overrides=self.options(*more))[0]


class DinoVisionTransformer(nn.Module):
    """dinov2/models/vision_transformer.py, `get_intermediate_layers(n, reshape=True)` behind `CenterPadding`."""

    def __init__(self, vit: Any, blocks: list[int]) -> None:
        super().__init__()
        self.vit, self.blocks = vit, blocks

    def forward(self, x: Tensor) -> list[Tensor]:
        vit, pads = self.vit, []
        for size in x.shape[:1:-1]:
            new = math.ceil(size / 14) * 14
            pads.append(((new - size) // 2, new - size - (new - size) // 2))
        x = F.pad(x, list(itertools.chain.from_iterable(pads)))
        grid = x.shape[2] // 14, x.shape[3] // 14
        native = vit.pos_embed[:, 1:].reshape(1, 4, 4, DIM).permute(0, 3, 1, 2)
        position = interpolated_by_dino(native, grid) if grid != (4, 4) else native
        tokens = vit.patch_embed.proj(x).flatten(2).mT
        first = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = torch.cat([first, tokens + position.flatten(2).mT], dim=1)
        found = []
        for number, block in enumerate(vit.blocks):
            tokens = block(tokens)
            if number in self.blocks:
                found.append(vit.norm(tokens)[:, 1:].mT.unflatten(2, grid))
        return found


def _noise(side: int = SIDE) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(5))


def _centre(norm: Any, classifier: Any, features: Tensor) -> None:
    """Statistics near those of the features, so that no class wins everywhere."""
    with torch.no_grad():
        norm.running_mean.copy_(features.mean((0, 2, 3)))
        norm.running_var.copy_(features.var((0, 2, 3)) + 0.01)
        norm.bias.mul_(0.1)
        classifier.bias.mul_(0.1)


def bn_head(width: int, count: int, classes: int) -> Any:
    """dinov2/eval/segmentation/models/decode_heads/linear_head.py on mmsegmentation's `BaseDecodeHead`."""
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.models.utils import resize

    class BNHead(BaseDecodeHead):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(
                in_channels=[width] * count,
                in_index=list(range(count)),
                input_transform="resize_concat",
                channels=width * count,
                dropout_ratio=0,
                num_classes=classes,
                align_corners=False,
            )
            self.bn = nn.SyncBatchNorm(self.in_channels)

        def forward(self, inputs: list[Tensor]) -> Tensor:
            inputs = [resize(x, size=inputs[0].shape[2:], mode="bilinear", align_corners=False) for x in inputs]
            found: Tensor = self.cls_seg(self.bn(torch.cat(inputs, dim=1)))
            return found

    return BNHead()


def dinov2(folder: Path, *, ms: bool = False, classes: int = CLASSES, meta: object = None) -> Files:
    from mmengine import ConfigDict
    from mmseg.models import EncoderDecoder, SegDataPreProcessor
    from mmseg.registry import MODELS

    vit = arch(DINOV2[5:], VisionTransformer, patch_size=14, img_size=56, init_values=0.1, num_classes=0)
    torch.save({**vit.state_dict(), "mask_token": torch.zeros(1, DIM)}, folder / "dinov2_pretrain.pth")
    blocks = [4, 5, 6, 7] if ms else [7]
    parts = {
        "VerifyDinoVisionTransformer": lambda: DinoVisionTransformer(vit, blocks),
        "VerifyBNHead": lambda num_classes: bn_head(DIM, len(blocks), classes),
    }
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name, make in parts.items():
            MODELS.register_module(name=name, module=make, force=True)
        model: Any = EncoderDecoder(
            backbone={"type": "VerifyDinoVisionTransformer"},
            decode_head={"type": "VerifyBNHead", "num_classes": classes},
            data_preprocessor=SegDataPreProcessor(),
            test_cfg=ConfigDict(mode="slide", crop_size=(SIDE, SIDE), stride=(41, 41)),
        ).eval()
    head = randomised(model.decode_head)
    _centre(head.bn, head.conv_seg, torch.cat(model.backbone(_noise()), dim=1))
    state = {key: tensor for key, tensor in model.state_dict().items() if key.startswith("decode_head.")}
    torch.save({"meta": meta or {"iter": 40000}, "state_dict": state, "optimizer": {"state": {}}}, folder / "head.pth")
    return Files(
        *(folder / "dinov2_pretrain.pth", folder / "head.pth", DINOV2),
        lambda images: model.encode_decode(images, [{"img_shape": images.shape[2:]}]),
        lambda images: model.slide_inference(images, [{"img_shape": images.shape[2:]}]),
    )


def dinov3(folder: Path, blocks: tuple[int, ...] = (7,), classes: int = CLASSES) -> Files:
    """dinov3/eval/segmentation: `LinearHead`, `slide_inference` and the state dict that `train_segmentation` saves."""
    vit = arch(DINOV3[5:], Eva, **rotary.DINOV3, qkv_bias=False, num_classes=0)
    names = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "reg_token": "storage_tokens"}
    periods = {"rope_embed.periods": 100.0 ** (torch.arange(4) / 4)}
    torch.save(rotary.named(vit.state_dict(), names) | periods, folder / "dinov3_pretrain.pth")
    head = nn.Module()
    head.batchnorm_layer, head.conv = nn.SyncBatchNorm(DIM * len(blocks)), nn.Conv2d(DIM * len(blocks), classes, 1)
    norm: Any = randomised(head).batchnorm_layer
    maps = vit.forward_intermediates(_noise(64), indices=list(blocks), norm=True, intermediates_only=True)
    _centre(norm, head.conv, torch.cat(maps, dim=1))
    state = {f"segmentation_model.1.{key}": tensor for key, tensor in head.state_dict().items()}
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}}, folder / "model_final.pth")

    def predict(images: Tensor) -> Tensor:
        vit.set_input_size(img_size=images.shape[2:])
        maps = vit.forward_intermediates(images, indices=list(blocks), norm=True, intermediates_only=True)
        return F.interpolate(head.conv(norm(torch.cat(maps, dim=1))), size=images.shape[2:], mode="bilinear")

    def in_windows(images: Tensor) -> Tensor:
        total = torch.zeros(1, classes, *images.shape[2:])
        count = torch.zeros(1, 1, *images.shape[2:])
        starts = [[*range(0, max(size - 64, 0), 41), size - 64] for size in images.shape[2:]]
        for top, left in itertools.product(*starts):
            window = (..., slice(top, top + 64), slice(left, left + 64))
            total[window] += predict(images[window])
            count[window] += 1
        return total / count

    return Files(folder / "dinov3_pretrain.pth", folder / "model_final.pth", DINOV3, predict, in_windows)


SOURCES: dict[str, Callable[[Path], Files]] = {
    "DINOv2 linear": dinov2,
    "DINOv2 ms": lambda folder: dinov2(folder, ms=True),
    "DINOv3": dinov3,
    "DINOv3 four": lambda folder: dinov3(folder, (1, 3, 5, 7)),
}
MORE = {"DINOv3": ["data.image_size=64", "data.short_side=64"]}
MORE["DINOv3 four"] = [*MORE["DINOv3"], "model.layers=four_even"]


@pytest.mark.reference
@pytest.mark.parametrize("name", SOURCES)
def test_logits_and_labels_are_those_of_the_source(name: str, tmp_path: Path) -> None:
    files = SOURCES[name](tmp_path)
    model = files.load("eval.ratios=[1.0]", "eval.flip=false", *MORE.get(name, []))
    assert isinstance(model, LinearSegmentor)
    side = 64 if "DINOv3" in name else SIDE
    raw = torch.randint(256, (3, side, 101), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    images = ((raw.float() - MEAN) / STD)[None]
    with torch.no_grad():
        wanted, found = files.logits(images[..., :side]), model.logits(model.encoder.normalise(raw[None, ..., :side]))
        assert wanted.std() > 0.05
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        labels = model({"views": [[raw]], "sizes": [(70, 90)]})[0]
        resized = F.interpolate(files.in_windows(images), size=(70, 90), mode="bilinear", align_corners=False)
    assert labels.unique().numel() > 2
    assert (labels != resized[0].argmax(0)).sum() == 0


def views_of(image: np.ndarray, name: str) -> list[Tensor]:
    """The source's own test pipeline, normalised: one view, or five sizes and their mirror images."""
    import mmcv

    if "DINOv3" in name:  # FixedSideResize of transforms.py on a PIL image
        height, width = image.shape[:2]
        size = (64, int(64 * height / width + 0.5)) if height > width else (int(64 * width / height + 0.5), 64)
        resized = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))]
    else:  # MultiScaleFlipAug of mmsegmentation 0.x, img_scale (99999999, side)
        ratios = RATIOS if name == "DINOv2 ms" else [1.0]
        resized = [mmcv.imrescale(image, (int(99999999 * r), int(SIDE * r))) for r in ratios]
        resized = [view for pixels in resized for view in (pixels, pixels[:, ::-1])[: 1 + (name == "DINOv2 ms")]]
    return [((torch.from_numpy(x.copy()).permute(2, 0, 1).float() - MEAN) / STD)[None] for x in resized]


@pytest.mark.reference
@pytest.mark.parametrize("name", ["DINOv2 linear", "DINOv2 ms", "DINOv3"])
def test_the_command_line_gives_every_pixel_the_label_of_the_source(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The masks are the source's own labels: any pixel with another one lowers the accuracy."""
    data = make_ade20k(tmp_path / "ade", train_images=1, val_images=1 if name == "DINOv2 ms" else 2, size=(40, 64))
    kinds: dict[str, Callable[[Path], Files]] = {
        "DINOv2 linear": lambda folder: dinov2(folder, classes=150),
        "DINOv2 ms": lambda folder: dinov2(folder, ms=True, classes=150),
        "DINOv3": lambda folder: dinov3(folder, classes=150),
    }
    files = kinds[name](tmp_path)
    for path in sorted((data / "images" / "validation").iterdir()):
        image = np.asarray(Image.open(path).convert("RGB"))
        total = torch.zeros(150, *image.shape[:2])
        for number, view in enumerate(views_of(image, name)):
            with torch.no_grad():
                logits = files.in_windows(view)
            chances = F.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False).softmax(1)[0]
            total += chances.flip(-1) if number % 2 else chances
        labels = total.argmax(0)
        assert labels.unique().numel() > 5
        mask = Image.fromarray((labels + 1).numpy().astype(np.uint8))
        mask.save(data / "annotations" / "validation" / f"{path.stem}.png")
    output, options = tmp_path / "run", files.options("data.workers=0", "eval.pictures=0", *MORE.get(name, []))
    command = ["--task", "ade20k", "--eval-only", "--backbone", files.backbone, "--checkpoint", str(files.encoder)]
    assert main([*command, "--data", str(data), "--device", "cpu", "--output", str(output), *options]) == 0
    record = read_record(output / "record.json")
    assert (record["metrics"]["aAcc"], record["metrics"]["mIoU"]) == (100, 100)
    assert (record["row"]["name"], record["recipe"], record["data"]["train_images"]) == ("trained", "trained_linear", 0)
    said = capsys.readouterr().err
    read = "blocks 4, 5, 6, 7" if name == "DINOv2 ms" else "block 7"
    assert f"linear head of {name.split()[0]} on {read}" in said
    assert "class order: 150 outputs taken as classes wall to flag; nothing in the file names them" in said


def test_verify_takes_the_head_that_lies_beside_its_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = dinov2(tmp_path, classes=150)
    data = make_ade20k(tmp_path / "ade", train_images=1, val_images=1, size=(40, 64))
    model = {"task": "ade20k", "backbone": DINOV2, "images": 1, "metrics": {"mIoU": 0.0}, "tolerance": 100.0}
    model |= {"file": files.encoder.name, "classifier": files.head.name, "source": "this test"}
    model["settings"] = {"recipe": "trained_linear", **dict(text.split("=") for text in SMALL)}
    (tmp_path / "list.yaml").write_text(yaml.safe_dump({"tiny": model}))

    def verify_tiny(*more: str) -> tuple[int, str]:
        command = ["--models", str(tmp_path / "list.yaml"), "--data", str(data), "--output", str(tmp_path / "run")]
        code = verify([*command, *more, "--device", "cpu", "data.workers=0", "eval.pictures=0"])
        return code, "".join(capsys.readouterr())

    assert verify_tiny("tiny", "--checkpoint", str(tmp_path))[0] == 0, "the folder that has both"
    record = read_record(tmp_path / "run" / "record.json")
    assert record["published_model"]["classifier"] == files.head.name  # type: ignore[typeddict-item]
    assert verify_tiny("--all", "--checkpoint", str(tmp_path))[0] == 0
    (tmp_path / "apart").mkdir()
    head = files.head.rename(tmp_path / "apart" / "head.pth")
    code, said = verify_tiny("tiny", "--checkpoint", str(files.encoder))
    assert (code, said.count("error: ")) == (2, 1)
    assert "head.pth: the head is not beside its encoder; put it there, or pass model.classifier=FILE" in said
    elsewhere = ["--output", str(tmp_path / "other"), f"model.classifier={head}"]
    assert verify_tiny("tiny", "--checkpoint", str(files.encoder), *elsewhere)[0] == 0
    code, said = verify_tiny("--all", "--checkpoint", str(tmp_path))
    assert code == 2
    assert "weights files is a published model's, by name or hash" in said


def test_the_evaluation_is_the_one_that_the_source_states(tmp_path: Path) -> None:
    def stated(files: Files, *more: str) -> dict[str, object]:
        overrides = ["recipe=trained_linear", f"model.classifier={files.head}", *more]
        options = {"backbone.checkpoint": str(files.encoder)}
        config = load_config("ade20k", files.backbone, protocol="trained", options=options, overrides=overrides)
        found = {key: config.model_dump() for key in KEYS}
        return {key: tree[key.split(".")[0]][key.split(".")[1]] for key, tree in found.items()}

    one = {"data.image_size": 512, "data.short_side": 512, "data.long_side": 99999999, "eval.stride": 341}
    one |= {"eval.ratios": (1.0,), "eval.flip": False, "eval.resize": "opencv", "model.layers": "last"}
    assert stated(dinov2(tmp_path)) == one
    ms = {"data.image_size": 640, "data.short_side": 640, "eval.stride": 320, "model.layers": "last_four"}
    assert stated(dinov2(tmp_path, ms=True)) == one | ms | {"eval.ratios": tuple(RATIOS), "eval.flip": True}
    assert stated(dinov3(tmp_path)) == one | {"eval.resize": "pillow"}
    four = dinov3(tmp_path, (4, 5, 6, 7))
    with pytest.raises(UserError, match=r"has no segmentation_config.yaml .* model.layers=last_four"):
        stated(four)
    config: dict[str, Any] = {"decoder_head": {"backbone_out_layers": "FOUR_LAST"}, "eval": {"crop_size": 448}}
    (tmp_path / "segmentation_config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"segmentation_config.yaml: has no eval.crop_size, eval.stride"):
        stated(four)
    config["eval"]["stride"] = 299
    (tmp_path / "segmentation_config.yaml").write_text(yaml.safe_dump(config))
    said = {"data.image_size": 448, "data.short_side": 448, "eval.stride": 299, "model.layers": "last_four"}
    assert stated(four) == one | said | {"eval.resize": "pillow"}
    assert stated(four, "model.layers=[1,3,5,7]")["model.layers"] == (1, 3, 5, 7), "what is asked for wins"


def test_images_are_resized_by_the_library_that_the_source_uses(tmp_path: Path) -> None:
    data = make_ade20k(tmp_path / "ade", train_images=1, val_images=1, size=(200, 320))
    (path,) = (data / "images" / "validation").iterdir()
    image = Image.open(path).convert("RGB")
    views = {}
    for resize in ("opencv", "pillow"):
        options = [f"data.root={data}", *SMALL, f"eval.resize={resize}"]
        config: Any = load_config("ade20k", "mae_vit_nano", overrides=options)
        (views[resize],) = Ade20kEval(find_pairs(config.data, "val"), config)[0]["views"]
    size = (round(61 * image.width / image.height), 61)
    wanted = np.asarray(image.resize(size, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    np.testing.assert_array_equal(views["pillow"].numpy(), wanted)
    assert views["opencv"].shape == views["pillow"].shape
    assert (views["opencv"].int() - views["pillow"].int()).abs().max() > 5


def test_what_does_not_fit_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"thing {number}" for number in range(CLASSES)]
    files = dinov2(tmp_path, meta={"CLASSES": names})
    state = torch.load(files.head, weights_only=True)["state_dict"]

    def refused(text: str, changed: dict[str, Tensor], *more: str) -> None:
        torch.save({"meta": {"CLASSES": names}, "state_dict": changed}, files.head)
        with pytest.raises(UserError, match=text) as error:
            files.load(*more)
        assert "\n" not in str(error.value)

    for key in ("bn.running_mean", "bn.running_var", "bn.bias", "conv_seg.bias"):
        refused(f"missing decode_head.{key}", {k: v for k, v in state.items() if k != f"decode_head.{key}"})
    refused("unexpected decode_head.extra", {**state, "decode_head.extra": torch.zeros(2)})
    refused("running_var holds values below 0", {**state, "decode_head.bn.running_var": -torch.ones(DIM)})
    refused("holds NaN", {**state, "decode_head.bn.weight": torch.full((DIM,), math.nan)})
    narrow = {**state, "decode_head.conv_seg.weight": state["decode_head.conv_seg.weight"][:, :48].clone()}
    refused("its classifier reads 48 numbers; of this encoder it has to be 64 or 256", narrow)
    refused(r"norm.bias is \(63,\), not \(64,\)", {**state, "decode_head.bn.bias": torch.zeros(63)})
    refused(r"is \(7, 64, 3, 3\), no 1x1", {**state, "decode_head.conv_seg.weight": torch.zeros(7, 64, 3, 3)})
    refused(r"norm.weight is \(64,\), not \(256,\)", state, "model.layers=last_four")
    refused(
        "no linear segmentation head of DINOv2", {"linear.weight": torch.zeros(7, 64), "linear.bias": torch.zeros(7)}
    )
    torch.save({"meta": {"CLASSES": names}, "state_dict": state}, files.head)

    data = make_ade20k(tmp_path / "ade", train_images=1, val_images=1, size=(40, 64))
    (mask,) = (data / "annotations" / "validation").iterdir()
    Image.fromarray(np.asarray(Image.open(mask)) % CLASSES + 1).save(mask)
    (tmp_path / "names.txt").write_text("\n".join([names[1], names[0], *names[2:]]))
    swapped = [f"data.num_classes={CLASSES}", f"data.class_names={tmp_path / 'names.txt'}"]
    encoder, linear = ["--checkpoint", str(files.encoder)], "recipe=trained_linear"
    for text, given in (
        ("has 7 classes, and the data have 150", [*encoder, *files.options()]),
        ("its output 0 is 'thing 0', where the masks have 'thing 1'", [*encoder, *files.options(), *swapped]),
        ("is evaluated by recipe=trained_linear", [*encoder, f"model.classifier={files.head}"]),
        ("pass model.classifier=FILE", [*encoder, linear]),
        ("no such file", [*encoder, linear, f"model.classifier={tmp_path / 'none.pth'}"]),
        ("with random weights: pass the head's encoder", ["--weights", "random", *files.options()]),
    ):
        command = ["--task", "ade20k", "--protocol", "trained", "--backbone", files.backbone, "--data", str(data)]
        assert main([*command, "--output", str(tmp_path / "run"), "--device", "cpu", *given]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert text in lines[0]
        assert not (tmp_path / "run").exists()
