"""Pictures of what a masked autoencoder reconstructs (MAE Figure 2): which images, panels, captions, the PNG.

A network that predicts normalised pixels says nothing of a patch's mean and deviation. Given back those of the true
patch, which it never saw, even the picture of an untrained network looks like the image (facebookresearch/mae#146,
#174). Such a picture says so; an honest one takes nothing from the true masked patches.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from mae_transfer.data.decode import decode, read_bytes
from mae_transfer.data.drawing import font, headed, side_by_side, to_image
from mae_transfer.data.images import choose_subset
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write
from mae_transfer.pretrain.data import Batch, PretrainImages
from mae_transfer.pretrain.targets import NormPixelTarget, Target
from mae_transfer.pretrain.views import Views
from mae_transfer.run_folder.pictures import Picture

GREY = 0.5
"""Of masked patches."""
GAP = 4
"""White pixels between the pictures of a PNG."""
CAPTION_WIDTH = 560
"""Least width in pixels of a PNG with a caption."""
SIDE = 224
"""Least width in pixels of a panel of a run's picture."""
HEADINGS = ("image", "visible", "reconstruction", "with the visible")


def note(target: Target, *, honest: bool = False) -> str:
    """What to know of the pictures of a target; empty for one whose predictions are whole."""
    if not isinstance(target, NormPixelTarget):
        return ""
    if honest:
        return (
            "norm_pixel: masked patches have the mean of the visible patches' means and variances, since a prediction "
            "holds neither"
        )
    return (
        "norm_pixel: each patch has the mean and deviation of the TRUE patch, which no prediction holds; this flatters "
        "even an untrained network"
    )


def chosen_batches(dataset: PretrainImages, count: int) -> Iterator[Batch]:
    """A batch for each of `count` images, always the same ones. What cannot be decoded, and may be skipped, is left
    out."""
    for place in choose_subset([dataset.file_name(i) for i in range(len(dataset))], count).tolist():
        batch = dataset.collate([dataset[place]])
        if "images" in batch:
            yield batch


def run_picture(stages: Tensor, name: str, caption: str) -> Picture:
    """A picture of the run's folder from the stages (4, 3, H, W) in 0 .. 1 of one image."""
    images = [to_image(to_bytes(stage)) for stage in stages.float()]
    width = max(SIDE, images[0].width)
    size = width, round(width * images[0].height / images[0].width)
    panels = [headed(image.resize(size), text) for image, text in zip(images, HEADINGS, strict=True)]
    return Picture(side_by_side(panels), name, caption)


def batch_of_files(files: Sequence[str], views: Views, *, seed: int) -> dict[str, Tensor]:
    """The test views of image files, stacked: "images" uint8 (B, C, H, W) and what else the views give.

    Raises UserError for a file that is no image.
    """
    samples: list[dict[str, object]] = []
    for index, file in enumerate(files):
        image = decode(read_bytes(file), file, grey=views.data.channels == 1)
        samples.append(views.test(image, np.random.default_rng((seed, 0, index))))
    batch = {name: torch.stack([torch.as_tensor(sample[name]) for sample in samples]) for name in samples[0]}
    batch["images"] = batch.pop("image")
    return batch


def rows(stages: Tensor, caption: str) -> Image.Image:
    """A row for each image, of its four pictures (B, 4, 3, H, W) in 0 .. 1, with the caption below."""
    lines = [torch.cat([F.pad(stage, (0, GAP), value=1.0) for stage in row], dim=2) for row in stages]
    whole = torch.cat([F.pad(line, (0, 0, 0, GAP), value=1.0) for line in lines], dim=1)[:, :-GAP, :-GAP]
    picture = to_image(to_bytes(whole))
    return captioned(picture, caption) if caption else picture


def captioned(picture: Image.Image, caption: str) -> Image.Image:
    """The picture at the upper left of a white page, above the whole caption."""
    width, height = max(picture.width, CAPTION_WIDTH), 18
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if font().getlength(longer) <= width - 8:
            lines[-1] = longer
        else:
            lines.append(word)
    page = Image.new("RGB", (width, picture.height + GAP + height * len(lines)), "white")
    page.paste(picture, (0, 0))
    for number, line in enumerate(lines):
        ImageDraw.Draw(page).text((4, picture.height + GAP + height * number), line, "black", font())
    return page


def to_bytes(image: Tensor) -> Tensor:
    """0 .. 1 -> uint8."""
    return (image * 255).round().to(torch.uint8)


def write_png(picture: Image.Image, path: Path) -> None:
    """Whole or not at all; UserError where it cannot be written."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}; make it first")
    with atomic_write(path) as file:
        file.write(content.getvalue())
