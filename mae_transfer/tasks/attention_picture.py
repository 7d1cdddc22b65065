"""A picture of the mean attention distance of an encoder, a point for each head over the blocks."""

import io
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from PIL import Image
from torch import Tensor

from mae_transfer.backbones.attention_distance import attention_distance
from mae_transfer.data.images import choose_subset
from mae_transfer.engine.evaluation import drawing
from mae_transfer.errors import UserError
from mae_transfer.run_folder.pictures import Picture

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder

_LOG = logging.getLogger(__name__)


class ValImages(Protocol):
    """A data set: a sample has `image` uint8 (3, H, W), or a list of them, `views`; None for one that cannot be
    decoded."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, object]: ...

    def file_name(self, index: int, /) -> str: ...


def attention_pictures(encoder: "Encoder", dataset: ValImages, count: int) -> list[Picture]:
    """The picture of `count` images, those of the other pictures, each cut to whole patches; none, and a line in the
    log, for an encoder that does not attend over the whole image."""
    device, patch, found = encoder.pixel_mean.device, encoder.patch_size, list[Tensor]()
    try:
        with drawing(encoder), torch.autocast(device.type, enabled=False):
            for place in choose_subset([dataset.file_name(i) for i in range(len(dataset))], count).tolist():
                sample = dataset[place]
                image = sample["image"] if "image" in sample else sample["views"]
                image = image[0] if isinstance(image, list) else image
                if not isinstance(image, Tensor):
                    continue
                height, width = (side // patch * patch for side in image.shape[1:])
                whole = image[:, :height, :width].to(device)[None]
                found.append(attention_distance(encoder, encoder.normalise(whole)))
    except UserError as error:
        _LOG.info("no picture of the %s", error)
        return []
    if not found:
        return []
    distances = torch.stack(found).mean(0)
    of_blocks = [f"{i}: {mean:.0f}" for i, mean in enumerate(distances.mean(1).tolist())]
    caption = f"{len(found)} val images; mean over the heads in pixels, block by block: {', '.join(of_blocks)}"
    return [Picture(_drawn(distances), "attention distance", caption)]


def _drawn(distances: Tensor) -> Image.Image:
    """(blocks, heads) -> points of the heads and a line of their means."""
    from mae_transfer.results.plots.figure import Plot, Series, png  # here: it imports pandas and matplotlib

    blocks, heads = distances.shape
    places = tuple(range(blocks))
    points = [(i, value) for i, row in enumerate(distances.tolist()) for value in sorted(row)]
    x, y = zip(*points, strict=True)
    series = (
        Series(f"each of {heads} heads", x, y, line=False),
        Series("mean of the heads", places, tuple(distances.mean(1).tolist())),
    )
    plot = Plot(
        "attention-distance",
        "Mean attention distance by block and head",
        "block, numbered from 0",
        "pixels",
        series,
        ("block", "pixels"),
        places,
    )
    return Image.open(io.BytesIO(png(plot)))
