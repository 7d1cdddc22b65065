"""Numbers of tiny models made from seeds, kept in goldens/tiny_models.yaml, come out of the command line as before.

The segmentor and the detector are those of support/tiny_models.py. The classifier is timm's, with weights from numpy's
generator and a last layer by the nearest class mean of its features; its expected numbers are those of timm's model and
transform.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import paths, tiny_models
from support.trained import CLASSES, PLAIN, SHAPE, SIZE
from timm.data import create_transform
from timm.models.vision_transformer import VisionTransformer

import mae_transfer as mt
from mae_transfer.cli.transfer import main as transfer
from mae_transfer.cli.verify import main
from mae_transfer.data.synthetic.classification import draw
from mae_transfer.errors import UserError
from mae_transfer.results.published_models import find_published_model
from mae_transfer.run_folder.record import read_record
from mae_transfer.run_folder.validation import validate
from mae_transfer.tasks.classification.protocols.trained import TrainedClassifier

MODELS = paths.GOLDENS / "tiny_models.yaml"
EACH = 20


def picture(label: int, number: int) -> Image.Image:
    """Stripes under so much noise that classes are mixed up."""
    rng = np.random.default_rng((label, number))
    image = np.asarray(draw(label, 90, 120, rng), dtype=np.float64) * 0.09
    return Image.fromarray((image + rng.uniform(0, 240, image.shape)).astype(np.uint8))


def timms() -> VisionTransformer:
    model = VisionTransformer(**SHAPE, num_classes=CLASSES, global_pool="avg").eval()
    rng = np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.data = torch.from_numpy(rng.normal(0, 0.1, parameter.shape)).float()
    return model


def features(model: VisionTransformer, numbers: range) -> torch.Tensor:
    """(CLASSES, len(numbers), width), after the norm."""
    options = {"crop_pct": 224 / 256, "interpolation": "bicubic", "mean": (0.485, 0.456, 0.406)}
    transform = create_transform((3, SIZE, SIZE), **options, std=(0.229, 0.224, 0.225))
    images = [[transform(picture(label, number)) for number in numbers] for label in range(CLASSES)]
    with torch.no_grad():
        rows = [model.forward_head(model.forward_features(torch.stack(of)), pre_logits=True) for of in images]
    return torch.stack(rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[float]]:
    """The model's file, the val images, and top-1 and top-5 by timm."""
    folder, model = tmp_path_factory.mktemp("tiny"), timms()
    means = features(model, range(1000, 1020)).mean(1)
    model.head.weight.data, model.head.bias.data = means, -means.pow(2).sum(1) / 2
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    for label in range(CLASSES):
        place = folder / "data" / "val" / f"class{label}"
        place.mkdir(parents=True)
        for number in range(EACH):
            picture(label, number).save(place / f"{number:02d}.png")
    with torch.no_grad():
        scores = model.head(features(model, range(EACH))).flatten(0, 1)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    right = scores.topk(5).indices == labels[:, None]
    return folder / "model.pth", folder / "data", [100 * float(right[:, :k].any(1).float().mean()) for k in (1, 5)]


def test_the_expected_numbers_are_those_of_timm(made: tuple[Path, Path, list[float]]) -> None:
    expected = find_published_model("nearest_centroid", MODELS)
    assert [*expected.metrics.values()] == pytest.approx(made[2], abs=expected.tolerance)
    assert 25 < made[2][0] < 95, "neither chance nor all right"


def test_they_come_out_of_the_command_line(made: tuple[Path, Path, list[float]], tmp_path: Path) -> None:
    model, data, numbers = made
    options = ["--models", str(MODELS), "--checkpoint", str(model), "--data", str(data), "--device", "cpu"]
    more = ["data.workers=0", "eval.pictures=0"]
    assert main(["nearest_centroid", *options, "--output", str(tmp_path / "run"), *more]) == 0
    other = [*options, "--output", str(tmp_path / "other"), *more, "eval.crop_pct=0.4"]
    assert main(["nearest_centroid", *other]) == 4, "another crop is another number"
    record = mt.run_transfer(
        "folder",
        PLAIN,
        protocol="trained",
        checkpoint=model,
        data=data,
        device="cpu",
        output=tmp_path / "python",
        overrides={"data.image_size": SIZE, "data.workers": 0, "eval.pictures": 0},
    )
    assert record["metrics"]["top1"] == pytest.approx(numbers[0], abs=0.72), "the same from Python"


