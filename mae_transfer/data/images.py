"""What the readers of image files share: errors, the choice of a subset, and 8-bit RGB of any Pillow mode."""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

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
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""TIFF tags. Sample format 1 is whole numbers without sign, 2 with sign; photometric 0 is a grey whose 0 is white."""
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


def choose_subset(names: Sequence[object] | np.ndarray, size: int | None) -> np.ndarray:
    """Indices of `size` images (all, when there are fewer), in the given order.

    Chosen by a hash of the name or id alone: always the same images whatever the run's seed, and a larger subset holds
    the smaller one.
    """
    if size is None or size >= len(names):
        return np.arange(len(names))
    digests = [hashlib.sha256(str(name).encode(errors="surrogateescape")).digest() for name in names]
    return np.sort(np.array(sorted(range(len(digests)), key=digests.__getitem__)[:size], dtype=np.int64))


def unusable(path: Path | str, error: Exception, what: str = "image") -> ImageError:
    """The error of a file that raised one of DECODE_ERRORS: undecodable, or not to be read at all (never skipped)."""
    if isinstance(error, OSError) and error.errno is not None:
        return ImageError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions")
    if isinstance(error, Image.DecompressionBombError):
        assert Image.MAX_IMAGE_PIXELS is not None, "what it was raised for"
        return UndecodableImageError(
            f"{path}: the {what} is too large, of more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller, or "
            "go on without such images with data.on_bad_image=skip"
        )
    reason = " ".join(str(error).replace(str(path), "file").split())
    if isinstance(error, UnidentifiedImageError):
        reason = "of no known format"
    remedy = "fetch it again, or go on without such images with data.on_bad_image=skip"
    return UndecodableImageError(f"{path}: truncated or corrupt {what} ({reason}); {remedy}")


def to_eight_bits(image: Image.Image, name: str, mode: str = "RGB") -> Image.Image:
    """A decoded image in `mode`, "RGB" or "L"; deeper samples are scaled by the range of their type.

    16 bits (or as many as a TIFF says) keep their 8 highest, as in libpng and OpenCV; floats are 0 .. 1. A TIFF's
    grey whose 0 is white is turned over: by Pillow up to 8 bits, else here.

    Raises:
        ImageError: 32-bit or signed integers, which have no known white, or floats outside 0 .. 1.
    """
    tags = getattr(image, "tag_v2", {})
    sample_format = tags.get(_SAMPLE_FORMAT, (1,))[0]
    if image.mode == "F":
        values = np.asarray(image)
        if not ((values >= 0) & (values <= 1)).all():  # also refuses NaN
            raise ImageError(
                f"{name}: a float image with values outside 0..1 ({np.nanmin(values):g} to {np.nanmax(values):g}); "
                "scale it to 0..1, or save it with 8 or 16 bits"
            )
        image = Image.fromarray(np.round(values * 255).astype(np.uint8))
    elif image.mode.startswith("I") or sample_format == 2:
        bits = tags.get(_BITS_PER_SAMPLE, (16 if image.mode != "I" or image.format in ("PNG", "PPM") else 32,))[0]
        if not 8 < bits <= 16 or sample_format != 1:
            raise ImageError(
                f"{name}: an image of {bits}-bit integers that may be signed, whose white is not known; save it with 8 "
                "or 16 bits without sign"
            )
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> (bits - 8)).clip(0, 255).astype(np.uint8))
    else:
        return image.convert(mode)
    if tags.get(_PHOTOMETRIC) == 0:
        image = ImageOps.invert(image)
    return image.convert(mode)


def upright(image: Image.Image, orientation: int | None) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    return image if orientation is None else image.transpose(UPRIGHT[orientation])


def exif_orientation(image: Image.Image) -> int | None:
    """How an image has to be turned; None for not at all, or for tags that cannot be read (as in detectron2)."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except DECODE_ERRORS:
        return None
    return orientation if orientation in UPRIGHT else None
