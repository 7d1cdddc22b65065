"""The generated data set: what it promises to hold, and that it is made once, whole, and always the same."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mae_transfer.data.synthetic.ade20k import COLOURS, make_ade20k
from mae_transfer.data.synthetic.coco import CATEGORIES, cached_coco, make_coco
from mae_transfer.data.synthetic.shapes import COLOURS as SHAPES
from mae_transfer.data.synthetic.shapes import NAMES, make_shapes
from mae_transfer.errors import UserError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_arguments_same_bytes(tmp_path):
    first, again, other = (
        contents(make_coco(tmp_path / name, train_images=3, val_images=2, seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first["train2017/000000000001.jpg"] != other["train2017/000000000001.jpg"]
    assert sorted(first)[0] == "annotations/instances_train2017.json"
    assert len(first) == 3 + 2 + 2 + 1


def test_holds_what_code_forgets(tmp_path, capsys):
    folder = make_coco(tmp_path / "coco")
    for split, count in (("train2017", 8), ("val2017", 4)):
        coco = COCO(str(folder / f"annotations/instances_{split}.json"))
        objects = list(coco.anns.values())
        assert coco.getCatIds() == sorted(CATEGORIES)
        assert sorted(CATEGORIES) != list(range(1, len(CATEGORIES) + 1))
        assert len(coco.imgs) == len(list((folder / split).iterdir())) == count
        assert min(coco.anns) == 1
        crowds = [o for o in objects if o["iscrowd"]]
        assert [isinstance(o["segmentation"]["counts"], list) for o in crowds] == [True]
        assert any(isinstance(o["segmentation"], dict) and not o["iscrowd"] for o in objects)
        assert any(isinstance(o["segmentation"], list) for o in objects)
        assert [i for i in coco.imgs if not coco.getAnnIds(imgIds=i)] == [3]
        modes = [Image.open(folder / split / image["file_name"]).mode for image in coco.imgs.values()]
        assert modes.count("L") == 1
        assert len({(image["height"], image["width"]) for image in coco.imgs.values()}) > 1
        for item in objects:
            mask = coco.annToMask(item).astype(bool)
            image = coco.imgs[item["image_id"]]
            pixels = np.array(Image.open(folder / split / image["file_name"]).convert("RGB"), dtype=float)
            assert pixels.shape[:2] == mask.shape
            # shapes are of one colour, so the mask fits if what is in it hardly varies; JPEG blurs the edges
            far = np.abs(pixels[mask] - np.median(pixels[mask], axis=0)).max(axis=1) > 40
            assert far.mean() < 0.15 or mask.sum() < 100
            rows, columns = mask.nonzero()
            x, y, width, height = item["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert item["area"] == mask.sum()


def test_ade20k_holds_what_code_forgets(tmp_path):
    folder, again = (make_ade20k(tmp_path / name, train_images=3, val_images=2) for name in "ab")
    assert contents(folder) == contents(again) != contents(make_ade20k(tmp_path / "c", train_images=3, val_images=3))
    for split, count in (("training", 3), ("validation", 2)):
        images, masks = (sorted((folder / kind / split).iterdir()) for kind in ("images", "annotations"))
        assert [path.stem for path in images] == [path.stem for path in masks]
        assert len(images) == count
        assert [Image.open(path).mode for path in images] == ["RGB", "L", "RGB"][:count]
        assert 150 in np.asarray(Image.open(masks[0]))
        for image, mask in zip(images, masks, strict=True):
            pixels, values = np.asarray(Image.open(image).convert("RGB"), dtype=float), np.asarray(Image.open(mask))
            assert pixels.shape[:2] == values.shape
            assert set(np.unique(values)) <= {0, *COLOURS}
            assert not values[0].any(), "ignored pixels"
            # inside a shape, away from JPEG's blur, the class can be told by the colour
            if image != images[1]:
                top = max(COLOURS, key=lambda value: (values == value).sum())
                np.testing.assert_allclose(np.median(pixels[values == top], axis=0), COLOURS[top], atol=8)


def test_shapes_are_one_world_in_four_layouts(tmp_path):
    counts = {"train_images": 3, "val_images": 2, "per_class": (2, 1), "unlabelled": 2}
    folder, again = (make_shapes(tmp_path / name, **counts) for name in "ab")
    assert contents(folder) == contents(again) != contents(make_shapes(tmp_path / "c", **counts, seed=1))
    coco = COCO(str(folder / "detection/annotations/instances_train2017.json"))
    assert len(coco.imgs) == len(list((folder / "detection/train2017").iterdir())) == 3
    for item in coco.anns.values():
        mask = coco.annToMask(item).astype(bool)
        assert (item["area"], mask.shape) == (mask.sum(), (64, 64))
        image = Image.open(folder / "detection/train2017" / coco.imgs[item["image_id"]]["file_name"])
        _near(np.asarray(image)[mask], coco.cats[item["category_id"]]["name"])
    for path in sorted((folder / "segmentation/annotations").rglob("*.png")):
        values = np.asarray(Image.open(path))
        image = np.asarray(Image.open(folder / "segmentation/images" / path.parent.name / f"{path.stem}.jpg"))
        assert {0} < set(np.unique(values)) <= set(range(6))
        for value in set(np.unique(values)) - {0}:
            _near(image[values == value], NAMES[value - 1])
    for split, count in (("train", 2), ("val", 1)):
        made = {path.name: len(list(path.iterdir())) for path in (folder / "classification" / split).iterdir()}
        assert made == dict.fromkeys(NAMES, count)
    assert len(list((folder / "unlabelled").iterdir())) == 2


def _near(pixels, name):
    """Under noise of 40 and a spread of 20, a shape's mean colour is still nearer to its own than to white or black."""
    if len(pixels) > 30:
        np.testing.assert_allclose(pixels.mean(axis=0), SHAPES[name], atol=70)


def test_reused_only_with_the_same_arguments(tmp_path):
    folder = make_coco(tmp_path / "coco", train_images=2, val_images=1)
    before = (folder / "synthetic.json").stat().st_mtime_ns
    assert make_coco(folder, train_images=2, val_images=1) == folder
    assert (folder / "synthetic.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="something else"):
        make_coco(folder, train_images=3, val_images=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="something else"):
        make_coco(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_nothing_is_left_of_a_failure(tmp_path):
    with pytest.raises(ValueError):
        make_coco(tmp_path / "coco", size=(50, 20))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        make_coco(tmp_path / "file" / "coco")


def test_several_processes_may_make_it_at_once(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: make_coco(tmp_path / "coco", train_images=2, val_images=1), range(4)))
    assert set(made) == {tmp_path / "coco"}
    assert [path.name for path in tmp_path.iterdir()] == ["coco"]
    assert json.loads((tmp_path / "coco" / "synthetic.json").read_text())["train_images"] == 2


def test_cached_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cached_coco()
    assert folder.is_relative_to(tmp_path / "mae_transfer")
    assert (folder / "val2017").is_dir()
