"""Large-scale jitter in training and one resize in test, with the arithmetic of detectron2.

Training: `ResizeScale` -> `FixedSizeCrop` -> `RandomFlip` as in detectron2's `new_baselines` LSJ configs, which Li et
al. 2021 refer to, then `DatasetMapper` with `recompute_boxes=True`. Test: `ResizeShortestEdge(size, max_size=size)`.
Given the same three random numbers, image, polygons, bitmaps and boxes come out the same as there, but for this:

- one image may have polygons and bitmaps; detectron2 takes one kind per data set;
- polygons in whole numbers are scaled like others (detectron2 keeps such arrays integer, so each point is cut down);
- padding never belongs to a bitmap mask (detectron2 pads bitmaps with 255, which then counts as object);
- a side that would be resized to 0 pixels becomes 1 (detectron2 fails).
"""

from dataclasses import dataclass

import numpy as np
import shapely
from PIL import Image
from pycocotools import mask as rle
from torchvision.transforms.v2 import functional as F

from mae_transfer.tasks.coco.annotations import ObjectRecord, Polygons
from mae_transfer.tasks.coco.config import DataConfig

# Boxes with a side up to this are dropped (detectron2's `filter_empty_instances`), in pixels.
SMALLEST_SIDE = 1e-5


@dataclass(frozen=True)
class Jitter:
    """One drawn transform: resize to `resized`, cut `crop` at `offset`, pad to `padded`, flip.

    Pairs are (height, width) or (top, left), in pixels.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    crop: tuple[int, int]
    """The size cut out, no larger than `resized`."""
    window: int
    """Side of the square that polygons are cut to. It may reach beyond the image, and so may they, as in detectron2."""
    padded: tuple[int, int]
    pad_value: int
    flip: bool

    def image(self, image: Image.Image) -> Image.Image:
        image = F.resize(image, list(self.resized), interpolation=F.InterpolationMode.BILINEAR)
        image = self._crop_and_pad(image, self.pad_value)
        return F.horizontal_flip(image) if self.flip else image

    def bitmap(self, bitmap: np.ndarray) -> np.ndarray:
        """A uint8 mask (height, width) of the original image -> uint8 mask of the transformed one."""
        image = F.resize(Image.fromarray(bitmap), list(self.resized), interpolation=F.InterpolationMode.NEAREST)
        image = self._crop_and_pad(image, 0)
        return np.array(F.horizontal_flip(image) if self.flip else image)

    def box(self, box: tuple[float, float, float, float]) -> np.ndarray:
        """x, y, width, height in the original image -> the float32 x1, y1, x2, y2 of what the result holds of it.

        Source: detectron2's `transform_instance_annotations`, for objects whose boxes are not recomputed from masks.
        """
        x, y, width, height = box
        scale = np.array([self.resized[1] / self.original[1], self.resized[0] / self.original[0]])
        corners = np.array([[x, y], [x + width, y + height]]) * scale - self.offset[::-1]
        if self.flip:
            corners[:, 0] = self.padded[1] - corners[::-1, 0]
        return np.clip(corners, 0, self.padded[::-1]).astype(np.float32).reshape(-1)

    def _crop_and_pad(self, image: Image.Image, fill: int) -> Image.Image:
        if self.crop != self.resized:
            image = F.crop(image, *self.offset, *self.crop)
        below, right = self.padded[0] - self.crop[0], self.padded[1] - self.crop[1]
        return F.pad(image, [0, 0, right, below], fill=[fill] * len(image.getbands())) if below or right else image

    def polygons(self, polygons: Polygons) -> Polygons:
        """Float64 arrays (2k,) of x, y pairs -> those of the parts inside the window; [] when nothing is."""
        scale = np.array([self.resized[1] / self.original[1], self.resized[0] / self.original[0]])
        top, left = self.offset
        window = shapely.box(left, top, left + self.window, top + self.window).buffer(0.0)
        inside: Polygons = []
        for polygon in polygons:
            # buffer(0) makes a self-intersecting outline valid, which intersection needs
            shape = shapely.Polygon(polygon.reshape(-1, 2) * scale).buffer(0.0)
            for part in shapely.get_parts(shape.intersection(window)):
                # a cut can leave lines and points, which have no area; holes of a part are lost, COCO has none
                if isinstance(part, shapely.Polygon) and not part.is_empty and part.is_valid:
                    outline = np.array(part.exterior.coords)[:-1] - (left, top)
                    if self.flip:
                        outline[:, 0] = self.padded[1] - outline[:, 0]
                    inside.append(outline.reshape(-1))
        return inside


def draw_jitter(height: int, width: int, config: DataConfig, rng: np.random.Generator) -> Jitter:
    """Draws scale, crop offset (one number for both axes) and flip, in this order, for an image of this size."""
    scale = rng.uniform(config.scale_min, config.scale_max)
    position = rng.uniform(0.0, 1.0)
    flip = rng.uniform(0.0, 1.0) < config.flip
    original, side = np.array([height, width]), config.image_size
    ratio = np.min(side * scale / original)
    resized = np.maximum(np.round(original * ratio).astype(int), 1)
    offset = np.round(np.maximum(resized - side, 0) * position).astype(int)
    crop = np.minimum(resized, side)
    padded = crop if config.pad_value is None else np.array([side, side])
    return Jitter(
        (height, width),
        _pair(resized),
        _pair(offset),
        _pair(crop),
        side,
        _pair(padded),
        config.pad_value or 0,
        bool(flip),
    )


def _pair(values: np.ndarray) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def transform_objects(
    objects: list[ObjectRecord], jitter: Jitter
) -> tuple[np.ndarray, np.ndarray, list[Polygons | np.ndarray]]:
    """Boxes float32 (n, 4) xyxy, classes int64 (n,), and masks of the objects of which something is left.

    Crowds are left out. Boxes are recomputed from the masks, so that they fit what the crop left; without masks they
    are cut to it.
    """
    boxes, classes, masks = [], [], []
    for item in objects:
        if item.crowd:
            continue
        mask: Polygons | np.ndarray | None = None
        if item.segmentation is None:
            box = jitter.box(item.bbox)
        elif isinstance(item.segmentation, list):
            mask = jitter.polygons(item.segmentation)
            box = polygons_box(mask)
        else:
            mask = jitter.bitmap(rle.decode(item.segmentation))
            box = bitmap_box(mask)
        if (box[2:] - box[:2] > SMALLEST_SIDE).all():
            boxes.append(box)
            classes.append(item.category)
            if mask is not None:
                masks.append(mask)
    return np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(classes, dtype=np.int64), masks


def polygons_box(polygons: Polygons) -> np.ndarray:
    """The float32 xyxy box around all points; zeros for no polygon."""
    if not polygons:
        return np.zeros(4, dtype=np.float32)
    points = np.concatenate(polygons).reshape(-1, 2).astype(np.float32)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def bitmap_box(bitmap: np.ndarray) -> np.ndarray:
    """The float32 xyxy box around a mask's pixels, right and bottom edge exclusive; zeros for an empty mask."""
    rows, columns = bitmap.any(axis=1).nonzero()[0], bitmap.any(axis=0).nonzero()[0]
    if not len(rows):
        return np.zeros(4, dtype=np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)


def evaluation_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width when the shorter edge is made `side` and then the longer at most `side`."""
    ratio = side / min(height, width)
    sides = [float(side) if edge == min(height, width) else ratio * edge for edge in (height, width)]
    shrink = min(side / max(sides), 1.0)
    new_height, new_width = (max(int(edge * shrink + 0.5), 1) for edge in sides)
    return new_height, new_width


def resize_for_evaluation(image: Image.Image, side: int) -> Image.Image:
    """The image resized to fit a square of `side` pixels."""
    size = evaluation_size(image.height, image.width, side)
    return F.resize(image, list(size), interpolation=F.InterpolationMode.BILINEAR)
