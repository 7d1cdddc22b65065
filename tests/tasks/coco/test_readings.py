"""Boxes off their masks by a convention or by rounding, and corners in a file of boxes alone."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.evaluate import ImageDetections, score

SIZE = 640
Edges = tuple[float, float, float, float]


def truth(*, smallest: int = 5, largest: int = 20, masks: bool = True) -> dict[str, Any]:
    """36 octagons or boxes on a grid, at whole pixels."""
    rng = np.random.default_rng(0)
    annotations = []
    for number in range(36):
        w, h = rng.integers(smallest, largest + 1, 2).tolist()
        x, y = (number % 6 * 100 + 20 + int(rng.integers(0, 20)), number // 6 * 100 + 20 + int(rng.integers(0, 20)))
        entry = {"id": number + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [x, y, w, h], "area": w * h}
        if masks:
            corner = 1.0
            outline = [(corner, 0), (w - corner, 0), (w, corner), (w, h - corner), (w - corner, h), (corner, h)]
            outline += [(0, h - corner), (0, corner)]
            entry["segmentation"] = [[value for px, py in outline for value in (x + px, y + py)]]
            entry["area"] = w * h - 2 * corner**2
        annotations.append(entry)
    images = [{"id": 1, "file_name": "1.jpg", "width": SIZE, "height": SIZE}]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}


def moved(content: dict[str, Any], edges: Edges, *, every: int = 1) -> dict[str, Any]:
    """Left, top, right and bottom edges of every n-th box moved by these pixels."""
    left, top, right, bottom = edges
    for annotation in content["annotations"][::every]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x + left, y + top, w + right - left, h + bottom - top]
    return content


def load(folder: Path, content: dict[str, Any], *, scored: bool = True) -> CocoAnnotations:
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return CocoAnnotations(path, scored=scored)


def box_ap(folder: Path, content: dict[str, Any]) -> float:
    """AP of the truth's boxes with these for detections. IoU is symmetric, so that it is the AP of the reverse too."""
    boxes = np.array([a["bbox"] for a in content["annotations"]], np.float32)
    annotations = load(folder, truth(masks=False))
    found = ImageDetections(1, boxes, np.ones(len(boxes), np.float32), np.zeros(len(boxes), int), None)
    return score(annotations, [found])["box_AP"]


OFFSETS: dict[str, tuple[Edges, str]] = {
    "1-based": ((1, 1, 1, 1), "x and y count pixels from 1: subtract 1 from both"),
    "inclusive": ((0, 0, 1, 1), r"width and height count the last pixel \(x2 - x1 \+ 1\)"),
    "1-based and inclusive": ((1, 1, 2, 2), "subtract 1 from all four"),
    "1-based corners": ((1, 1, 0, 0), "subtract 1 from x and y, add 1 to width and height"),
    "the last pixel left out": ((0, 0, -1, -1), r"leave the last pixel out \(x2 - x1 of its indices\): add 1"),
    "by 2": ((1.5, 2, 1.5, 2), r"are off by \+1\.5, \+2, \+1\.5, \+2 pixels in 100%"),
}


@pytest.mark.parametrize("name", OFFSETS)
def test_an_offset_that_small_objects_share_is_refused(tmp_path: Path, name: str) -> None:
    edges, message = OFFSETS[name]
    smallest = 9 if name == "by 2" else 5
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, moved(truth(smallest=smallest), edges))
    line = str(caught.value)
    assert "\n" not in line
    (warning,) = load(tmp_path, moved(truth(smallest=smallest), edges), scored=False).warnings
    assert re.search(f"{message}.*; training takes the boxes of the masks; for evaluation, write bbox", warning)
    assert "annotations have a box off their mask's (annotation 1," in line
    if smallest == 5:
        said = re.search(r"score a box AP of (\d+\.\d) at most", line)
        assert said
        measured = box_ap(tmp_path, moved(truth(masks=False), edges))
        assert 20 < measured <= float(said[1]) + 0.05 < 91


def test_objects_that_no_detection_of_their_mask_matches_are_refused(tmp_path: Path) -> None:
    """Off by two pixels, each in another direction."""
    content = truth(largest=5)
    for number, annotation in enumerate(content["annotations"]):
        annotation["bbox"][0] += 2 - number % 2 * 4
        annotation["bbox"][1] += 2 - number // 2 % 2 * 4
    with pytest.raises(UserError, match="36 of 36 annotations have a box that overlaps their mask's by an IoU below"):
        load(tmp_path, content)


def test_half_of_the_objects(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="18 of 36 annotations have a box off their mask's.*count pixels from 1"):
        load(tmp_path, moved(truth(), (1, 1, 1, 1), every=2))


