"""Data sets of boxes without masks: what is read, trained, scored, converted and shown of them."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.coco_command import BASE, TINY
from support.detector_goldens import NUM_CLASSES, golden_batch, golden_images, golden_model
from support.detector_standin import StandInEncoder, small_config

from mae_transfer.cli.tables import main as tables
from mae_transfer.cli.transfer import main
from mae_transfer.cli.validate import main as validate
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.errors import UserError
from mae_transfer.run_folder.pictures import read_pictures
from mae_transfer.run_folder.record import read_record
from mae_transfer.tasks.coco.annotations import CocoAnnotations, ObjectRecord, check_same_kind
from mae_transfer.tasks.coco.card import STATISTICS
from mae_transfer.tasks.coco.config import DataConfig
from mae_transfer.tasks.coco.detectron2.convert import translate
from mae_transfer.tasks.coco.evaluate import encode, score
from mae_transfer.tasks.coco.model import build_mask_rcnn
from mae_transfer.tasks.coco.transforms import Jitter, draw_jitter, transform_objects

WIDTH, HEIGHT = 320, 240
Change = Callable[[dict[str, Any]], None]


def truth() -> dict[str, Any]:
    """Boxes of all three size classes, a crowd among them."""
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in (3, 5, 8)]
    annotations = []
    for number in range(1, 19):
        w, h = (20, 60, 140)[number % 3] * rng.uniform(0.9, 1.3, 2)
        x, y = rng.uniform(0, [WIDTH - w, HEIGHT - h])
        entry = {"id": number, "image_id": images[number % 3]["id"], "category_id": 7 + number % 2}
        annotations.append(entry | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": int(number == 15)})
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "a"}, {"id": 8, "name": "b"}],
    }


def load(path: Path, content: dict[str, Any]) -> CocoAnnotations:
    path.write_text(json.dumps(content))
    return CocoAnnotations(path)


def changed(change: Change) -> dict[str, Any]:
    content = truth()
    for annotation in content["annotations"]:
        change(annotation)
    return content


def scaled_area(factor: float) -> Change:
    return lambda a: a.update(area=a["area"] * factor)


def boxes_as(make: Callable[..., list[float]]) -> Change:
    return lambda a: a.update(bbox=make(*a["bbox"]))


READ: dict[str, tuple[Change, str]] = {
    "no key": (lambda a: None, ""),
    "null": (lambda a: a.update(segmentation=None), ""),
    "an empty list": (lambda a: a.update(segmentation=[]), ""),
    "no area": (lambda a: a.pop("area"), "18 of 18 annotations have no area .*computed from their boxes"),
    "areas of masks": (scaled_area(0.6), "17 of 18 annotations have an area below .* the area of a mask"),
}
REFUSED: dict[str, tuple[Change, str]] = {
    "area 0": (scaled_area(0), "have an area that no object in their box can have"),
    "area of another size": (scaled_area(4), "have an area that no object in their box can have"),
    "area in 0..1": (scaled_area(1 / WIDTH / HEIGHT), "have an area that no object in their box can have"),
    "corners": (boxes_as(lambda x, y, w, h: [x, y, x + w, y + h]), r"17 of 18 .* area of a box \[x1, y1, x2, y2\]"),
    "corners without area": (
        lambda a: a.update(bbox=[*a["bbox"][:2], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]], area=None),
        r"leaves its image.* as \[x1, y1, x2, y2\]",
    ),
    "0..1": (boxes_as(lambda x, y, w, h: [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]), "within the first pixel"),
    "outside": (boxes_as(lambda x, y, w, h: [x + WIDTH, y, w, h]), "leaves its image"),
}


@pytest.mark.parametrize("name", READ)
def test_ground_truth_fed_back_scores_100(name: str, tmp_path: Path) -> None:
    change, message = READ[name]
    annotations = load(tmp_path / "boxes.json", changed(change))
    assert not annotations.has_masks
    assert len(annotations.warnings) == bool(message)
    for warning in annotations.warnings:
        assert re.search(message, warning)
    found = []
    for image_id in annotations.image_ids.tolist():
        objects = [a for a in truth()["annotations"] if a["image_id"] == image_id and not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in objects])
        boxes[:, 2:] += boxes[:, :2]
        classes = torch.tensor([a["category_id"] - 7 for a in objects])
        found.append(encode(image_id, {"boxes": boxes, "scores": torch.ones(len(boxes)), "classes": classes}))
    metrics = score(annotations, found, per_class=True)
    assert set(metrics) == {f"box_{name}" for name in STATISTICS} | {"box_AP/a", "box_AP/b"}
    sizes = ("box_AP", "box_AP50") if name == "areas of masks" else ("box_AP", "box_APs", "box_APm", "box_APl")
    assert [metrics[key] for key in sizes] == pytest.approx([100] * len(sizes))


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_an_ap_wrong_is_refused(name: str, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "boxes.json", changed(change))
    assert "\n" not in str(caught.value)


def test_masks_of_some_objects_or_of_one_file_are_refused(tmp_path: Path) -> None:
    bare, some, masked = truth(), truth(), truth()
    for number, annotation in enumerate(masked["annotations"]):
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if number < 5:
            some["annotations"][number] = copy.deepcopy(annotation)
    with pytest.raises(
        UserError, match=r"some\.json: annotation 6 has no segmentation .13 of 18 have none.*boxes alone"
    ):
        load(tmp_path / "some.json", some)
    one, other = load(tmp_path / "bare.json", bare), load(tmp_path / "masked.json", masked)
    for pair in ((one, other), (other, one)):
        with pytest.raises(UserError, match=r"bare\.json: none of its 18 annotations .* all 18 of .*masked\.json have"):
            check_same_kind(*pair)
    assert check_same_kind(other, other) == []
    (line,) = check_same_kind(one, one)
    assert "no mask head, and box AP alone is scored" in line


@pytest.mark.parametrize("pad_value", [None, 128])
def test_boxes_are_jittered_as_rectangles_are(pad_value: int | None) -> None:
    """A rectangle that is cut as a polygon has the box that is cut as a box."""
    config = DataConfig(image_size=96, scale_min=0.1, scale_max=2.0, pad_value=pad_value)
    rng, seen = np.random.default_rng(3), 0
    for _ in range(60):
        height, width = rng.integers(40, 200, 2).tolist()
        jitter = draw_jitter(height, width, config, rng)
        low, high = np.sort(rng.uniform(0, [width, height], (2, 2)), axis=0)
        (x, y), (right, bottom) = low.tolist(), high.tolist()
        box, area = (x, y, right - x, bottom - y), (right - x) * (bottom - y)
        outline = np.array([x, y, right, y, right, bottom, x, bottom])
        drawn = transform_objects([ObjectRecord(1, 4, box, area, False, [outline])], jitter)
        alone = transform_objects([ObjectRecord(1, 4, box, area, False, None)], jitter)
        np.testing.assert_allclose(alone[0], drawn[0], atol=1e-4)
        assert alone[1].tolist() == drawn[1].tolist()
        assert alone[2] == []
        seen += len(alone[1])
    assert 20 < seen < 60, "some are cut away"
    beyond = Jitter((50, 100), (100, 200), (0, 0), (96, 96), 96, (96, 96), 0, True)
    assert beyond.box((40, 10, 30, 80)).tolist() == [0, 20, 16, 96], "cut to the image"


DETECTORS: dict[str, dict[str, Any]] = {
    "li2021": {},
    "vitdet": {"pyramid": "simple", "norm": "LN"},
    "cascade": {"pyramid": "simple", "norm": "LN", "cascade": True},
    "cascade, batch norm": {"norm": "BN", "cascade": True},
}


@pytest.mark.parametrize("name", DETECTORS)
def test_the_detector_is_the_same_without_its_mask_head(name: str) -> None:
    """Losses, gradients and detections are those of the detector with masks and the same weights."""
    options = DETECTORS[name] | {"roi_batch_per_image": 32, "box_convs": 1, "mask_convs": 1}
    whole = golden_model(7, **options)
    bare = build_mask_rcnn(StandInEncoder(), NUM_CLASSES, small_config(**options), masks=False).double()
    weights = {key: value for key, value in whole.state_dict().items() if ".mask_" not in key}
    bare.load_state_dict(weights)
    batch, images = golden_batch(7, [3, 0, 4]), golden_images(7)
    boxes_alone = batch | {"targets": [target | {"masks": []} for target in batch["targets"]]}
    with torch.no_grad():
        found, same = (model.eval()(take(images, [2])) for model in (bare, whole))
    assert set(found[0]) == {"boxes", "scores", "classes"}
    assert len(found[0]["boxes"]) == 100
    assert all(torch.equal(found[0][key], same[0][key]) for key in found[0])
    losses, fewer = whole.train()(take(batch, [0, 1])), bare.train()(take(boxes_alone, [0, 1]))
    assert fewer.keys() == losses.keys() - {"loss_mask"}
    assert {key: loss.item() for key, loss in fewer.items()} == {key: losses[key].item() for key in fewer}
    sum(fewer.values()).backward()
    sum(losses[key] for key in fewer).backward()
    expected = dict(whole.named_parameters())
    for key, parameter in bare.named_parameters():
        assert parameter.grad is not None, f"{key} takes part in the loss"
        torch.testing.assert_close(parameter.grad, expected[key].grad, msg=key)


def take(batch: dict[str, Any], places: list[int]) -> dict[str, Any]:
    return {key: [values[place] for place in places] for key, values in batch.items()}


@pytest.mark.parametrize("name", ["li2021", "cascade, batch norm"])
def test_its_weights_go_to_detectron2_and_back(name: str) -> None:
    from support.detectron2_cases import vit_encoder

    model = build_mask_rcnn(vit_encoder(), NUM_CLASSES, small_config(**DETECTORS[name]), masks=False)
    state = model.state_dict()
    theirs = translate(state, "detectron2", "run")
    assert not any("mask" in key for key in theirs)
    back = translate(theirs, "mae_transfer", "theirs")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    with pytest.raises(UserError, match=r"lacks roi_heads\.box_predictor"):
        translate({key: v for key, v in theirs.items() if "bbox_pred.bias" not in key}, "mae_transfer", "theirs")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images whose objects have lost masks and areas."""
    folder = make_coco(tmp_path_factory.mktemp("data") / "coco", train_images=6, val_images=3, size=(48, 64))
    for path in folder.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"], annotation["area"]
        path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("recipe", ["mask_rcnn_li2021", "vitdet_cascade"])
