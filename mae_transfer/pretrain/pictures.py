"""Pictures of a pre-training: what a masked autoencoder reconstructs (MAE Figure 2). Other methods have none."""

from typing import TYPE_CHECKING

from torch import nn

from mae_transfer.cli.visualize import reconstruct
from mae_transfer.data.drawing import drawing, headed, side_by_side, to_image
from mae_transfer.data.images import choose_subset
from mae_transfer.pretrain.config import MaeConfig
from mae_transfer.pretrain.methods.mae import MaskedAutoencoder
from mae_transfer.run_folder.pictures import Picture

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mae_transfer.pretrain.task import PretrainTask

SIDE = 224
"""Least width in pixels of a panel."""
HEADINGS = ("image", "visible", "reconstruction", "with the visible")


def draw_pictures(model: nn.Module, task: "PretrainTask", count: int, fabric: "Fabric") -> list[Picture]:
    """Of `count` val images, or training images where there are none of val, with the masks of the evaluation."""
    config = task.config
    if not isinstance(model, MaskedAutoencoder) or not isinstance(config, MaeConfig):
        return []
    if config.model.target == "token" or config.data.channels not in (1, 3):
        return []  # what is predicted, or the image, is no picture
    dataset, split = (task.val_dataset, "val") if task.val_dataset is not None else (task.train_dataset, "training")
    pictures = []
    note = "; each patch with the mean and deviation of the true one" if config.model.target == "norm_pixel" else ""
    for place in choose_subset([dataset.file_name(i) for i in range(len(dataset))], count).tolist():
        batch = dataset.collate([dataset[place]])
        if "images" not in batch:  # could not be decoded, and may be skipped
            continue
        on_device = fabric.to_device(batch)
        with drawing(model), fabric.autocast():
            stages = reconstruct(model, on_device["images"], on_device["noise"], config.mask.ratio)[0]
        images = [to_image((stage * 255).round().byte()) for stage in stages.float()]
        width = max(SIDE, images[0].width)
        size = width, round(width * images[0].height / images[0].width)
        panels = [headed(image.resize(size), text) for image, text in zip(images, HEADINGS, strict=True)]
        caption = f"{split} image, {100 * config.mask.ratio:g} % of the patches masked{note}"
        pictures.append(Picture(side_by_side(panels), dataset.file_name(place), caption))
    return pictures
