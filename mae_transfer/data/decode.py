"""Image files as every task and pre-training read them.

JPEG is decoded by torchvision.io, which is faster than Pillow and gives the same pixels. Pillow decodes everything
else: torchvision's PNG reader dies of a damaged file. Of several frames the first is read. Samples of more than 8 bits
are scaled by their range (`images.to_eight_bits`).

EXIF orientation is applied where boxes or masks are annotated (`read_image`, as in detectron2 and mmsegmentation) and
left alone in classification and pre-training (`read_rgb`, as in torchvision's ImageFolder, so in MAE's code).
"""

import io
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as F

from mae_transfer.data.images import DECODE_ERRORS, ImageError, exif_orientation, to_eight_bits, unusable, upright

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG that begin the size of its picture."""


class Header(NamedTuple):
    """What a file's header says; sizes are (width, height)."""

    size: tuple[int, int]
    """Of the upright image."""
    stored_size: tuple[int, int]
    mode: str
    """Pillow's."""


def read_header(path: Path) -> Header:
    """Raises UndecodableImageError for what is no image, ImageError for what cannot be opened."""
    with open_file(str(path)) as file:
        try:
            return header_of(Image.open(file))
        except DECODE_ERRORS as error:
            raise unusable(path, error) from None


def header_of(file: Image.Image) -> Header:
    """Of a file that is open and not decoded. Pillow turns TIFFs itself, and says their upright size."""
    other = file.size[::-1] if (exif_orientation(file) or 1) >= 5 else file.size
    size, stored = (file.size, other) if file.format == "TIFF" else (other, file.size)
    return Header(size, stored, file.mode)


def read_rgb(path: str) -> Tensor:
    """The file as uint8 (3, H, W) RGB, without EXIF orientation.

    Raises UndecodableImageError when it cannot be decoded, ImageError when it cannot be opened.
    """
    return decode(read_bytes(path), path)


def read_image(path: Path, height: int, width: int) -> Image.Image:
    """The file as an upright RGB image of the given size.

    Raises UndecodableImageError when it cannot be decoded, ImageError when it cannot be opened or has another size.
    """
    file = open_image(read_bytes(str(path)), str(path))
    image = upright(to_eight_bits(file, str(path)), exif_orientation(file))
    if image.size != (width, height):
        found, said = f"{image.width}x{image.height}", f"{width}x{height}"
        raise ImageError(
            f"{path}: the image is {found} pixels and the annotation file says {said}; correct width and height there"
        )
    return image


def read_bytes(path: str) -> np.ndarray:
    """The file's content, uint8 (n,); raises ImageError when it cannot be opened or is no regular file."""
    with open_file(path) as file:
        try:
            return np.fromfile(file, dtype=np.uint8)
        except OSError as error:
            raise unusable(path, error) from None


def open_file(path: str) -> BinaryIO:
    """A regular file; ImageError for what cannot be opened, or would be waited for, as a named pipe."""
    try:
        file: BinaryIO = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 the caller closes it
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ImageError(f"{path}: cannot be read (no regular file); take it out of the folder")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def decode(content: np.ndarray, name: str, *, grey: bool = False) -> Tensor:
    """The content of an image file as uint8 (3, H, W) RGB, or (1, H, W); UndecodableImageError naming it."""
    if content[:3].tobytes() == JPEG:
        image = _decode_jpeg(content, grey)
        if image is not None:
            return image
    return F.pil_to_tensor(to_eight_bits(open_image(content, name), name, "L" if grey else "RGB"))


def _decode_jpeg(content: np.ndarray, grey: bool) -> Tensor | None:
    """None for what only Pillow reads, or names the fault of: CMYK, damaged files, sizes beyond its limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and _jpeg_pixels(content.data) > 2 * limit:
        return None
    try:
        image = decode_jpeg(torch.from_numpy(content), ImageReadMode.GRAY if grey else ImageReadMode.UNCHANGED)
    except (RuntimeError, ValueError):
        return None
    if grey or len(image) == 3:
        return image
    return image.expand(3, -1, -1).contiguous() if len(image) == 1 else None


def _jpeg_pixels(data: memoryview) -> int:
    """Pixels of a JPEG by its header, 0 if it has none. The decoder would take memory for them, whatever follows."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        length, _, height, width = struct.unpack(">HBHH", data[place + 2 : place + 9])
        if marker in _FRAMES:
            return int(height * width)
        place += 1 if marker == 0xFF else 2 + length  # any number of 0xFF may stand before a marker
    return 0


def open_image(content: np.ndarray, name: str, what: str = "image") -> Image.Image:
    """The first frame of an image file, decoded, in the file's own mode; UndecodableImageError naming it."""
    try:
        if content[:8].tobytes() == PNG:
            _check_png(content)
        image = Image.open(io.BytesIO(content.tobytes()))
        image.load()
        return image
    except DECODE_ERRORS as error:
        raise unusable(name, error, what) from None


def _check_png(content: np.ndarray) -> None:
    """Raises ValueError unless the checksums of the chunks that hold the picture fit; Pillow passes over them.

    What follows the last chunk, IEND, is no part of the picture.
    """
    data, place, kind = content.data, len(PNG), b""
    while kind != b"IEND" and place + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        end = place + 8 + length
        if kind[0] & 0x20 == 0 and data[end : end + 4] != zlib.crc32(data[place + 4 : end]).to_bytes(4, "big"):
            raise ValueError(f"wrong checksum of {kind.decode('latin-1')!r}")
        place = end + 4
