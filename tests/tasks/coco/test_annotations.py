"""Reading of annotation files: what is kept, what is dropped and counted, and one line for everything that is wrong."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference
from pycocotools.coco import COCO

from mae_transfer.data import index_cache
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.annotations import CocoAnnotations, check_same_categories
from mae_transfer.tasks.coco.files import check_files

SQUARE = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]


def annotation(number: int, image_id: int, category_id: int, **changes: Any) -> dict[str, Any]:
    base = {"bbox": [2, 2, 6, 6], "area": 36, "iscrowd": 0, "segmentation": SQUARE}
    return {"id": number, "image_id": image_id, "category_id": category_id} | base | changes


def valid() -> dict[str, Any]:
    bitmap = np.zeros((10, 20), np.uint8)
    bitmap[3:6, 4:9] = 1
    block = {"size": [10, 20], "counts": reference.encode(np.asfortranarray(bitmap))["counts"].decode()}
    column = {"size": [10, 20], "counts": [50, 10, 140]}
    return {
        "images": [
            {"id": 30, "file_name": "c.jpg", "height": 10, "width": 20},
            {"id": 10, "file_name": "a.jpg", "height": 10, "width": 20},
            {"id": 20, "file_name": "deep/b.jpg", "height": 10, "width": 20},
        ],
        "annotations": [
            annotation(7, 30, 9),
            annotation(5, 10, 4),
            annotation(6, 30, 4, iscrowd=1, bbox=[5, 0, 1, 10], segmentation=column),
            annotation(
                8,
                30,
                4,
                bbox=[4, 3, 5, 3],
                area=15,
                segmentation=block,
            ),
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}],
    }


def load(folder: Path, content: Any) -> CocoAnnotations:
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return CocoAnnotations(path)


def test_order_classes_and_content(tmp_path):
    annotations = load(tmp_path, valid())
    assert (annotations.category_ids, annotations.names) == ([4, 9], ["dog", "cat"])
    assert annotations.image_ids.tolist() == [10, 20, 30]
    assert annotations.num_objects.tolist() == [1, 0, 2]
    assert annotations.warnings == []
    assert [annotations[i].file_name for i in range(len(annotations))] == ["a.jpg", "deep/b.jpg", "c.jpg"]
    last = annotations[2]
    assert [(o.id, o.category, o.crowd) for o in last.objects] == [(7, 1, False), (6, 0, True), (8, 0, False)]
    assert last.objects[0].segmentation[0].tolist() == SQUARE[0]
    assert last.objects[0].segmentation[0].dtype == np.float64
    assert reference.decode(last.objects[1].segmentation).reshape(-1, order="F").nonzero()[0].tolist() == [
        *range(50, 60)
    ]
    assert reference.area(last.objects[2].segmentation) == 15


def test_agrees_with_pycocotools(tmp_path, capsys):
    path = make_coco(tmp_path / "coco") / "annotations/instances_train2017.json"
    annotations, coco = CocoAnnotations(path), COCO(str(path))
    seen = 0
    for i, image_id in enumerate(annotations.image_ids.tolist()):
        record = annotations[i]
        for ours, theirs in zip(record.objects, coco.imgToAnns[image_id], strict=True):
            assert (ours.id, list(ours.bbox), ours.area) == (theirs["id"], theirs["bbox"], theirs["area"])
            assert annotations.category_ids[ours.category] == theirs["category_id"]
            mask = ours.segmentation
            if isinstance(mask, list):
                mask = reference.merge(reference.frPyObjects([p.tolist() for p in mask], record.height, record.width))
            assert (reference.decode(mask) == coco.annToMask(theirs)).all()
            seen += 1
    assert seen == len(coco.anns)


def test_polygons_of_two_points_are_dropped_and_counted(tmp_path):
    content = valid()
    content["annotations"][0]["segmentation"] = [*SQUARE, [1, 1, 2, 2]]
    annotations = load(tmp_path, content)
    assert len(annotations[2].objects[0].segmentation) == 1
    assert annotations.num_objects.tolist() == [1, 0, 2]
    (warning,) = annotations.warnings
    assert "1 of 4 annotations have polygons of fewer than 3 points (annotation 7; the first of image 30)" in warning


def test_the_two_flat_boxes_of_coco_itself_are_no_error(tmp_path):
    content = valid()
    flat = {"bbox": [296.65, 388.33, 1.03, 0.0], "area": 0.0, "segmentation": [[296.65, 388.33] * 4]}
    content["images"].append({"id": 200365, "file_name": "d.jpg", "height": 480, "width": 640})
    content["annotations"].append(annotation(918, 200365, 4, **flat))
    annotations = load(tmp_path, content)
    assert annotations.num_objects.tolist() == [1, 0, 2, 0]
    assert "dropped 1 objects of no area" in annotations.warnings[0]
    content["annotations"][-1]["id"] = 919
    with pytest.raises(UserError, match="annotation 919 has a box of no area"):
        load(tmp_path, content)


def change(*where: Any, to: Any) -> Any:
    """A function that sets one place of the valid file; `to=None` removes it."""

    def apply(content: dict[str, Any]) -> None:
        for key in where[:-1]:
            content = content[key]
        if to is None:
            del content[where[-1]]
        else:
            content[where[-1]] = to

    return apply


BAD = {
    "no images key": (change("images", to=None), "'images' is missing"),
    "no images": (change("images", to=[]), "'images' is empty"),
    "annotations no list": (change("annotations", to={"a": 1}), "'annotations' is missing or no list"),
    "image twice": (change("images", 1, "id", to=30), "image id 30 occurs 2 times"),
    "image id text": (change("images", 1, "id", to="10"), "image number 2 has id '10'"),
    "no height": (change("images", 1, "height", to=None), "image 10 has no height"),
    "flat image": (change("images", 1, "width", to=0), "image 10 has width 0"),
    "vast image": (change("images", 1, "width", to=10**12), "image 10 is 1000000000000x10; give its size"),
    "no file name": (change("images", 1, "file_name", to=None), "image 10 has no file_name"),
    "category twice": (change("categories", 1, "id", to=9), "category id 9 occurs 2 times"),
    "category without name": (change("categories", 1, "name", to=None), "category 4 has no name"),
    "categories of one name": (change("categories", 1, "name", to="cat"), "2 categories have the name 'cat'"),
    "annotation twice": (change("annotations", 1, "id", to=7), "annotation id 7 occurs 2 times"),
    "annotation id of 20 digits": (change("annotations", 1, "id", to=10**20), "annotation number 2 has id"),
    "unknown image": (change("annotations", 1, "image_id", to=11), "annotation 5 has image_id 11"),
    "unknown category": (change("annotations", 1, "category_id", to=1), "annotation 5 has category_id 1"),
    "no category": (change("annotations", 1, "category_id", to=None), "annotation 5 has no category_id"),
    "no bbox": (change("annotations", 1, "bbox", to=None), "annotation 5 has bbox None"),
    "bbox of three": (change("annotations", 1, "bbox", to=[1, 2, 3]), r"annotation 5 has bbox \[1, 2, 3\]"),
    "bbox of text": (change("annotations", 1, "bbox", to=["1", 2, 3, 4]), "annotation 5 has bbox"),
    "bbox not finite": (change("annotations", 1, "bbox", to=[1, 2, math.nan, 4]), "annotation 5 has bbox .*finite"),
    "no width": (change("annotations", 1, "bbox", to=[1, 2, 0, 4]), "annotation 5 has a box of no area, width 0"),
    "negative height": (change("annotations", 1, "bbox", to=[1, 2, 3, -4]), "no area, width 3 and height -4"),
    "area of text": (change("annotations", 1, "area", to="36"), "annotation 5 has area '36'"),
    "area of 401 digits": (change("annotations", 1, "area", to=10**400), "annotation 5 has area 1000"),
    "bbox of 401 digits": (change("annotations", 1, "bbox", to=[1, 2, 10**400, 4]), "annotation 5 has bbox .*finite"),
    "polygon of 4 numbers": (change("annotations", 1, "segmentation", to=[[2, 2, 6, 6]]), "no polygon of 3 points"),
    "odd polygon": (change("annotations", 1, "segmentation", to=[SQUARE[0] + [1]]), "odd count of numbers"),
    "far polygon": (change("annotations", 1, "segmentation", 0, 4, to=2e8), "polygon far outside"),
    "iscrowd of text": (change("annotations", 1, "iscrowd", to="no"), "annotation 5 has iscrowd 'no'"),
    "ignore": (change("annotations", 1, "ignore", to=1), "annotation 5 has ignore 1"),
    "no segmentation": (
        change("annotations", 1, "segmentation", to=None),
        "has no segmentation .1 of 4 have none",
    ),
    "empty segmentation": (change("annotations", 1, "segmentation", to=[]), "annotation 5 has no segmentation"),
    "flat list": (change("annotations", 1, "segmentation", to=SQUARE[0]), "annotation 5 has a polygon that is no list"),
    "polygon of text": (change("annotations", 1, "segmentation", 0, 3, to="x"), "annotation 5 has a polygon"),
    "polygon not finite": (change("annotations", 1, "segmentation", 0, 3, to=math.inf), "annotation 5 has a polygon"),
    "RLE of another size": (change("annotations", 2, "segmentation", "size", to=[20, 10]), "annotation 6 .* malformed"),
    "RLE of a size in floats": (
        change("annotations", 2, "segmentation", "size", to=[10.0, 20.0]),
        r"annotation 6 has a malformed RLE \(size must be .height, width. = \[10, 20\] of image \d+, in whole numbers",
    ),
    "RLE too short": (change("annotations", 2, "segmentation", "counts", to=[50, 10]), "annotation 6 .* add up"),
    "RLE negative": (change("annotations", 2, "segmentation", "counts", to=[210, -10]), "annotation 6 .* malformed"),
    "RLE without counts": (change("annotations", 2, "segmentation", "counts", to=None), "annotation 6 .* no counts"),
    "RLE cut": (change("annotations", 3, "segmentation", "counts", to="d13"), "annotation 8 has a malformed RLE"),
    "RLE that ends early": (
        change("annotations", 3, "segmentation", "counts", to="52"),
        r"annotation 8 has a malformed RLE \(its runs, of which none may be negative, add up to 7 of \d+",
    ),
    "RLE of a negative run": (change("annotations", 3, "segmentation", "counts", to="N2"), "annotation 8 .* negative"),
    "RLE rubbish": (change("annotations", 3, "segmentation", "counts", to="\u00e9~"), "annotation 8 has a malformed"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_one_line(tmp_path, name):
    apply, message = BAD[name]
    content = json.loads(json.dumps(valid()))  # without shared parts
    apply(content)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "instances.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"images": [', "not valid JSON"),
        ('{"images": [], "images": [{"id": 1, "id": 2}]}', "the key 'id' is twice in an object"),
        ("[]", "a list at top level"),
        ("{}", "it has no keys"),
    ],
)
def test_what_is_no_coco_file(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, text)


def test_missing_file_and_binary_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        CocoAnnotations(tmp_path / "nowhere.json")
    (tmp_path / "image.json").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match="not valid JSON"):
        CocoAnnotations(tmp_path / "image.json")


def test_missing_images_are_counted_and_named(tmp_path):
    annotations = load(tmp_path, valid())
    with pytest.raises(UserError, match=r"3 of the 3 images .*: a\.jpg, c\.jpg, deep/b\.jpg;"):
        check_files(annotations, tmp_path, "error")
    (tmp_path / "deep").mkdir()
    for name in ("a.jpg", "deep/b.jpg"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    with pytest.raises(UserError, match=r"1 of the 3 images .*: c\.jpg;"):
        check_files(annotations, tmp_path, "error")
    Image.new("RGB", (20, 10)).save(tmp_path / "c.jpg")
    assert check_files(annotations, tmp_path, "error") == []


def test_both_splits_must_have_the_same_categories(tmp_path):
    train = load(tmp_path, valid())
    check_same_categories(train, train)
    content = valid()
    content["categories"].append({"id": 12, "name": "cow"})
    val = load(tmp_path, content)
    with pytest.raises(UserError, match="category id 12 is 'cow' here and None in"):
        check_same_categories(train, val)


def test_what_the_cache_keeps_is_what_the_file_says(tmp_path, monkeypatch):
    """Polygons, both kinds of run-length encodings, a crowd, an image without objects, a name that is no ASCII."""
    content = valid()
    content["images"][0]["file_name"] = "ü.jpg"
    content["annotations"][0]["segmentation"] = [*SQUARE, [1.0, 1.0, 2.0, 2.0], [3, 3, 5, 3, 5, 5]]
    fresh = load(tmp_path, content)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "LEAST", 0)
    monkeypatch.setattr(index_cache, "SETTLED", -(10**12))
    made, mapped = CocoAnnotations(fresh.path), CocoAnnotations(fresh.path)
    assert len(list((tmp_path / "cache").rglob("*.index"))) == 1
    for found in (made, mapped):
        assert [repr(found[i]) for i in range(3)] == [repr(fresh[i]) for i in range(3)]
        assert list(found.file_names) == list(fresh.file_names) == ["a.jpg", "deep/b.jpg", "ü.jpg"]
        for name in ("category_ids", "names", "num_annotations", "has_masks", "sha256"):
            assert getattr(found, name) == getattr(fresh, name)
        for name in ("listed", "image_ids", "num_objects"):
            assert getattr(found, name).tolist() == getattr(fresh, name).tolist()
    assert made.warnings == mapped.warnings == fresh.warnings
    assert "polygons of fewer than 3 points" in fresh.warnings[0]
    assert fresh.sha256 == hashlib.sha256(fresh.path.read_bytes()).hexdigest()


def test_a_file_is_refused_at_every_start_and_read_again_when_it_is_mended(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "LEAST", 0)
    monkeypatch.setattr(index_cache, "SETTLED", -(10**12))
    content = valid()
    content["annotations"][0]["bbox"] = [2, 2, 60, 6]
    for _ in range(2):
        with pytest.raises(UserError, match="have a box that leaves its image"):
            load(tmp_path, content)
    assert len(load(tmp_path, valid())) == 3
    content["annotations"] = content["annotations"][:1]
    content["annotations"][0]["bbox"] = [2, 2, 6, 6]
    assert load(tmp_path, content).num_annotations == 1


@pytest.mark.parametrize(
    "shape",
    [[[1.0, 1.0, 9.0, True, 9.0, 9.0]], [2.0, 2.0, 8.0, 2.0, 8.0, 8.0], [[2, 2, 8, "2", 8, 8]], [[10**400] * 6]],
)
def test_a_polygon_is_a_list_of_numbers(tmp_path, shape):
    content = valid()
    content["annotations"][1]["segmentation"] = shape
    with pytest.raises(UserError, match="annotation 5 has a polygon that is no list of finite numbers"):
        load(tmp_path, content)


def test_a_name_that_no_file_can_have(tmp_path):
    content = valid()
    content["images"][0]["file_name"] = "\ud800.jpg"
    with pytest.raises(UserError, match="image 30 has file_name"):
        load(tmp_path, content)
