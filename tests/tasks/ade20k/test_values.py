"""Masks that do not fit the classes they are said to have: refused with the setting that fits, or said."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.ade20k.count_values import count_until
from mae_transfer.tasks.ade20k.task import Ade20kTask
from mae_transfer.tasks.ade20k.values import check_values


def make_set(folder: Path, values: list[int], count: int = 3) -> None:
    """Pairs of 40 x 64 pixels whose masks hold blocks of all these values, each as often."""
    rng = np.random.default_rng(0)
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            blocks = np.resize(np.array(values), 40).reshape(5, 8)
            mask = rng.permuted(blocks).astype(np.uint8 if max(values) < 256 else np.uint16).repeat(8, 0).repeat(8, 1)
            pixels = rng.integers(0, 256, (40, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.jpg")
            Image.fromarray(mask).save(folder / "annotations" / split / f"{number}.png")


def task(folder: Path, classes: int, reduce: bool, *overrides: str, subset: int | None = None) -> Ade20kTask:
    settings = [f"data.num_classes={classes}", f"data.reduce_zero_label={str(reduce).lower()}", "data.image_size=32"]
    options = {"data.root": str(folder), "subset": subset}
    overrides = (*settings, "eval.stride=32", *overrides)
    return Ade20kTask(load_config("ade20k", "random_vit_nano", options=options, overrides=overrides))


def said(checked: Ade20kTask) -> str:
    (line,) = [line for line in checked.warnings if line.startswith("masks:")]
    return line


REFUSED = {
    "0 and 255 for two classes": ([0, 255], 2, False, "255 is ignored: if it is a class, write the masks with .*0..1"),
    "0 and 255 for many": ([0, 255], 19, False, "255 is ignored: if it is a class"),
    "1 and 255": ([1, 255], 3, True, "255 is ignored: if it is a class, write the masks with the class numbers 1..3"),
    "0..2 with the zero label": ([0, 1, 2], 3, True, "moves the names by one: set data.reduce_zero_label=false"),
    "0..10 with the zero label": ([*range(11)], 11, True, "data.reduce_zero_label=false, or data.num_classes=10 if 0"),
    "0 and 1 with the zero label": ([0, 1], 2, True, "data.reduce_zero_label=false"),
    "0 and 1 of 150": ([0, 1], 150, True, "0 is ignored: .*data.reduce_zero_label=false and data.num_classes=2"),
    "1..3 without the zero label": ([1, 2, 3], 4, False, "data.reduce_zero_label=true and data.num_classes=3"),
    "0..2 of 150": ([0, 1, 2], 150, True, "num_classes=2, or data.num_classes=3 and data.reduce_zero_label=false if 0"),
    "0..3 of 150": ([0, 1, 2, 3], 150, False, "the highest value of a class is 3, .*: set data.num_classes=4$"),
    "0, 1 and 255 for three": (
        [0, 1, 255],
        3,
        False,
        "255 is ignored, 3.* of the pixels, and value 2 .*write 255 as 2",
    ),
    "1, 2 and 255 for three": ([1, 2, 255], 3, True, "value 3 never occurs: write 255 as 3 .*data.num_classes=2 if"),
    "0..7 with the zero label, without a 5": (
        [0, 0, 0, 1, 2, 3, 4, 6, 7],
        8,
        True,
        r"0 is ignored, 3\d\.\d % of the pixels, and value 8 never.*data.reduce_zero_label=false, or .*=7 if 0",
    ),
    "one class": ([4], 7, False, "with one class every prediction is right"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_that_another_setting_would_find_is_an_error(tmp_path, name):
    values, classes, reduce, message = REFUSED[name]
    make_set(tmp_path, values)
    with pytest.raises(UserError, match=message) as caught:
        task(tmp_path, classes, reduce)
    assert "\n" not in str(caught.value)
    assert "masks: of 6 read the values are" in str(caught.value)


SAID = {
    "all there": ([0, 1, 2, 255], 3, False, ["values are 0..2, 255", "25.0 % of the pixels are ignored (255)"]),
    "zero label": ([0, 1, 2, 3], 3, True, ["values are 0..3", "25.0 % of the pixels are ignored (0)"]),
    "nothing ignored": ([1, 2], 2, True, ["the values are 1..2"]),
    "a gap": ([0, 1, 3], 4, False, ["1 of 4 classes never occur, values 2"]),
    "too many classes": (
        [1, 2, 300],
        400,
        True,
        ["397 of 400 classes never occur", "values 3..299, 301..400", "data.num_classes=400 is more than is seen"],
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_what_occurs_is_said(tmp_path, name):
    values, classes, reduce, parts = SAID[name]
    make_set(tmp_path, values)
    ignored = 65535 if classes > 255 else 255
    line = said(task(tmp_path, classes, reduce, f"data.ignore_value={ignored}"))
    for part in parts:
        assert part in line
    assert ("is more than is seen" in line) == (name == "too many classes")
    assert ("ignored" in line) == any("ignored" in part for part in parts)


ODD = {
    "grey levels": ([0, 100, 255], 150, False, ["values are 0, 100, 255, like the grey levels", "255 is ignored, 3"]),
    "grey levels alone": ([0, 60, 120, 180], 200, False, ["like the grey levels of a picture"]),
    "255 and a gap": ([0, 1, 3, 255], 4, False, ["255 is ignored, 25.0 % of the pixels, while classes never occur"]),
    "little 0 and no last class": ([0, *range(1, 8)], 9, True, []),
    "little 0, all but the last class": (
        [0, 1, 2, 3, 5, 6, 7],
        8,
        True,
        ["value 8 never occurs; if 0 is a class, set"],
    ),
    "all classes and 255": ([0, 1, 255], 2, False, []),
}


@pytest.mark.parametrize("name", ODD)
def test_what_may_be_wrong_is_said_beside_it(tmp_path, name):
    values, classes, reduce, parts = ODD[name]
    make_set(tmp_path, values)
    lines = [line for line in task(tmp_path, classes, reduce).warnings if line.startswith(f"{tmp_path}/annotations")]
    assert len(lines) == len(parts)
    for line, part in zip(lines, parts, strict=True):
        assert part in line


@pytest.mark.parametrize(("val", "said"), [([0, 1, 2, 3, 255], True), ([1, 2, 3], False), ([0, 1, 2, 4], False)])
def test_a_split_that_counts_from_another_number_is_said(tmp_path, val, said):
    make_set(tmp_path, [1, 2, 3, 4, 255])
    rng = np.random.default_rng(0)
    for path in (tmp_path / "annotations/validation").iterdir():
        Image.fromarray(rng.choice(val, (40, 64)).astype(np.uint8)).save(path)
    lines = task(tmp_path, 4, True).warnings
    expected = "values of training masks are 1..4 and those of val masks 0..3; if one split counts classes from 0"
    assert any(expected in line for line in lines) == said


def test_a_rare_class_is_looked_for_before_anything_is_refused(tmp_path):
    """Of two classes one is in a single mask, which the sample and the subset leave out."""
    make_set(tmp_path, [0], count=70)
    rare = tmp_path / "annotations/training/20.png"
    mask = np.zeros((40, 64), np.uint8)
    mask[3, 3] = 1
    with pytest.raises(UserError, match="with one class"):
        task(tmp_path, 2, False, subset=2)
    Image.fromarray(mask).save(rare)
    assert said(task(tmp_path, 2, False, subset=2)) == "masks: of 140 read the values are 0..1"


@pytest.mark.parametrize("name", ["0..10 with the zero label", "0, 1 and 255 for three", "1..3 without the zero label"])
def test_a_class_that_may_be_rare_is_looked_for_in_all_masks(tmp_path, name, monkeypatch):
    """Refused where no mask of a large set has it, and not where one has; a second start reads none again."""
    values, classes, reduce, message = REFUSED[name]
    make_set(tmp_path / "set", values, count=7)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(check_values.__globals__, "READ_AT_MOST", 2)  # a module imported anew is another one
    monkeypatch.setitem(check_values.__globals__, "SAMPLED", 2)
    parts, count_part = [], count_until.__globals__["_count"]
    monkeypatch.setitem(count_until.__globals__, "PART", 3)
    monkeypatch.setitem(count_until.__globals__, "_count", lambda masks: parts.append(len(masks)) or count_part(masks))
    for masks in ([*[2] * 2, *[0] * 2, 3, 3, 3, 1], [*[2] * 2, *[0] * 2]):
        with pytest.raises(UserError, match=message) as caught:
            task(tmp_path / "set", classes, reduce)
        assert "masks: of 14 read" in str(caught.value)
        assert parts == masks
        parts.clear()
    rare = tmp_path / "set/annotations/training/3.png"
    mask = np.array(Image.open(rare))
    mask[0, 0] = 0 if "without" in name else classes if reduce else classes - 1
    Image.fromarray(mask).save(rare)
    checked = task(tmp_path / "set", classes, reduce)
    assert sum(parts) < 14
    assert not [line for line in checked.warnings if re.search(message, line)]


@pytest.mark.parametrize("name", ["0 and 255 for two classes", "0 and 1 of 150", "0..2 of 150", "one class"])
def test_classes_that_are_not_rare_are_refused_wherever_masks_are_left_unread(tmp_path, name, monkeypatch):
    values, classes, reduce, message = REFUSED[name]
    make_set(tmp_path, values)
    monkeypatch.setitem(check_values.__globals__, "READ_AT_MOST", 2)  # a module imported anew is another one
    with pytest.raises(UserError, match=message):
        task(tmp_path, classes, reduce)