def test_what_costs_nothing_is_not_said(tmp_path: Path) -> None:
    assert load(tmp_path, truth()).warnings == []
    assert load(tmp_path, moved(truth(), (0.01, -0.01, 0.01, 0.01))).warnings == []
    assert load(tmp_path, moved(truth(smallest=79, largest=80), (0, 0, 1, 1))).warnings == []


def test_half_a_pixel_and_rounding_are_warnings(tmp_path: Path) -> None:
    half, rounded, rng = moved(truth(), (0.5, 0.5, 0.5, 0.5)), truth(smallest=9), np.random.default_rng(1)
    for annotation in rounded["annotations"]:
        annotation["bbox"] = [v + float(rng.integers(-1, 2)) for v in annotation["bbox"]]
    for content in (half, rounded):
        (warning,) = load(tmp_path, content).warnings
        assert "have a box off their mask's" in warning
        assert "pixels in" not in warning


@pytest.mark.parametrize("rounding", [int, round])
def test_boxes_of_few_pixels_that_are_rounded_are_named_so(tmp_path: Path, rounding: Callable[[float], int]) -> None:
    content = truth(smallest=2, largest=3)
    for number, annotation in enumerate(content["annotations"]):
        shift = (0.45 + number % 4 * 0.1, 0.8 - number % 3 * 0.1)
        (polygon,) = annotation["segmentation"]
        points = np.array(polygon).reshape(-1, 2)
        annotation["segmentation"] = [((points - points[0]) * 1.2 + points[0] + shift).ravel().tolist()]
        low, high = (ends(np.array(annotation["segmentation"][0]).reshape(-1, 2), 0) for ends in (np.min, np.max))
        annotation["bbox"] = [float(rounding(v)) for v in (*low, *(high - low))]
        del annotation["area"]
    with pytest.raises(UserError, match="IoU below 0.5 .*; these are rounded to whole pixels; detections around"):
        load(tmp_path, content)
    assert any(
        "these are rounded to whole pixels; training" in line for line in load(tmp_path, content, scored=False).warnings
    )


def test_outlines_through_the_centres_of_pixels_are_named_so(tmp_path: Path) -> None:
    """What OpenCV's findContours and boundingRect give for objects of a few pixels: boxes wider than outlines by 1."""
    content = truth()
    for number, annotation in enumerate(content["annotations"]):
        mask = np.zeros((40, 40), np.uint8)
        mask[10 : 13 + number % 3, 10 : 14 + number % 4] = 1
        (outline,), _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        x, y = annotation["bbox"][:2]
        annotation["segmentation"] = [(outline.reshape(-1, 2) + np.array([x, y])).ravel().tolist()]
        left, top, width, height = cv2.boundingRect(outline)
        annotation |= {"bbox": [left + x, top + y, width, height], "area": float(mask.sum())}
    with pytest.raises(UserError, match="polygons stop at its centre: .*write polygons around the pixels"):
        load(tmp_path, content)
    assert any("polygons stop at its centre" in line for line in load(tmp_path, content, scored=False).warnings)


def test_objects_that_cost_less_than_a_point_of_ap_are_not_refused(tmp_path: Path) -> None:
    """A class of tiny objects among a hundred: more than 1 % of the objects, and a perfect model has 99.1."""
    content = truth(smallest=40, largest=60)
    content["categories"] = [{"id": i, "name": str(i)} for i in range(1, 121)]
    large = content["annotations"]
    content["annotations"] = [
        entry | {"id": i, "category_id": i} for i, entry in zip(range(1, 120), large * 4, strict=False)
    ]
    tiny = truth(smallest=2, largest=2)["annotations"][:3]
    for number, entry in enumerate(tiny):
        x, y, w, h = entry["bbox"]
        entry |= {"id": 200 + number, "category_id": 120, "bbox": [x + 1, y + number % 2, w, h]}
    content["annotations"] += tiny
    lines = load(tmp_path, content).warnings
    assert any("3 of 122 annotations have a box off their mask's" in line for line in lines)


@pytest.mark.parametrize("every", [1, 2, 36])
def test_areas_tell_corners_in_boxes_alone(tmp_path: Path, every: int) -> None:
    """Corners as width and height, and all boxes still within the image."""
    content = truth(masks=False)
    content["images"][0] |= {"width": 2 * SIZE, "height": 2 * SIZE}
    for annotation in content["annotations"][::every]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]
    counts = rf"{36 // every} of 36 annotations have the area of a box \[x1, y1, x2, y2\].*write \[x1, y1, x2 - x1"
    with pytest.raises(UserError, match=counts):
        load(tmp_path, content)


def test_areas_of_masks_are_no_corners(tmp_path: Path) -> None:
    content = truth(masks=False)
    for annotation in content["annotations"]:
        annotation["area"] *= 0.7
    content["annotations"][0] |= {"bbox": [20, 20, 120, 120], "area": 100 * 100}  # by chance that of its corners
    (warning,) = load(tmp_path, content).warnings
    assert "annotations have an area below that of their box" in warning
