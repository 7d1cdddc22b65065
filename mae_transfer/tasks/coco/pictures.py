"""Pictures of a detector: detections and masks beside the ground truth."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle
from torch import nn

from mae_transfer.data.drawing import blend, class_colour, font, headed, one_line, scaled_size, side_by_side
from mae_transfer.data.images import choose_subset
from mae_transfer.engine.evaluation import drawing
from mae_transfer.run_folder.pictures import Picture
from mae_transfer.tasks.coco.annotations import ObjectRecord
from mae_transfer.tasks.coco.data import CocoEval
from mae_transfer.tasks.coco.detector.postprocess import Detections

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SCORE = 0.3
"""Detections below are not drawn."""
LARGEST_SIDE = 2048
"""Masks of larger images keep every second pixel, or fewer."""


class Instance(NamedTuple):
    """`box` is x1, y1, x2, y2 in pixels of the image, `mask` bool (H, W) of its size or smaller; None without masks."""

    category: int
    text: str
    box: tuple[float, float, float, float]
    mask: np.ndarray | None

    @property
    def area(self) -> float:
        """Pixels of the mask, or of the box."""
        x1, y1, x2, y2 = self.box
        return (x2 - x1) * (y2 - y1) if self.mask is None else float(self.mask.sum())


def draw_pictures(model: nn.Module, dataset: CocoEval, count: int, fabric: "Fabric") -> list[Picture]:
    """Of `count` images that have objects; what cannot be decoded, and may be skipped, is left out."""
    places = np.flatnonzero(dataset.annotations.num_objects[dataset.indices])
    places = places[choose_subset([dataset.image_ids[place] for place in places], count)]
    names, pictures = dataset.annotations.names, []
    for place in places.tolist():
        image = dataset.read_or_skip(place)
        if image is None:
            continue
        batch = fabric.to_device(dataset.collate([dataset[place]]))
        with drawing(model), fabric.autocast():
            (output,) = model(batch)
        record = dataset.record(place)
        truth = [_of_object(item, names, record.height, record.width) for item in record.objects]
        found = _of_output(output, names)
        scores = output["scores"].float().tolist()
        panels = [
            headed(overlay(image, truth), f"ground truth: {len(truth)}"),
            headed(overlay(image, found), f"detections: {len(found)}"),
        ]
        best = f"; the best has {max(scores):.2f}" if scores and not found else ""
        caption = f"{len(truth)} objects; {len(found)} of {len(scores)} detections score {SCORE} or more{best}"
        pictures.append(Picture(side_by_side(panels), record.file_name, caption))
    return pictures


def _of_object(item: ObjectRecord, names: list[str], height: int, width: int) -> Instance:
    x, y, w, h = item.bbox
    shape: object = item.segmentation
    if isinstance(shape, list):
        shape = rle.merge(rle.frPyObjects([polygon.tolist() for polygon in shape], height, width))
    text = names[item.category] + (" (crowd)" if item.crowd else "")
    mask = None if shape is None else _shrunk(rle.decode(shape).astype(bool))
    return Instance(item.category, text, (x, y, x + w, y + h), mask)


def _of_output(output: Detections, names: list[str]) -> list[Instance]:
    """The detections of one image that are to be drawn."""
    kept = (output["scores"] >= SCORE).nonzero()[:, 0].tolist()
    classes, scores, boxes = (output[key][kept].float().cpu().tolist() for key in ("classes", "scores", "boxes"))
    masks = output.get("masks")

    def mask(i: int) -> np.ndarray | None:
        if masks is None:
            return None
        return _shrunk((rle.decode(masks[i]) if isinstance(masks, list) else masks[i].float().cpu().numpy()) > 0.5)

    return [
        Instance(int(k), f"{names[int(k)]} {score:.2f}", tuple(box), mask(i))
        for i, k, score, box in zip(kept, classes, scores, boxes, strict=True)
    ]


def _shrunk(mask: np.ndarray) -> np.ndarray:
    """Fewer pixels of a mask that is much larger than a panel."""
    step = max(mask.shape) // LARGEST_SIDE + 1
    return mask if step == 1 else mask[::step, ::step].copy()


def overlay(image: Image.Image, instances: list[Instance]) -> Image.Image:
    """The image, scaled, with masks, boxes and names; small objects above large ones."""
    size = scaled_size(*image.size)
    scale = size[0] / image.width, size[1] / image.height
    drawn = image.resize(size, Image.Resampling.BILINEAR)
    ordered = sorted(instances, key=lambda instance: -instance.area)
    for instance in ordered:
        if instance.mask is None:
            continue
        mask = np.asarray(Image.fromarray(instance.mask).resize(size, Image.Resampling.NEAREST))
        colour = class_colour(instance.category)
        drawn = blend(drawn, mask, colour, 0.45)
        drawn = blend(drawn, _edge(mask), colour, 1.0)
    pen = ImageDraw.Draw(drawn)
    for instance in ordered:
        x1, y1, x2, y2 = (value * scale[i % 2] for i, value in enumerate(instance.box))
        colour = class_colour(instance.category)
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour, width=2)
        text = one_line(instance.text)
        right, bottom = pen.textbbox((0, 0), text, font(11))[2:]
        x, y = min(max(x1, 0), size[0] - right - 4), max(y1 - bottom - 3, 0)
        pen.rectangle((x, y, x + right + 4, y + bottom + 3), fill=colour)
        light = sum(colour) > 330
        pen.text((x + 2, y + 1), text, (0, 0, 0) if light else (255, 255, 255), font(11))
    return drawn


def _edge(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask with a neighbour that is none of it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
