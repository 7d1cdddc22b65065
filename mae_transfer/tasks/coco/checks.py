"""Do the numbers of a COCO file agree with each other: boxes with masks, both with their image, areas with masks.

In a file of boxes alone, boxes with their image and areas with boxes.

A file that contradicts itself gives wrong APs without a word: training takes the boxes of the masks, evaluation those
of the file. What makes a number wrong is refused. What is only odd is a warning with a count and the first ids.

COCO's own files hold boxes and areas that were computed from the polygons, to 0.01 pixels. Other tools round, so 2
pixels and 5 % of a side are allowed. What that costs a perfect model is said; an offset that small objects share, and
boxes that no detection of their mask matches, are refused where they cost a point of box AP (`readings.py`). In a file
that is trained on alone they cost nothing, and are said.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.masks import Masks, pixels
from mae_transfer.tasks.coco.readings import (
    IOU_THRESHOLDS,
    areas_of_corners,
    best_ap,
    box_ious,
    rounded,
    shared_offset,
)

TOLERATED = 1e-4
"""Share of a file's annotations that may be wrong in one way: it moves an AP by 0.01 at most."""
COCO_ANNOTATIONS = (860001, 36781, 604907, 291875)
"""COCO's own train2017, val2017, train2014 and val2014. Their few odd objects are part of the benchmark."""
SLACK_PIXELS, SLACK_SHARE = 2.0, 0.05
WORST_AP, SAID_AP = 95.0, 99.5
"""Box AP of a perfect model below which an offset that objects share is refused, and boxes off their masks are said."""
UNMATCHED, UNMATCHED_AP = 0.01, 99.0
"""Share of objects whose rounded box may be below an IoU of 0.5 with their mask's: those of a few pixels. More are
refused if the box AP of a perfect model is below the second number."""
LEAST_FILLED = 1e-3
"""Share of its box that an object fills at least: a line of one pixel across 1000."""
FAR = 10.0
"""Image sides beyond which a polygon is refused: the evaluator would take memory by its length."""
MANY = 100
"""Objects that are not all rectangles by chance."""
_CHUNK = 50000
_ODD = np.random.default_rng(0).integers(2**63, size=5, dtype=np.uint64) * 2 + 1
"""What the numbers of an object are multiplied by, to be added up as a hash."""


@dataclass
class Objects:
    """The objects of a file as columns; boxes are x1, y1, x2, y2 in pixels."""

    ids: np.ndarray
    images: np.ndarray
    """int64 (n,): the ids of their images."""
    categories: np.ndarray
    """int64 (n,): the ids of their categories."""
    sizes: np.ndarray
    """float64 (n, 2): width and height of their images."""
    crowd: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    """float64 (n,) of the file, NaN where it has none."""
    masks: Masks | None
    """None in a file of boxes alone."""
    bounds: np.ndarray = field(init=False)
    """float64 (n, 4): the boxes around the masks; without masks the boxes themselves."""
    mask_areas: np.ndarray = field(init=False)
    """float64 (n,): pixels of the masks, or of the boxes; polygons are measured, not drawn, and their parts added."""

    def __post_init__(self) -> None:
        if self.masks is None:
            self.bounds, self.mask_areas = self.boxes, box_areas(self.boxes)
            return
        self.bounds, self.mask_areas = np.zeros((len(self.ids), 4)), np.zeros(len(self.ids))
        encoded = np.flatnonzero(self.masks.encoded)
        if len(encoded):
            masks = [self.masks[i] for i in encoded.tolist()]
            self.bounds[encoded] = np.asarray(rle.toBbox(masks)).reshape(-1, 4)
            self.bounds[encoded, 2:] += self.bounds[encoded, :2]
            self.mask_areas[encoded] = pixels(masks)
        drawn = np.flatnonzero(~self.masks.encoded)
        for start in range(0, len(drawn), _CHUNK):
            rows = drawn[start : start + _CHUNK]
            self.bounds[rows], self.mask_areas[rows] = measure_polygons(self.masks.of(rows))


def box_areas(boxes: np.ndarray) -> np.ndarray:
    areas: np.ndarray = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return areas