def test_a_run_from_command_to_table(
    recipe: str, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "runs" / "run"
    options = [f"recipe={recipe}", "schedule.steps=2", "train.checkpoint_every=1", "eval.pictures=2"]
    command = [*BASE, "--data", str(data), "--output", str(output), *TINY, *options]
    assert main(command) == 0
    log = (output / "log.txt").read_text()
    assert log.count("boxes without masks: the detector has no mask head, and box AP alone is scored") == 1
    assert log.count("have no area") == 2
    record = read_record(output / "record.json")
    assert set(record["metrics"]) == {f"box_{name}" for name in STATISTICS}
    assert not any("loss_mask" in line for line in (output / "metrics.jsonl").read_text().splitlines())
    assert len(read_pictures(output)[0]) == 2
    assert main([*command, "--eval-only"]) == 0
    assert read_record(output / "record.json")["metrics"] == record["metrics"]
    (output / "checkpoints" / "step_00000002.pt").unlink()
    assert main([*command, "--resume"]) == 0
    assert read_record(output / "record.json")["metrics"] == record["metrics"]
    assert validate([str(tmp_path / "runs")]) == 0
    capsys.readouterr()
    assert tables(["--runs", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "runs" / "tables.md").read_text() in printed, "beside the runs where these have a folder"
    assert "| initialisation | AP box nano | AP mask nano |" in printed
    assert re.search(r"^\| random \| \d+\.\d \(n=1\) \| - \|$", printed, re.MULTILINE)
