"""Pictures of a classifier: val images with their true and predicted class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageOps
from torch import nn

from mae_transfer.data.drawing import RIGHT, WRONG, Colour, headed, side_by_side, stacked, to_image
from mae_transfer.data.images import choose_subset
from mae_transfer.engine.evaluation import drawing
from mae_transfer.run_folder.pictures import Picture
from mae_transfer.tasks.classification.data import Batch, ClassificationEval

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SIDE = 148
"""Pixels of a thumbnail, without its border."""
BORDER = 3
COLUMNS = 4


@dataclass(frozen=True)
class Prediction:
    """What a head says of one image."""

    name: str
    """File name."""
    batch: Batch
    """The image alone, on the device."""
    truth: str
    predicted: str
    thumbnail: Image.Image

    @property
    def is_right(self) -> bool:
        return self.predicted == self.truth


def predict(
    model: nn.Module, head: int, images: ClassificationEval, class_names: Sequence[str], count: int, fabric: "Fabric"
) -> list[Prediction]:
    """The predictions for `count` images, always the same ones. Images that cannot be decoded are left out."""
    places = choose_subset([images.file_name(place) for place in range(len(images))], count).tolist()
    predictions = []
    for place in places:
        batch = images.collate([images[place]])
        if not len(batch["labels"]):
            continue
        on_device = fabric.to_device(batch)
        with drawing(model), fabric.autocast():
            predicted = class_names[int(model(on_device)[head, 0].argmax())]
        truth = class_names[images.label(place)]
        colour = RIGHT if predicted == truth else WRONG
        picture = thumbnail(to_image(batch["images"][0]), f"is {truth}", f"said {predicted}", colour)
        predictions.append(Prediction(images.file_name(place), on_device, truth, predicted, picture))
    return predictions


def draw_grid(predictions: Sequence[Prediction]) -> list[Picture]:
    """One picture of all thumbnails; none of no predictions."""
    if not predictions:
        return []
    thumbnails = [prediction.thumbnail for prediction in predictions]
    rows = [side_by_side(thumbnails[i : i + COLUMNS]) for i in range(0, len(thumbnails), COLUMNS)]
    right = sum(prediction.is_right for prediction in predictions)
    return [Picture(stacked(rows), f"{len(thumbnails)} val images", f"{right} of {len(thumbnails)} right")]


def thumbnail(image: Image.Image, above: str, below: str, colour: Colour) -> Image.Image:
    """The image in a border, with a line of text above and one below in its colour, so that grey print tells too."""
    framed = ImageOps.expand(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), BORDER, fill=colour)
    foot = headed(Image.new("RGB", (framed.width, 0)), below, colour)
    return stacked([headed(framed, above), foot])