def measure_polygons(masks: Masks) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) x1, y1, x2, y2 around the polygons of each mask, and the sums of their areas (n,)."""
    points, starts, numbers = masks.whole_polygons()
    x, y = np.ascontiguousarray(points.T)
    lasts = np.r_[starts[1:], len(points)] - 1
    cross = np.append(x[:-1] * y[1:] - x[1:] * y[:-1], 0)
    cross[lasts] = x[lasts] * y[starts] - x[starts] * y[lasts]
    areas = np.abs(np.add.reduceat(cross, starts)) / 2
    first = np.cumsum(numbers) - numbers
    edges = [edge.reduceat(values, starts[first]) for edge in (np.minimum, np.maximum) for values in (x, y)]
    return np.stack(edges, axis=1), np.add.reduceat(areas, first)


class Report:
    """Turns flags of a file's annotations into one line each: an error, or a warning."""

    def __init__(self, path: Path, ids: np.ndarray, images: np.ndarray) -> None:
        self.path, self.ids, self.images = path, ids, images
        self.warnings: list[str] = []

    def warn(self, flags: np.ndarray, what: str, remedy: str) -> None:
        if flags.any():
            self.warnings.append(self.line(flags, what, remedy))

    def refuse(self, flags: np.ndarray, what: str, remedy: str) -> None:
        """Raise UserError if more than `TOLERATED` are flagged, and the file is not COCO's own; else warn."""
        if flags.sum() > TOLERATED * len(self.ids) and len(self.ids) not in COCO_ANNOTATIONS:
            raise UserError(self.line(flags, what, remedy))
        self.warn(flags, what, remedy)

    def line(self, flags: np.ndarray, what: str, remedy: str) -> str:
        places = np.flatnonzero(flags)
        ids = ", ".join(str(i) for i in self.ids[places[:3]]) + (", ..." if len(places) > 3 else "")
        counts = f"{len(places)} of {len(self.ids)} annotations {what}"
        return f"{self.path}: {counts} (annotation {ids}; the first of image {self.images[places[0]]}); {remedy}"


def check_objects(path: Path, objects: Objects, *, scored: bool = True) -> list[str]:
    """Warnings about the objects of a file; raises UserError for what makes an AP wrong.

    scored: detections are compared with its boxes. They are not in a file that is trained on alone.
    """
    report = Report(path, objects.ids, objects.images)
    width, height = objects.sizes.T
    image = np.stack([np.zeros_like(width), np.zeros_like(height), width, height], axis=1)
    bounds, boxes = objects.bounds, objects.boxes
    beyond = np.maximum(image[:, :2] - bounds[:, :2], bounds[:, 2:] - image[:, 2:])
    far = (beyond > FAR * objects.sizes).any(axis=1)
    if objects.masks is not None and far.any():
        raise UserError(report.line(far, "have a polygon far outside their image", "correct it or take it out"))
    in_first_pixel = ((boxes >= 0) & (boxes <= 1.001) & (image[:, [2, 3, 2, 3]] > 8)).min(axis=1)
    report.refuse(
        in_first_pixel,
        "lie within the first pixel of their image",
        "coordinates are in pixels: if these are shares of the image (0..1), multiply them by its width and height",
    )
    if objects.masks is None:
        report.refuse(
            areas_of_corners(boxes, np.where(objects.crowd, np.nan, objects.areas)),
            "have the area of a box [x1, y1, x2, y2], not of [x, y, width, height]",
            "bbox is [x, y, width, height] in pixels: write [x1, y1, x2 - x1, y2 - y1]",
        )
    clipped = clip(boxes, image)
    outside: np.ndarray = ~_fits(boxes, clipped)
    report.refuse(
        outside & ~in_first_pixel,
        "have a box that leaves its image",
        f"bbox is [x, y, width, height] in pixels{_hint(objects, outside)}; correct width and height of the image, or "
        "cut the boxes to it",
    )
    if objects.masks is None:
        _check_repeated(report, objects)
        _check_box_areas(report, objects)
        return report.warnings
    inside = clip(bounds, image)
    pairs = ((boxes, bounds), (boxes, inside), (clipped, inside))
    ious = np.where(objects.crowd, 1, np.max([box_ious(*pair) for pair in pairs], axis=0))
    differs = ~np.any([_fits(*pair) for pair in pairs], axis=0)
    report.refuse(
        differs & ~outside & ~in_first_pixel,
        "have a box that is not that of their mask",
        f"bbox is [x, y, width, height] around the segmentation, in pixels{_hint(objects, differs)}; correct one of "
        "them",
    )
    _check_offsets(report, objects, np.where(differs | outside, 1, ious), scored)
    thin = (inside[:, 2:] - inside[:, :2] < 2).any(axis=1)
    empty = np.zeros(len(boxes), dtype=bool)
    for place in np.flatnonzero(thin):
        empty[place] = _pixels(objects, int(place)) == 0
    report.refuse(empty, "have a mask without a pixel", "no detection can match it: correct it or take it out")
    report.warn(
        (beyond > SLACK_PIXELS).any(axis=1) & ~outside,
        "have polygons that reach outside their image",
        "they count as far as they lie in it",
    )
    _check_repeated(report, objects)
    rectangles = np.abs(objects.mask_areas - box_areas(bounds)) < 1
    if len(rectangles) >= MANY and rectangles[~objects.crowd].all():
        report.warn(
            rectangles,
            "have a mask that fills its box",
            "if the masks were made from boxes, mask AP says nothing more than box AP",
        )
    _check_areas(report, objects)
    return report.warnings


