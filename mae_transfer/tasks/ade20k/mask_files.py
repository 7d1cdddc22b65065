"""Mask files: which formats keep class numbers, and the numbers of one.

Pillow scales grey levels of fewer than 8 bits to 0 .. 255, inverts those whose 0 is white, and turns TIFFs as their tag
says. Masks are read as they are stored, as in mmsegmentation; where Pillow's pixels are others, they are put back or
the file is refused.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from mae_transfer.data.decode import PNG, open_image, read_bytes
from mae_transfer.data.images import DECODE_ERRORS, UPRIGHT, exif_orientation

MASK_MODES = ("1", "L", "P", "I;16", "I;16B", "I")
"""Pillow's modes of one channel whose values are labels: 1, 8, palette, 16 and 32 bit."""
LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000")
LOSSY_COMPRESSIONS = ("jpeg", "tiff_jpeg", "webp")
"""Of TIFF."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BACK = UPRIGHT | {6: UPRIGHT[8], 8: UPRIGHT[6]}
"""Orientation -> what undoes its turn: of all but the quarter turns the turn itself."""
RESCUE = "write masks as PNG of 8 or 16 bits"


def mask_fault(image: ImageFile.ImageFile) -> str | None:
    """Why the values of a file that is open and not decoded are no labels, and what to do; None if they are."""
    if image.format in LOSSY_FORMATS or image.info.get("compression") in LOSSY_COMPRESSIONS:
        return (
            f"a mask in {image.format}, whose compression changes class numbers at edges; {RESCUE}, from the annotation"
        )
    if image.mode not in MASK_MODES:
        return (
            f"a mask of mode {image.mode}, not of one channel; class numbers are needed (the full ADE20K's _seg.png "
            "files are none: get ADEChallengeData2016.zip)"
        )
    for tile in image.tile[:1]:
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        raw, highest = str(arguments[0]), arguments[-1] if tile.codec_name.startswith("ppm") else None
        if ";" in raw and raw.endswith(("I", "IR")):
            return f"a mask whose 0 is white, so that readers invert it; {RESCUE}"
        if image.format != "PNG" and raw.startswith(("L;2", "L;4")):
            return f"a mask of {raw[2]} bits, which readers scale to 0..255; {RESCUE}"
        if isinstance(highest, int) and highest not in (255, 65535):
            return f"a mask of grey levels up to {highest}, which readers scale to 0..255; {RESCUE}"
    orientation = None if image.format == "TIFF" else exif_orientation(image)
    if orientation is not None and orientation != 1:
        return (
            f"a mask with EXIF orientation {orientation}: some tools would turn it, and masks are read as stored; "
            "write it upright, without EXIF"
        )
    return None


def read_mask(path: Path) -> np.ndarray:
    """The numbers of a mask file (height, width); UndecodableImageError or ImageError if it cannot be read."""
    content = read_bytes(str(path))
    orientation = _turned_by_pillow(content)
    image = open_image(content, str(path), "mask")
    values: np.ndarray = np.asarray(image if orientation is None else image.transpose(BACK[orientation]))
    if content[: len(PNG)].tobytes() == PNG:
        bits, colours = content[24:26].tolist()
        if colours == 0 and bits in (2, 4):  # grey; Pillow's values are multiples of 85 and 17
            values = values // (255 // (2**bits - 1))
    return values


def _turned_by_pillow(content: np.ndarray) -> int | None:
    """The orientation of a TIFF, which Pillow turns and forgets as it decodes."""
    if content[:4].tobytes() not in TIFF:
        return None
    try:
        return exif_orientation(Image.open(io.BytesIO(content.tobytes())))
    except DECODE_ERRORS:  # `open_image` names it
        return None
