"""Files that contradict themselves: ground truth fed back scores 100, or the file is refused in one line."""

import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference
from pycocotools import mask as rle

from mae_transfer.data import index_cache
from mae_transfer.data.decode import read_header
from mae_transfer.errors import UserError
from mae_transfer.tasks.coco import files
from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.evaluate import ImageDetections, score
from mae_transfer.tasks.coco.files import check_files

WIDTH, HEIGHT = 320, 240
Mutation = Callable[[dict[str, Any]], None]


def truth() -> dict[str, Any]:
    """Objects of all three size classes: polygons of 3 to 9 points, RLEs, a crowd; boxes and areas from the masks."""
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in (3, 5, 8)]
    annotations = []
    for number in range(1, 19):
        radius = (11, 30, 70)[number % 3] * rng.uniform(0.9, 1.3)
        angles = np.sort(rng.uniform(0, 2 * np.pi, 3 + number % 7)) if number > 3 else np.arange(4) * np.pi / 2 + 0.3
        centre = rng.uniform(radius + 1, [WIDTH - radius - 1, HEIGHT - radius - 1])
        points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        entry = {"id": number, "image_id": images[number % 3]["id"], "category_id": 7 + number % 2, "iscrowd": 0}
        polygon = points.round(2).reshape(-1).tolist()
        encoded = reference.merge(reference.frPyObjects([polygon], HEIGHT, WIDTH))
        if number % 5 == 0:
            entry |= {"bbox": reference.toBbox(encoded).tolist(), "area": int(reference.area(encoded))}
            entry |= {"segmentation": encoded | {"counts": encoded["counts"].decode()}}
            entry |= {"iscrowd": int(number == 15)}
        else:
            low, high = points.round(2).min(0), points.round(2).max(0)
            x, y = points.round(2).T
            area = abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
            entry |= {"bbox": [*low.tolist(), *(high - low).tolist()], "area": area, "segmentation": [polygon]}
        annotations.append(entry)
    categories = [{"id": 7, "name": "a"}, {"id": 8, "name": "b"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def load(folder: Path, content: dict[str, Any]) -> CocoAnnotations:
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return CocoAnnotations(path)


def perfect(annotations: CocoAnnotations, content: dict[str, Any]) -> dict[str, float]:
    """Metrics of detections that are the objects of `content`, whose images are in the order of the file's ids."""
    found = []
    for place, image in enumerate(content["images"]):
        objects = [a for a in content["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
        masks = [a["segmentation"] for a in objects]
        encoded = [
            rle.merge(rle.frPyObjects(m, HEIGHT, WIDTH))
            if isinstance(m, list)
            else m | {"counts": m["counts"].encode()}
            for m in masks
        ]
        found.append(
            ImageDetections(
                int(annotations.image_ids[place]),
                np.array([a["bbox"] for a in objects], np.float32),
                np.ones(len(objects), np.float32),
                np.array([a["category_id"] - 7 for a in objects]),
                encoded,
            )
        )
    return score(annotations, found)


def each(change: Callable[[dict[str, Any]], None], *numbers: int) -> Mutation:
    """The change of annotations by their numbers, of all without."""

    def apply(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            if not numbers or annotation["id"] in numbers:
                change(annotation)

    return apply


def box(make: Callable[..., list[float]]) -> Callable[[dict[str, Any]], None]:
    def apply(annotation: dict[str, Any]) -> None:
        annotation["bbox"] = make(*annotation["bbox"])

    return apply


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(annotation: dict[str, Any]) -> None:
        annotation[key] = value(annotation) if callable(value) else value

    return apply


def as_shares(annotation: dict[str, Any]) -> None:
    """Box and mask in 0..1."""
    annotation["bbox"] = unit(*annotation["bbox"])
    if isinstance(annotation["segmentation"], list):
        annotation["segmentation"] = [
            (np.array(p).reshape(-1, 2) / (WIDTH, HEIGHT)).reshape(-1).tolist() for p in annotation["segmentation"]
        ]


def as_rows(annotation: dict[str, Any]) -> None:
    """The mask's runs along the rows, where COCO's go down the columns."""
    if isinstance(annotation["segmentation"], list):
        encoded = reference.merge(reference.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH))
        flat = reference.decode(encoded).reshape(-1)
        edges = np.flatnonzero(np.diff(np.r_[0, flat, 1 - flat[-1]]))
        annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": np.diff(np.r_[0, edges]).tolist()}


def unit(x: float, y: float, w: float, h: float) -> list[float]:
    return [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]


def image_ids(change: Callable[[int], int]) -> Mutation:
    def apply(content: dict[str, Any]) -> None:
        for row in content["images"]:
            row["id"] = change(row["id"])
        for row in content["annotations"]:
            row["image_id"] = change(row["image_id"])

    return apply


def category_ids(content: dict[str, Any]) -> None:
    for row in content["categories"]:
        row["id"] -= 2**62
    for row in content["annotations"]:
        row["category_id"] -= 2**62


REFUSED: dict[str, tuple[Mutation, str]] = {}
for places in ((), (4,), (2, 16)):
    title = "all" if not places else " and ".join(map(str, places))
    REFUSED |= {
        f"x1 y1 x2 y2 of {title}": (
            each(box(lambda x, y, w, h: [x, y, x + w, y + h]), *places),
            r"have a box that (leaves its image|is not that of their mask).*look like \[x1, y1, x2, y2\]",
        ),
        f"centres of {title}": (
            each(box(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h]), *places),
            r"have a box that .*look like \[centre x",
        ),
        f"boxes of {title} in 0..1": (each(box(unit), *places), "within the first pixel.*multiply them by its width"),
        f"boxes and masks of {title} in 0..1": (each(as_shares, *places), "within the first pixel"),
        f"rows of {title}": (each(as_rows, *places), "have a box that is not that of their mask"),
        f"boxes of {title} outside": (
            each(box(lambda x, y, w, h: [x + WIDTH, y, w, h]), *places),
            "have a box that leaves its image",
        ),
        f"area of {title} 0": (each(put("area", 0), *places), "have an area that is not that of their mask"),
        f"area of {title} in 0..1": (
            each(put("area", lambda a: a["area"] / WIDTH / HEIGHT), *places),
            "have an area that is not that of their mask.*leave area out",
        ),
        f"area of {title} at another size": (
            each(put("area", lambda a: a["area"] * 4), *places),
            "have an area that is not that of their mask",
        ),
        f"4 numbers of {title}": (each(put("segmentation", lambda a: [a["bbox"]]), *places), "no polygon of 3 points"),
    }
REFUSED |= {
    "an odd count": (each(lambda a: a["segmentation"][0].append(10), 4), "polygon of an odd count of numbers"),
    "a far polygon": (each(lambda a: a["segmentation"][0].extend([2e8, 3.5e8]), 4), "polygon far outside"),
    "a polygon far to the left": (each(lambda a: a["segmentation"][0].extend([-1e7, 5]), 4), "polygon far outside"),
    "an empty RLE": (
        each(put("segmentation", {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}), 4),
        "have a box that is not that of their mask",
    ),
    "a mask between the pixels": (
        each(
            lambda a: a.update(bbox=[9.2, 9.2, 0.2, 0.2], segmentation=[[9.2, 9.2, 9.4, 9.2, 9.4, 9.4]], area=0.02), 4
        ),
        "have a mask without a pixel",
    ),
}

SCORED: dict[str, Mutation] = {
    "as it is": lambda content: None,
    "ids from 0": each(put("id", lambda a: a["id"] - 1)),
    "an id of -1": each(put("id", -1), 4),
    "ids below 0": each(put("id", lambda a: -a["id"])),
    "ids above a double's": each(put("id", lambda a: 2**62 + a["id"])),
    "image ids below 0": image_ids(lambda i: i - 100),
    "an image id of 0": image_ids(lambda i: i - 3),
    "image ids above a double's": image_ids(lambda i: 2**62 + i),
    "category ids far below 0": category_ids,
    "no areas": each(lambda a: a.pop("area")),
    "no area of two": each(lambda a: a.pop("area"), 4, 5),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_an_ap_wrong_is_refused(tmp_path, name):
    mutate, message = REFUSED[name]
    content = copy.deepcopy(truth())
    mutate(content)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "instances.json"))


@pytest.mark.parametrize("name", SCORED)
def test_ground_truth_fed_back_scores_100(tmp_path, name):
    content = copy.deepcopy(truth())
    SCORED[name](content)
    metrics = perfect(load(tmp_path, content), truth())
    for key in ("box_AP", "mask_AP", "box_APs", "box_APm", "box_APl", "mask_APs", "mask_APm", "mask_APl"):
        assert metrics[key] == pytest.approx(100), key


WARNED = {
    "ids of 0 and below": (each(put("id", lambda a: a["id"] - 2)), "an annotation has the id 0; it is scored"),
    "no areas": (each(lambda a: a.pop("area")), "18 of 18 annotations have no area .annotation 1, 2, 3, .*computed"),
    "areas of the boxes": (
        each(put("area", lambda a: a["bbox"][2] * a["bbox"][3]), 1, 4, 7),
        "annotations have the area of their box instead of the mask's",
    ),
    "areas a fifth too small": (
        each(put("area", lambda a: a["area"] * 0.8), 2, 11),
        "2 of 18 annotations have an area more than 5% off that of their mask .annotation 2, 11; .*leave area out",
    ),
    "objects twice": (
        lambda content: content["annotations"].extend(
            content["annotations"][number - 1] | {"id": 100 + number} for number in (4, 5, 9)
        ),
        "3 of 21 annotations repeat an object: same image, category and mask .annotation 104, 105, 109; the first of",
    ),
    "a polygon that reaches outside": (
        lambda content: content["annotations"].append(
            {
                "id": 30,
                "image_id": 3,
                "category_id": 7,
                "bbox": [300, 20, 20, 30],
                "area": 20 * 30,
                "iscrowd": 0,
                "segmentation": [[300, 20, 330, 20, 330, 50, 300, 50]],
            }
        ),
        "1 of 19 annotations have polygons that reach outside their image .annotation 30; the first of image 3",
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_what_is_only_odd_is_said_once(tmp_path, name):
    mutate, message = WARNED[name]
    content = copy.deepcopy(truth())
    mutate(content)
    warnings = load(tmp_path, content).warnings
    assert len(warnings) == 1
    assert re.search(message, warnings[0])


def test_one_in_ten_thousand_is_a_warning(tmp_path):
    """A large set is not refused for what moves no AP."""
    content = truth()
    entry = content["annotations"][0]
    content["annotations"] = [entry | {"id": number} for number in range(1, 20001)]
    for annotation, count in ((1, 1), (2, 2), (3, None)):
        content["annotations"][annotation]["bbox"] = [0, 0, 5, 5]
        if count is None:
            with pytest.raises(UserError, match="3 of 20000 annotations have a box that is not that of their mask"):
                load(tmp_path, content)
        else:
            warning, repeated = load(tmp_path, content).warnings
            assert "repeat an object" in repeated
            assert f"{count} of 20000 annotations have a box that is not that of their mask" in warning


def test_objects_of_the_same_box_that_are_no_repetition(tmp_path):
    """Another class, another outline, a crowd: what two objects may share."""
    content = truth()
    entry = content["annotations"][3]
    x, y, w, h = entry["bbox"]
    content["annotations"] += [
        entry | {"id": 100, "category_id": 15 - entry["category_id"]},
        entry | {"id": 101, "iscrowd": 1},
        entry | {"id": 102, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "area": w * h},
    ]
    assert load(tmp_path, content).warnings == []


def test_masks_that_are_all_boxes_are_said(tmp_path):
    content = truth()
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation |= {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "area": w * h, "iscrowd": 0}
    assert load(tmp_path, content).warnings == []  # of few it may be so
    content["annotations"] = [entry | {"id": i} for i, entry in enumerate(content["annotations"] * 6, 1)]
    lines = load(tmp_path, content).warnings
    assert any("108 of 108 annotations have a mask that fills its box" in line for line in lines)


def test_what_rounded_boxes_cost_is_said(tmp_path):
    content = truth()
    each(box(lambda *values: [float(int(v)) for v in values]))(content)
    annotations = load(tmp_path, content)
    (warning,) = annotations.warnings
    found = re.search(r"7 of 18 annotations have a box off their mask's .*score a box AP of (\d+\.\d) at most", warning)
    assert found
    assert 90 < perfect(annotations, truth())["box_AP"] <= float(found[1]) + 0.05


def write_images(folder: Path, annotations: CocoAnnotations) -> None:
    for name in annotations.file_names:
        Image.new("RGB", (WIDTH, HEIGHT), (len(name), 5, 9)).save(folder / name)


def test_sizes_are_those_of_the_files_from_the_start(tmp_path):
    annotations = load(tmp_path, truth())
    write_images(tmp_path, annotations)
    assert check_files(annotations, tmp_path, "error") == []
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "5.jpg")
    with pytest.raises(UserError, match=r"1 of 3 images are of another size .*5\.jpg is 240x320 and 320x240 there"):
        check_files(annotations, tmp_path, "error")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "5.jpg", exif=exif)
    with pytest.raises(UserError, match="240x320 and 320x240 there, as it is stored; EXIF turns it upright.*exiftool"):
        check_files(annotations, tmp_path, "error")
    (tmp_path / "5.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"5\.jpg: truncated or corrupt"):
        check_files(annotations, tmp_path, "error")
    assert check_files(annotations, tmp_path, "skip") == []


def test_sizes_are_read_once_and_again_of_changed_files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "LEAST_FILES", 1)
    monkeypatch.setattr(index_cache, "SETTLED", -(10**12))
    annotations, read = load(tmp_path, truth()), []
    monkeypatch.setattr(files, "read_header", lambda path: read.append(path.name) or read_header(path))
    write_images(tmp_path, annotations)
    for _ in range(2):
        assert check_files(annotations, tmp_path, "error") == []
    assert sorted(read) == sorted(annotations.file_names)
    (kept,) = (tmp_path / "cache").rglob("*.index")
    kept.write_bytes(kept.read_bytes()[:-1])  # cut short
    assert check_files(annotations, tmp_path, "error") == []
    assert len(read) == 2 * len(annotations)
    times = (tmp_path / "5.jpg").stat().st_mtime_ns
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "5.jpg")
    os.utime(tmp_path / "5.jpg", ns=(times, times))
    for _ in range(2):
        with pytest.raises(UserError, match=r"5\.jpg is 240x320 and 320x240 there"):
            check_files(annotations, tmp_path, "error")
    assert len(read) == 3 * len(annotations)
    (tmp_path / "5.jpg").write_bytes(b"no image")
    assert check_files(annotations, tmp_path, "skip") == []
    with pytest.raises(UserError, match=r"5\.jpg: truncated or corrupt"):
        check_files(annotations, tmp_path, "error")


@pytest.mark.parametrize(
    "spelling", ["./3.jpg", "{folder}/3.jpg", "../{folder.name}/3.jpg", "../link/3.jpg", "link.jpg", "hard.jpg"]
)
def test_one_file_under_several_ids_is_said(tmp_path, spelling):
    content = truth()
    (tmp_path.parent / "link").unlink(missing_ok=True)
    (tmp_path.parent / "link").symlink_to(tmp_path)
    content["images"][2]["file_name"] = spelling.format(folder=tmp_path)
    annotations = load(tmp_path, content)
    write_images(tmp_path, annotations)
    if spelling == "link.jpg":
        (tmp_path / spelling).unlink()
        (tmp_path / spelling).symlink_to("3.jpg")
    if spelling == "hard.jpg":
        (tmp_path / spelling).unlink()
        (tmp_path / spelling).hardlink_to(tmp_path / "3.jpg")
    (warning,) = check_files(annotations, tmp_path, "error")
    assert "3.jpg is there under several image ids (3.jpg: 3, 8)" in warning