def _check_offsets(report: Report, objects: Objects, ious: np.ndarray, scored: bool) -> None:
    """Boxes off their masks by a pixel or two: rounded, or by a convention that the objects share."""
    off = ious < IOU_THRESHOLDS[-1]
    best = best_ap(ious[~objects.crowd], objects.categories[~objects.crowd]) if off.any() else 100.0
    if best >= SAID_AP:
        return
    what, remedy = "have a box off their mask's", "write bbox from the segmentation"
    rounding = rounded(objects.boxes[off], objects.bounds[off])
    offset = None if rounding else shared_offset((objects.boxes - objects.bounds)[off])
    why = f"{rounding or offset}; " if rounding or offset else ""
    if not scored:
        report.warn(off, what, f"{why}training takes the boxes of the masks; for evaluation, {remedy}")
        return
    cost = f"detections around the masks score a box AP of {best:.1f} at most"
    unmatched = ious < IOU_THRESHOLDS[0]
    if offset is not None and best < WORST_AP:
        report.refuse(off, what, f"{why}{cost}; {remedy}")
    elif unmatched.mean() > UNMATCHED and best < UNMATCHED_AP:
        report.refuse(unmatched, "have a box that overlaps their mask's by an IoU below 0.5", f"{why}{cost}; {remedy}")
    else:
        report.warn(off, what, f"{why}{cost}; {remedy}")


def _check_repeated(report: Report, objects: Objects) -> None:
    """Objects that are there before, under another id."""
    repeated, seen = np.zeros(len(objects.ids), dtype=bool), set()
    places = _alike(objects)
    columns = (objects.images, objects.categories, objects.crowd)
    owners = zip(*(column[places].tolist() for column in columns), strict=True)
    masks = objects.masks
    boxes = (box.tobytes() for box in objects.bounds[places])
    contents = boxes if masks is None else masks.of(places).contents()
    for place, owner, content in zip(places.tolist(), owners, contents, strict=True):
        key = hash((owner, content))  # of 64 bits: the contents of a million objects are 400 MB
        repeated[place] = key in seen
        seen.add(key)
    report.warn(
        repeated,
        f"repeat an object: same image, category and {'box' if masks is None else 'mask'}",
        "each counts, and a detection matches one of them alone, so that a perfect model misses the rest",
    )


def _alike(objects: Objects) -> np.ndarray:
    """int64, ascending: the objects for which another of the image has the same box around its mask, and few others."""
    columns = [(objects.bounds + 0.0).view(np.uint64), objects.images.view(np.uint64)[:, None]]
    keys = np.concatenate(columns, axis=1) @ _ODD
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    found: np.ndarray = np.unique(np.r_[order[1:][same], order[:-1][same]])
    return found


