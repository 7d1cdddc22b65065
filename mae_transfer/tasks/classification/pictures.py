"""Pictures of a classifier: val images with their true and predicted class; of knn also their nearest neighbours."""

from typing import TYPE_CHECKING, Any, cast

from PIL import Image, ImageOps
from torch import nn

from mae_transfer.data.drawing import RIGHT, WRONG, Colour, drawing, headed, side_by_side, stacked, to_image
from mae_transfer.data.images import choose_subset
from mae_transfer.run_folder.pictures import Picture
from mae_transfer.tasks.classification.features.store import FeatureSet
from mae_transfer.tasks.classification.protocols.knn import NearestNeighbours
from mae_transfer.tasks.classification.transforms import EvalTransform

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.tasks.classification.task import ClassificationTask

SIDE = 148
"""Pixels of a thumbnail, without its border."""
BORDER = 3
COLUMNS = 4
NEIGHBOURS = 5


def draw_pictures(
    model: nn.Module, task: "ClassificationTask", head: int, count: int, fabric: "Fabric"
) -> list[Picture]:
    """Of `count` val images: a picture each with neighbours, else one of all; `head` is the one that counts.

    What cannot be decoded, and may be skipped, is left out.
    """
    dataset, names = task.val_images, task.class_names
    places = choose_subset([dataset.file_name(place) for place in range(len(dataset))], count).tolist()
    thumbnails, pictures, right = [], [], 0
    for place in places:
        batch = dataset.collate([dataset[place]])
        if not len(batch["labels"]):
            continue
        truth = names[dataset.label(place)]
        on_device = fabric.to_device(batch)
        with drawing(model), fabric.autocast():
            predicted = names[int(model(on_device)[head, 0].argmax())]
            near = model.nearest(on_device, NEIGHBOURS) if isinstance(model, NearestNeighbours) else None
        hit = predicted == truth
        right += hit
        query = thumbnail(to_image(batch["images"][0]), f"is {truth}", f"said {predicted}", RIGHT if hit else WRONG)
        thumbnails.append(query)
        if near is not None:
            similar, rows = (values[0].tolist() for values in near)
            row = [query, *(_neighbour(task, i, s, truth) for i, s in zip(rows, similar, strict=True))]
            caption = f"is {truth}, said {predicted}; then its nearest training images, by cosine similarity"
            pictures.append(Picture(side_by_side(row), dataset.file_name(place), caption))
    if pictures or not thumbnails:
        return pictures
    grid = [side_by_side(thumbnails[i : i + COLUMNS]) for i in range(0, len(thumbnails), COLUMNS)]
    return [Picture(stacked(grid), f"{len(thumbnails)} val images", f"{right} of {len(thumbnails)} right")]


def _neighbour(task: "ClassificationTask", row: int, similarity: float, truth: str) -> Image.Image:
    """The training image at a row of the bank: first those that are trained on, then those that were set aside."""
    train: Any = task.train_dataset  # knn has put a FeatureSet in its place, and in that of the images set aside
    first = len(train.decoded)
    split: FeatureSet = train if row < first else cast(FeatureSet, task.holdout_dataset)
    place = int(split.decoded[row if row < first else row - first])
    name = task.class_names[split.images.label(place)]
    image = EvalTransform(task.config)(split.images.read(place))
    return thumbnail(to_image(image), name, f"{similarity:.3f}", RIGHT if name == truth else WRONG)


def thumbnail(image: Image.Image, above: str, below: str, colour: Colour) -> Image.Image:
    """The image in a border, with a line of text above and one below in its colour, so that grey print tells too."""
    framed = ImageOps.expand(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), BORDER, fill=colour)
    foot = headed(Image.new("RGB", (framed.width, 0)), below, colour)
    return stacked([headed(framed, above), foot])
