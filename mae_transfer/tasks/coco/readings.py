"""How boxes were written, by what contradicts them: an offset from their masks that objects share, areas of corners.

A box that is off its mask by a pixel or two may be rounded. What it costs is known: training takes the boxes of the
masks, so that a perfect model finds them, and each counts at the thresholds up to its IoU with the file's box.
"""

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Of COCO's AP."""
LEAST_OBJECTS = 10
"""Objects that are not all off by the same number of pixels by chance."""
SHARE_ALIKE, ALIKE_PIXELS = 0.8, 0.3
LEAST_OFFSET = 0.75
"""Pixels. Polygons through the edges of pixels and through their centres differ by half a pixel."""
LEAST_OF_CORNERS = 0.05
"""Share of the contradictions of box and area. Areas of masks equal another product by chance in fewer."""

ROUNDED_SHARE = 0.95
"""Of boxes off their masks that are whole numbers next to the mask's edges, if that is the reason."""

CONVENTIONS = {
    (1, 1, 1, 1): "x and y count pixels from 1: subtract 1 from both",
    (0, 0, 1, 1): "width and height count the last pixel (x2 - x1 + 1), or polygons stop at its centre: subtract 1 "
    "from both, or write polygons around the pixels",
    (1, 1, 2, 2): "x and y count pixels from 1, and width and height count the last pixel: subtract 1 from all four",
    (1, 1, 0, 0): "x and y count pixels from 1, and width and height leave the last pixel out: subtract 1 from x and "
    "y, add 1 to width and height",
    (0, 0, -1, -1): "width and height leave the last pixel out (x2 - x1 of its indices): add 1 to both",
}
"""Offsets of left, top, right and bottom edge in pixels, and what writes them."""


def box_ious(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU float64 (n,) of each pair of x1, y1, x2, y2 boxes, of positive areas or 0."""
    low, high = np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(others[:, 2:] - others[:, :2], axis=1)
    ious: np.ndarray = common / np.maximum(areas - common, 1e-12)
    return ious


def best_ap(ious: np.ndarray, categories: np.ndarray) -> float:
    """Percent: COCO's AP of one detection an object with these IoUs, if those that match come first.

    Args:
        ious: float64 (n,); categories: int64 (n,).
    """
    matched = ious[:, None] >= IOU_THRESHOLDS - 1e-9
    recalls = np.stack([matched[categories == category].mean(axis=0) for category in np.unique(categories)])
    points = np.where(recalls > 0, np.floor(100 * recalls + 1e-6) + 1, 0)  # of 101, precision is 1 up to the recall
    return 100 * float(points.mean()) / 101


def shared_offset(differences: np.ndarray) -> str | None:
    """The offset that most objects share, and what writes it; None if they share none of a pixel or so.

    Args:
        differences: float64 (n, 4), the box's edges minus the mask's: left, top, right, bottom.
    """
    if len(differences) < LEAST_OBJECTS:
        return None
    median = np.median(differences, axis=0)
    alike = (np.abs(differences - median) <= ALIKE_PIXELS).all(axis=1)
    if np.abs(median).max() < LEAST_OFFSET or alike.mean() < SHARE_ALIKE:
        return None
    offset = tuple(round(edge, 1) + 0.0 for edge in median.tolist())
    edges = ", ".join(f"{edge:+g}" if edge else "0" for edge in offset)
    text = f"left, top, right and bottom are off by {edges} pixels in {alike.mean():.0%} of these"
    convention = CONVENTIONS.get(tuple(round(edge) for edge in offset))
    return f"{text}, as if {convention}" if convention else text


def rounded(boxes: np.ndarray, bounds: np.ndarray) -> str | None:
    """That the boxes are their masks' in whole pixels, as by round() or int(); None if they are not.

    Args:
        boxes, bounds: float64 (n, 4), x1, y1, x2, y2 of the file's boxes and of the boxes around their masks.
    """
    low, high = boxes[:, :2] - bounds[:, :2], (boxes[:, 2:] - boxes[:, :2]) - (bounds[:, 2:] - bounds[:, :2])
    near = (np.abs(np.concatenate([low, high], axis=1)) < 1).all(axis=1)
    whole = (boxes == np.round(boxes)).all(axis=1) & (bounds != np.round(bounds)).any(axis=1)
    return "these are rounded to whole pixels" if (near & whole).mean() >= ROUNDED_SHARE else None


def areas_of_corners(boxes: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Bool (n,): the area contradicts width * height, and is that of the four numbers read as x1, y1, x2, y2.

    All False where so few of the contradictions are explained that chance may be the reason.

    Args:
        boxes: float64 (n, 4) x1, y1, x2, y2, made from the file's numbers as x, y, width, height.
        areas: float64 (n,) of the file, NaN where it has none.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    contradicts = np.abs(areas - np.prod(sides, axis=1)) > 1 + 0.01 * np.prod(sides, axis=1)
    other = sides - boxes[:, :2]
    rounding = 0.5 + 0.01 * np.abs(other).sum(axis=1)
    equal = (other > 0).all(axis=1) & (np.abs(areas - np.prod(other, axis=1)) <= rounding)
    flags: np.ndarray = contradicts & equal
    return flags if flags.sum() > LEAST_OF_CORNERS * contradicts.sum() else np.zeros_like(flags)
