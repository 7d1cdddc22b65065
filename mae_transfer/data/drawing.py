"""What the pictures of all tasks share: which images, panels with headings, class colours, text.

Always the same val images, chosen by a hash of their names. Drawing takes nothing from the global generators and comes
after the metrics, so a run's numbers are the same with pictures and without.
"""

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 448
"""Longer side in pixels of a panel."""
GAP = 6
BACKGROUND, INK = (32, 38, 45), (255, 255, 255)
RIGHT, WRONG = (64, 200, 120), (240, 100, 90)
Colour = tuple[int, int, int]


@cache
def font(size: int = 13) -> Any:
    """Matplotlib's DejaVu Sans, which has the letters of most alphabets; Pillow's own has English ones only."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def class_colour(k: int) -> Colour:
    """Bright, and of any few classes well apart: hue, lightness and saturation go on by the additive recurrence of the
    plastic number, which fills a cube evenly."""
    hue, light, full = ((0.6 + k * step) % 1.0 for step in (0.8191725, 0.6710436, 0.5497005))
    r, g, b = colorsys.hls_to_rgb(hue, 0.36 + 0.36 * light, 0.6 + 0.4 * full)
    return round(255 * r), round(255 * g), round(255 * b)


def to_image(tensor: Tensor) -> Image.Image:
    """uint8 (3, H, W) -> Pillow."""
    return Image.fromarray(np.ascontiguousarray(tensor.cpu().numpy().transpose(1, 2, 0)))


def scaled_size(width: int, height: int, side: int = SIDE) -> tuple[int, int]:
    """Width and height with the longer one `side`."""
    scale = side / max(width, height)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def cut(text: str, width: float, size: int = 13) -> str:
    """The text on one line, or what of it fits into `width` pixels with an ellipsis."""
    text = one_line(text)
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def one_line(text: str) -> str:
    """The text with a space for each character that has no glyph, such as the end of a line: Pillow refuses some."""
    return "".join(character if character.isprintable() else " " for character in text)


def headed(image: Image.Image, heading: str, colour: Colour = INK) -> Image.Image:
    """The image under a bar with a heading."""
    bar = 22
    whole = Image.new("RGB", (image.width, image.height + bar), BACKGROUND)
    whole.paste(image, (0, bar))
    ImageDraw.Draw(whole).text((4, 3), cut(heading, image.width - 8), colour, font())
    return whole


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    """In one row, from the top."""
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    whole = Image.new("RGB", (width, max(panel.height for panel in panels)), BACKGROUND)
    left = 0
    for panel in panels:
        whole.paste(panel, (left, 0))
        left += panel.width + GAP
    return whole


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """One under the other, from the left."""
    height = sum(row.height for row in rows) + GAP * (len(rows) - 1)
    whole = Image.new("RGB", (max(row.width for row in rows), height), BACKGROUND)
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height + GAP
    return whole


def blend(image: Image.Image, mask: np.ndarray, colour: Colour, share: float) -> Image.Image:
    """The image with `share` of a colour where the mask, bool (H, W) of the image's size, is true."""
    layer = Image.fromarray((mask * round(255 * share)).astype(np.uint8))
    return Image.composite(Image.new("RGB", image.size, colour), image, layer)
