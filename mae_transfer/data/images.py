"""Image files as every task reads them, what becomes of those that cannot be read, and the choice of a subset.

Reading follows detectron2's `read_image`: Pillow decodes, EXIF orientation is applied, then RGB.
"""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_transfer.errors import UserError

EXIF_ORIENTATION = 274
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises for damaged files, by format.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class ImageError(UserError):
    """An image file is unusable. Stays one line when a DataLoader worker raises it.

    The loader raises a worker's exception again as the same type, with the worker's whole traceback as its message;
    the original message is the last line of that.
    """

    def __init__(self, message: str) -> None:
        last_line = message.rstrip().rsplit("\n", 1)[-1]
        super().__init__(last_line.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: "))


class UndecodableImageError(ImageError):
    """The file was read but holds no whole image; what `data.on_bad_image=skip` is about."""


def choose_subset(names: Sequence[Any] | np.ndarray, size: int | None) -> np.ndarray:
    """Indices of `size` images (all, when there are fewer), in the given order.

    Chosen by a hash of the name or id alone: always the same images whatever the run's seed, and a larger subset holds
    the smaller one.
    """
    if size is None or size >= len(names):
        return np.arange(len(names))
    digests = [hashlib.sha256(str(name).encode(errors="surrogateescape")).digest() for name in names]
    return np.sort(np.array(sorted(range(len(digests)), key=digests.__getitem__)[:size], dtype=np.int64))


def read_image(path: Path, height: int, width: int) -> Image.Image:
    """The file as an upright RGB image of the given size.

    Raises UndecodableImageError when it cannot be decoded, ImageError when it cannot be opened or has another size.
    """
    try:
        with Image.open(path) as file:
            file.load()
            image = _upright(file).convert("RGB")
    except DECODE_ERRORS as error:
        raise unusable(path, error) from None
    if image.size != (width, height):
        found, said = f"{image.width}x{image.height}", f"{width}x{height}"
        raise ImageError(
            f"{path}: the image is {found} pixels and the annotation file says {said}; correct width and height there"
        )
    return image


def unusable(path: Path | str, error: Exception, what: str = "image") -> ImageError:
    """The error of a file that raised one of DECODE_ERRORS: undecodable, or not to be read at all (never skipped)."""
    if isinstance(error, OSError) and error.errno is not None:
        return ImageError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions")
    reason = str(error).replace("\n", " ").replace(str(path), "file")
    remedy = "fetch it again, or go on without such images with data.on_bad_image=skip"
    return UndecodableImageError(f"{path}: truncated or corrupt {what} ({reason}); {remedy}")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF tag says; a tag block that cannot be read is passed over, as in detectron2."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except DECODE_ERRORS:
        return image
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image