def test_a_model_in_memory_has_the_same_numbers(made: tuple[Path, Path, list[float]]) -> None:
    path, data, numbers = made
    settings = {"data": {"image_size": SIZE, "workers": 0}}
    model, task = mt.load_model(path, backbone=PLAIN, overrides=settings)
    assert task == "folder"
    assert isinstance(model, TrainedClassifier)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    with torch.no_grad():
        wanted = timms_scores(path, model.encoder.normalise(images))
        torch.testing.assert_close(model({"images": images})[0], wanted, rtol=0, atol=1e-4)
    expected = find_published_model("nearest_centroid", MODELS)
    found = mt.evaluate(model, data, device="cpu")
    assert [found["top1"], found["top5"]] == pytest.approx(numbers, abs=expected.tolerance)
    assert mt.evaluate(path, data, backbone=PLAIN, device="cpu", overrides=settings) == found
    with torch.no_grad():
        model.layers[0].bias[3] += 1e6
    assert mt.evaluate(copy.deepcopy(model), data, device="cpu")["top1"] == pytest.approx(100 / CLASSES), "its weights"
    for wrong, options, text in (
        (torch.nn.Identity(), {}, "takes a model of mt.load_model"),
        (model, {"backbone": PLAIN}, "give it to mt.load_model"),
        (model, {"overrides": {"optim.lr": 3}}, "optim.lr"),
    ):
        with pytest.raises(UserError, match=text):
            mt.evaluate(wrong, data, **options)
    model.layers[0] = torch.nn.Linear(64, CLASSES + 1)
    with pytest.raises(UserError, match="has other weights than its file"):
        mt.evaluate(model, data, device="cpu")
    with pytest.raises(UserError, match="evaluates no trained model's file"):
        mt.load_model(path, task="pretrain", backbone=PLAIN)


KINDS = {
    "tiny_segmentor": (tiny_models.fitted_segmentor, tiny_models.segmentor_data, "data.short_side=80"),
    "tiny_detector": (tiny_models.fitted_detector, tiny_models.detector_data, "eval.nms_threshold=0.6"),
}


@pytest.mark.parametrize("name", KINDS)
def test_segmentor_and_detector_have_their_numbers(name: str, tmp_path: Path) -> None:
    fitted, make_data, other = KINDS[name]
    with np.load(tiny_models.FITTED) as layers:
        torch.save({"state_dict": fitted(layers)}, tmp_path / "model.pth")
    data = make_data(tmp_path / "data")
    expected = find_published_model(name, MODELS)
    settings = [f"{key}={value}" for key, value in expected.settings.items()]
    more = ["--data", str(data), "--device", "cpu", "--checkpoint", str(tmp_path / "model.pth")]
    quick = ["data.workers=0", "eval.pictures=0"]
    options = ["--task", expected.task, "--eval-only", "--backbone", expected.backbone, *settings]
    assert transfer([*options, *more, *quick, "--output", str(tmp_path / "run")]) == 0
    found = read_record(tmp_path / "run" / "record.json")["metrics"]
    wanted = pytest.approx(dict(expected.metrics), abs=expected.tolerance)
    assert {key: found[key] for key in expected.metrics} == wanted
    assert validate(tmp_path) == (1, [])
    verify = [name, "--models", str(MODELS), *more, *quick, "--output", str(tmp_path / "verified")]
    assert main([*verify, other]) == 4, "another evaluation is another number"


def timms_scores(path: Path, images: torch.Tensor) -> torch.Tensor:
    model = timms()
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    scores: torch.Tensor = model(images)
    return scores
