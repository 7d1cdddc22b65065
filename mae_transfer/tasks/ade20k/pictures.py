"""Pictures of a segmentor: the image, its true classes and the predicted ones, with the names of the commonest.

knn, logreg and in_context have a fourth panel: the features of the patches (`pca_picture.py`).
"""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor, nn

from mae_transfer.data.drawing import (
    BACKGROUND,
    INK,
    class_colour,
    cut,
    font,
    headed,
    scaled_size,
    side_by_side,
    stacked,
)
from mae_transfer.data.images import choose_subset
from mae_transfer.engine.evaluation import drawing
from mae_transfer.run_folder.pictures import Picture
from mae_transfer.tasks.ade20k.data import Segmentation
from mae_transfer.tasks.ade20k.pca_picture import pca_colours
from mae_transfer.tasks.ade20k.protocols.patches import PatchClassifier
from mae_transfer.tasks.ade20k.transforms import IGNORE

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SIDE = 320
"""Longer side in pixels of a panel; there are three, of patches four."""
SHARE = 0.65
"""Of the class's colour in an overlay."""
NAMED = 8
"""Classes that the legend names: those with most pixels in the truth and the prediction together."""


def draw_pictures(
    model: nn.Module, dataset: Segmentation, names: list[str], count: int, fabric: "Fabric"
) -> list[Picture]:
    """Of `count` images; what cannot be decoded, and may be skipped, is left out."""
    pictures = []
    chosen = choose_subset([dataset.file_name(place) for place in range(len(dataset))], count).tolist()
    pairs = {place: pair for place in chosen if (pair := dataset.read_or_skip(place)) is not None}
    maps, predictions = list[Tensor](), list[np.ndarray]()
    for place in pairs:
        batch = fabric.to_device(dataset.collate([dataset[place]]))
        with drawing(model), fabric.autocast():
            (prediction,) = model(batch)
            maps += [model.maps(batch["images"])[0]] if isinstance(model, PatchClassifier) else []
        predictions.append(prediction.cpu().numpy())
    colours = pca_colours(maps) if maps else []
    for number, ((place, (pixels, label)), predicted) in enumerate(zip(pairs.items(), predictions, strict=True)):
        counted = label != IGNORE
        share = 100 * float((predicted == label)[counted].mean()) if counted.any() else float("nan")
        panels = [
            headed(Image.fromarray(pixels).resize(_size(pixels), Image.Resampling.BILINEAR), "image"),
            headed(overlay(pixels, label), "ground truth"),
            headed(overlay(pixels, predicted), "prediction"),
        ]
        if colours:
            components = Image.fromarray(colours[number]).resize(_size(pixels), Image.Resampling.NEAREST)
            panels.append(headed(components, "features"))
        row = side_by_side(panels)
        picture = stacked([row, legend(label, predicted, names, row.width)])
        caption = f"{share:.1f} % of the labelled pixels right" if counted.any() else "no pixel is labelled"
        pictures.append(Picture(picture, dataset.file_name(place), caption))
    return pictures


def _size(pixels: np.ndarray) -> tuple[int, int]:
    return scaled_size(pixels.shape[1], pixels.shape[0], SIDE)


def overlay(pixels: np.ndarray, classes: np.ndarray) -> Image.Image:
    """Image uint8 (H, W, 3) under the colours of int16 (H, W) classes, scaled; ignored pixels stay as they are."""
    mixed = pixels.astype(np.float32)
    for k in np.unique(classes[classes != IGNORE]).tolist():
        where = classes == k
        mixed[where] = (1 - SHARE) * mixed[where] + SHARE * np.array(class_colour(k), np.float32)
    return Image.fromarray(mixed.round().astype(np.uint8)).resize(_size(pixels), Image.Resampling.BILINEAR)


def legend(label: np.ndarray, predicted: np.ndarray, names: list[str], width: int) -> Image.Image:
    """A swatch and a name each, in as many rows as they need."""
    both = np.concatenate([label[label != IGNORE], predicted.ravel()])
    values, counts = np.unique(both, return_counts=True)
    commonest = values[np.argsort(-counts, kind="stable")[:NAMED]].tolist()
    columns = 4
    cell, line = width // columns, 22
    drawn = Image.new("RGB", (width, line * -(-len(commonest) // columns)), BACKGROUND)
    pen = ImageDraw.Draw(drawn)
    for number, k in enumerate(commonest):
        x, y = cell * (number % columns) + 4, line * (number // columns)
        pen.rectangle((x, y + 4, x + 13, y + 17), fill=class_colour(k))
        pen.text((x + 20, y + 3), cut(names[k], cell - 30), INK, font())
    return drawn
