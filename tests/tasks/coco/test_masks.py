"""Masks in few arrays: polygons that are none are left out wherever they stand, and all are measured at once."""

import numpy as np
from shapely.geometry import Polygon

from mae_transfer.tasks.coco.checks import measure_polygons
from mae_transfer.tasks.coco.masks import Masks

LENGTHS = [[6], [7, 8, 4], [0, 12], [6, 6, 10], [2, 9, 20, 3], [40]]
"""Numbers of the polygons of each mask; those of an odd count or of less than 6 are none."""


def masks() -> Masks:
    """Polygons around a centre each, so that none crosses itself."""
    rng = np.random.default_rng(0)
    coordinates = []
    for length in (length for lengths in LENGTHS for length in lengths):
        points = -(-length // 2)
        angles, radius = np.sort(rng.uniform(0, 2 * np.pi, points)), rng.uniform(5, 50, points)
        outline = rng.uniform(100, 200, 2) + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        coordinates.append(outline.reshape(-1)[:length])
    ends = np.cumsum([0, *map(len, coordinates)])
    lasts = np.cumsum([0, *map(len, LENGTHS)])
    none = np.zeros((len(LENGTHS), 2), dtype=np.int64)
    parts = np.stack([lasts[:-1], lasts[1:]], axis=1)
    return Masks(np.concatenate(coordinates), ends, parts, np.zeros(0, np.uint8), none, none + 480)


def test_whole_polygons_are_those_of_each_mask() -> None:
    for rows in ([0, 1, 2, 3, 4, 5], [4, 1, 1], [3]):
        some = masks().of(np.array(rows))
        points, starts, numbers = some.whole_polygons()
        wanted = [polygon for mask in some for polygon in mask]
        assert numbers.tolist() == [len(mask) for mask in some]
        assert [part.reshape(-1).tolist() for part in np.split(points, starts[1:])] == [p.tolist() for p in wanted]


def test_boxes_and_areas_are_those_of_shapely() -> None:
    boxes, areas = measure_polygons(masks())
    for box, area, mask in zip(boxes, areas, masks(), strict=True):
        shapes = [Polygon(polygon.reshape(-1, 2)) for polygon in mask if not isinstance(polygon, str)]
        low, high = np.array([shape.bounds[:2] for shape in shapes]), np.array([shape.bounds[2:] for shape in shapes])
        assert box.tolist() == [*low.min(0).tolist(), *high.max(0).tolist()]
        np.testing.assert_allclose(area, sum(shape.area for shape in shapes), rtol=1e-12)