def _check_box_areas(report: Report, objects: Objects) -> None:
    """Without masks an area may be the box's, or less: that of a mask which is no longer there."""
    areas, boxes = objects.areas, objects.mask_areas
    given = ~np.isnan(areas) & ~objects.crowd
    sides = np.sum(objects.boxes[:, 2:] - objects.boxes[:, :2], axis=1)
    impossible = given & ((areas > 1.5 * boxes + 2 * sides) | (areas < LEAST_FILLED * boxes))
    report.refuse(
        impossible,
        "have an area that no object in their box can have",
        "area is in pixels, and APs, APm, APl go by it: correct it, or leave area out to have it computed",
    )
    report.warn(
        given & ~impossible & (areas < 0.95 * boxes - sides),
        "have an area below that of their box",
        "it is taken for the area of a mask, and APs, APm and APl go by it; leave area out to have the box's",
    )
    report.warn(np.isnan(areas), "have no area", "it is computed from their boxes")


def _check_areas(report: Report, objects: Objects) -> None:
    """Areas decide which objects are small, medium or large."""
    areas, masks = objects.areas, objects.mask_areas
    sides = np.sum(objects.bounds[:, 2:] - objects.bounds[:, :2], axis=1)
    given = ~np.isnan(areas) & ~objects.crowd
    off = given & (np.abs(areas - masks) > SLACK_SHARE * masks + 2 * sides)
    differs = off.copy()
    for place in np.flatnonzero(off):  # parts of a polygon that overlap count once when drawn
        pixels = _pixels(objects, int(place))
        distance = abs(areas[place] - pixels) - 2 * sides[place]
        off[place], differs[place] = distance > SLACK_SHARE * pixels, distance > 0.5 * pixels
    boxes = box_areas(objects.boxes)
    of_box = off & (np.abs(areas - boxes) <= 0.01 * boxes + 1)
    report.refuse(
        differs & ~of_box,
        "have an area that is not that of their mask",
        "area is the mask's, in pixels, and APs, APm, APl go by it: correct it, or leave area out to have it computed",
    )
    report.warn(
        off & ~differs & ~of_box,
        f"have an area more than {SLACK_SHARE:.0%} off that of their mask",
        "APs, APm and APl go by it; leave area out to have it computed",
    )
    report.warn(
        of_box,
        "have the area of their box instead of the mask's",
        "APs, APm and APl go by it as in COCO's tools; leave area out to have it computed",
    )
    report.warn(np.isnan(areas), "have no area", "it is computed from their masks")


def _pixels(objects: Objects, place: int) -> int:
    """Pixels of a mask as the evaluator draws it."""
    assert objects.masks is not None
    mask, (width, height) = objects.masks[place], objects.sizes[place].astype(int).tolist()
    if isinstance(mask, list):
        mask = rle.merge(rle.frPyObjects([polygon.tolist() for polygon in mask], height, width))
    return int(rle.area(mask))


def clip(boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) cut to their images (n, 4)."""
    return np.clip(boxes, image[:, [0, 1, 0, 1]], image[:, [2, 3, 2, 3]])


def _fits(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Bool (n,): all edges agree within the slack; an empty box fits none."""
    sides = others[:, 2:] - others[:, :2]
    slack = np.tile(np.maximum(SLACK_PIXELS, SLACK_SHARE * sides), 2)
    fits: np.ndarray = (np.abs(boxes - others) <= slack).all(axis=1) & (sides > 0).all(axis=1)
    return fits


def _hint(objects: Objects, wrong: np.ndarray) -> str:
    """What the boxes of most of the wrong annotations are instead; without masks, what all of the file may be."""
    if not wrong.any():
        return ""
    if objects.masks is None:
        wrong = np.ones_like(wrong)
    boxes, bounds, (width, height) = objects.boxes[wrong], objects.bounds[wrong], objects.sizes[wrong].T
    x, y, right, bottom = boxes.T
    w, h = right - x, bottom - y
    kinds = {
        "[x1, y1, x2, y2]": (x, y, w, h),
        "[centre x, centre y, width, height]": (x - w / 2, y - h / 2, x + w / 2, y + h / 2),
        "shares of the image, 0..1": (x * width, y * height, right * width, bottom * height),
        "[y, x, height, width]": (y, x, bottom, right),
    }
    image = np.stack([np.zeros_like(width), np.zeros_like(height), width, height], axis=1)
    for name, corners in kinds.items():
        candidates = np.stack(corners, axis=1)
        if objects.masks is not None and _fits(candidates, bounds).mean() > 0.5:
            return f"; these look like {name}"
        if objects.masks is None and _fits(candidates, clip(candidates, image)).all():
            return f"; all boxes of the file fit their images as {name}"
    return ""
