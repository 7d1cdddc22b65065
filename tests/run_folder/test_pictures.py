"""Pictures of runs: what is on them, always the same ones, and metrics and generators that they leave alone."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.coco_command import TINY as TINY_COCO

from mae_transfer.data.drawing import class_colour
from mae_transfer.engine.distributed import make_fabric
from mae_transfer.engine.task import Evaluation
from mae_transfer.run_folder.pictures import Picture, read_pictures, write_pictures
from mae_transfer.run_folder.record import read_record
from mae_transfer.run_folder.settings import settings_id
from mae_transfer.runs.api import run_pretrain, run_transfer
from mae_transfer.runs.resolve import load_config
from mae_transfer.runs.tasks import make_task
from mae_transfer.tasks.ade20k.pictures import overlay as class_overlay
from mae_transfer.tasks.ade20k.transforms import IGNORE
from mae_transfer.tasks.coco.pictures import SCORE, Instance, _edge, _of_object, _of_output, overlay

TINY: dict[str, list[str]] = {
    "coco": [*TINY_COCO, "schedule.steps=1", "schedule.warmup_steps=0"],
    "ade20k": [
        *("data.image_size=32", "data.short_side=32", "data.long_side=128", "eval.stride=24", "schedule.steps=2"),
        *("model.head_channels=16", "model.aux_channels=8"),
    ],
    "knn": ["data.image_size=32"],
    "linear": ["data.image_size=32"],
    "mae": ["data.image_size=32"],
}
COUNTS = {"coco": 2, "ade20k": 3, "knn": 3, "linear": 2, "mae": 2}
"""With that of attention distance, of classification and ADE20K."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated sets go to a folder of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def run(kind: str, output: Path, pictures: int) -> dict[str, Any]:
    overrides = [*TINY[kind], f"eval.pictures={pictures}"]
    common: dict[str, Any] = {"preset": "smoke", "subset": 8, "device": "cpu", "output": output}
    if kind == "mae":
        return run_pretrain("mae", "vit_nano", overrides=overrides, **common)
    task, protocol = ("folder", kind) if kind in ("knn", "linear") else (kind, None)
    return run_transfer(task, "random_vit_nano", protocol=protocol, overrides=overrides, **common)


@pytest.mark.parametrize("kind", list(TINY))
def test_metrics_are_the_same_with_and_without(kind: str, tmp_path: Path) -> None:
    with_some, without = run(kind, tmp_path / "a", 2), run(kind, tmp_path / "b", 0)
    stored = [read_record(tmp_path / name / "record.json")["metrics"] for name in "ab"]
    assert stored[0] == stored[1], "to the last bit; what is NaN is None there"
    assert with_some["history"] == without["history"]
    assert with_some["settings_id"] == without["settings_id"] == settings_id(with_some["settings"])
    assert not (tmp_path / "b" / "pictures").exists()
    found, problem = read_pictures(tmp_path / "a")
    assert (len(found), problem) == (COUNTS[kind], None)
    for picture in found:
        image = Image.open(picture.path)
        assert min(image.size) > 60
        assert np.asarray(image).std() > 5
        assert picture.title
        assert picture.caption


@pytest.mark.parametrize("task", ["coco", "ade20k"])
def test_drawing_leaves_generators_and_model_alone(task: str) -> None:
    overrides = [*TINY[task], "data.root=synthetic", "device=cpu", "subset=8", "eval.pictures=1"]
    config = load_config(task, "random_vit_nano", preset="smoke", overrides=overrides)
    made, fabric = make_task(config), make_fabric("cpu", "fp32")
    model = made.build_model(made.build_encoder()).train()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (made.draw_pictures(model, fabric, Evaluation({})) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert model.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert [(p.title, p.caption, p.image.tobytes()) for p in first] == [
        (p.title, p.caption, p.image.tobytes()) for p in second
    ]


def test_masks_and_boxes_lie_where_they_belong() -> None:
    image = Image.new("RGB", (448, 224))
    mask = np.zeros((224, 448), dtype=bool)
    mask[50:100, 200:300] = True
    drawn = np.asarray(overlay(image, [Instance(3, "cat 0.90", (200, 50, 300, 100), mask)])).astype(int)
    colour = np.array(class_colour(3))
    assert drawn[0, 0].tolist() == [0, 0, 0]
    assert abs(drawn[75, 250] - 0.45 * colour).max() <= 1, "a share of the colour inside"
    assert drawn[50, 290].tolist() == colour.tolist(), "the box"
    assert drawn[75, 310].tolist() == [0, 0, 0]
    assert _edge(mask).sum() == 2 * 100 + 2 * 48


def test_only_detections_with_a_score_are_drawn() -> None:
    output = {
        "classes": torch.tensor([1, 0]),
        "scores": torch.tensor([SCORE, SCORE - 0.01]),
        "boxes": torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 1.0]]),
        "masks": torch.ones(2, 5, 6, dtype=torch.bool),
    }
    (found,) = _of_output(output, ["a", "b"])
    assert found.text == f"b {SCORE:.2f}"
    assert found.box == (1, 2, 3, 4)
    assert found.mask.shape == (5, 6)


def test_ground_truth_polygons_become_masks() -> None:
    from mae_transfer.tasks.coco.annotations import ObjectRecord

    square = np.array([10.0, 20.0, 30.0, 20.0, 30.0, 40.0, 10.0, 40.0])
    found = _of_object(ObjectRecord(1, 0, (10, 20, 20, 20), 400, True, [square]), ["dog"], 60, 50)
    assert found.mask.shape == (60, 50)
    assert found.mask[30, 20]
    assert found.mask.sum() == pytest.approx(400, abs=45)
    assert found.text == "dog (crowd)"


def test_ignored_pixels_keep_the_image() -> None:
    pixels = np.full((32, 32, 3), 100, dtype=np.uint8)
    classes = np.full((32, 32), IGNORE, dtype=np.int16)
    classes[:, 16:] = 2
    drawn = np.asarray(class_overlay(pixels, classes))
    assert drawn[160, 40].tolist() == [100, 100, 100]
    assert abs(drawn[160, 280] - (0.35 * 100 + 0.65 * np.array(class_colour(2)))).max() <= 1


def test_class_colours_differ() -> None:
    colours = np.array([class_colour(k) for k in range(150)])
    assert len(np.unique(colours, axis=0)) == 150
    near = np.abs(colours[:20, None] - colours[None, :20]).max(-1) + 999 * np.eye(20)
    assert near.min() > 30


def test_writing_replaces_what_was_there(tmp_path: Path) -> None:
    made: Callable[[str], Picture] = lambda title: Picture(Image.new("RGB", (8, 8)), title, "c")  # noqa: E731
    write_pictures(tmp_path, [made("a"), made("b"), made("c")])
    write_pictures(tmp_path, [made("d")])
    assert [p.title for p in read_pictures(tmp_path)[0]] == ["d"]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["00.jpg", "index.json"]
    assert json.loads((tmp_path / "pictures" / "index.json").read_text())[0]["caption"] == "c"
