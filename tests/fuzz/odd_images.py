"""Whole image files of odd kinds, written by their formats' specifications or by Pillow, through both readers.

Depths of 1 to 64 bits, signs, floats, palettes, alpha, CMYK, inverted grey, several frames, EXIF orientation, and names
and lengths that lie. The expected pixels are computed here. Deep samples keep their 8 highest bits, and alpha is left
out, as in libpng, OpenCV and Pillow's `convert`.
"""

import io
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from campaign import Trial, Wrong
from PIL import Image

from mae_transfer.data.decode import read_header, read_image, read_rgb

HEIGHT, WIDTH = 30, 40
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
SHARE = ((COLUMNS * 31 + ROWS * 17) % 256) / 255
"""A grey picture, 0..1."""
COLOURS = np.stack([SHARE, SHARE[::-1], SHARE[:, ::-1]], -1)
TURNS: dict[int, Any] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}
"""EXIF orientation -> the upright picture, by the EXIF specification."""


class Odd(NamedTuple):
    what: str
    content: bytes
    pixels: np.ndarray | None
    """uint8 (h, w, 3) as stored; None for a file whose white is not known, which has to be refused."""
    orientation: int = 1
    turned: bool = False
    """Whether Pillow turns it on opening, as it does TIFFs."""
    slack: int = 0


def rgb(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.repeat(values[..., None], 3, -1) if values.ndim == 2 else values[..., :3])


def packed(values: np.ndarray, bits: int) -> list[bytes]:
    """Rows of samples (h, w, channels) of 1 to 8 bits, each row filled up to bytes."""
    flat = values.reshape(HEIGHT, -1).astype(np.uint8)
    bit = (flat[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row).tobytes() for row in bit.reshape(HEIGHT, -1)]


def samples(rng: Random, bits: int, channels: int) -> np.ndarray:
    """Whole numbers of 0 .. 2**bits - 1, (h, w, channels)."""
    picture = COLOURS if channels >= 3 else SHARE[..., None]
    if channels in (2, 4):
        picture = np.concatenate([picture, np.full((HEIGHT, WIDTH, 1), rng.choice((0.0, 0.5, 1.0)))], -1)
    return np.round(picture * (2**bits - 1)).astype(np.int64)


def eight(values: np.ndarray, bits: int) -> np.ndarray:
    found = values >> (bits - 8) if bits > 8 else np.round(values * (255 / (2**bits - 1)))
    return rgb((found[..., :1].repeat(3, -1) if found.shape[-1] < 3 else found).astype(np.uint8))


def png(rng: Random) -> Odd:
    kind, channels, depths = rng.choice(
        ((0, 1, (1, 2, 4, 8, 16)), (2, 3, (8, 16)), (3, 1, (1, 2, 4, 8)), (4, 2, (8, 16)), (6, 4, (8, 16)))
    )
    bits = rng.choice(depths)
    values, extra, clear = samples(rng, bits, channels), b"", rng.random() < 0.3

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    expected = eight(values, bits)
    if kind == 3:
        palette = np.array([[i * 37 % 256, i * 11 % 256, 255 - i % 256] for i in range(2**bits)], np.uint8)
        expected = palette[values[..., 0]]
        extra = chunk(b"PLTE", palette.tobytes()) + (chunk(b"tRNS", b"\0\x80") if clear else b"")
    elif kind in (0, 2) and clear:
        extra = chunk(b"tRNS", struct.pack(">H", int(values[0, 0, 0])) * channels)
    rows = [row.astype(">u2").tobytes() for row in values] if bits == 16 else packed(values, bits)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return Odd(f"PNG of colour type {kind}, {bits} bits{', tRNS' * clear}", content, expected)


def tiff(rng: Random) -> Odd:
    """By TIFF 6.0, without compression, in one strip."""
    end, channels, white_is_zero = rng.choice("<>"), rng.choice((1, 1, 1, 1, 2, 3, 3, 4)), rng.random() < 0.4
    form, bits = rng.choice(
        ((1, 1), (1, 4), (1, 8), (1, 16), (1, 16), (1, 32), (2, 8), (2, 16), (2, 32), (3, 16), (3, 32), (3, 64))
    )
    if channels > 1 and bits < 8:
        bits = 8
    white_is_zero &= channels < 3
    picture = samples(rng, 16, channels) / 65535
    if form == 3:
        values = picture.astype(f"{end}f{bits // 8}")
        shown: np.ndarray | None = rgb(
            np.round(picture * 255).astype(np.uint8)[..., [0, 1, 2] if channels > 2 else [0] * 3]
        )
    else:
        values = samples(rng, bits, channels)
        if form == 2:
            values >>= 1  # no sample below 0
        shown = eight(values, bits) if form == 1 and bits <= 16 else None
    if shown is not None and white_is_zero:
        shown = 255 - shown
    orientation = rng.choice((1, 1, 3, 6, 8))
    kind = f"{end}{'uif'[form - 1]}{bits // 8}"
    data = b"".join(packed(values, bits)) if bits < 8 else values.astype(kind).tobytes()
    entries = [
        (256, 3, [WIDTH]), (257, 3, [HEIGHT]), (258, 3, [bits] * channels), (259, 3, [1]),
        (262, 3, [2 if channels > 2 else int(not white_is_zero)]), (273, 4, [8]), (274, 3, [orientation]),
        (277, 3, [channels]), (278, 3, [HEIGHT]), (279, 4, [len(data)]),
    ]  # fmt: skip
    entries += [(338, 3, [2])] if channels in (2, 4) else []
    entries += [(339, 3, [form] * channels)] if form > 1 or rng.random() < 0.5 else []
    body, place = b"", 8 + len(data) + len(data) % 2
    table, after = struct.pack(f"{end}H", len(entries)), place + 2 + 12 * len(entries) + 4
    for tag, size, numbers in entries:
        raw = struct.pack(f"{end}{len(numbers)}{'H' if size == 3 else 'I'}", *numbers)
        table += struct.pack(f"{end}HHI", tag, size, len(numbers))
        table += raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(f"{end}I", after + len(body))
        body += raw if len(raw) > 4 else b""
    start = (b"II*\0" if end == "<" else b"MM\0*") + struct.pack(f"{end}I", place)
    what = f"TIFF {end}, {channels} x {bits} bits of form {form}{', 0 is white' * white_is_zero}, turned {orientation}"
    content = start + data.ljust(place - 8, b"\0") + table + b"\0" * 4 + body
    return Odd(what, content, shown, orientation, True, int(form == 3))


def saved(rng: Random) -> Odd:
    """Files that Pillow writes, in modes and formats of all kinds; the expected pixels are the mode's own."""
    picture = Image.fromarray(eight(samples(rng, 8, 3), 8))
    kind, mode, options = rng.choice((
        ("JPEG", "CMYK", {}), ("JPEG", "L", {}), ("JPEG", "RGB", {"progressive": True}), ("PNG", "P", {}),
        ("JPEG", "RGB", {"subsampling": 2}), ("TGA", "RGBA", {}), ("TGA", "LA", {}), ("PNG", "LA", {}),
        ("GIF", "P", {"animated": True}), ("GIF", "P", {"transparency": 3}), ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", {"animated": True, "lossless": True}), ("PNG", "RGB", {"animated": True}), ("PNG", "RGBA", {}),
        ("TIFF", "RGB", {"animated": True}), ("TIFF", "CMYK", {}), ("TIFF", "LAB", {}), ("TIFF", "YCbCr", {}),
        ("TIFF", "P", {"compression": "tiff_lzw"}), ("TIFF", "1", {"compression": "group4"}), ("BMP", "1", {}),
        ("BMP", "P", {}), ("BMP", "RGB", {}), ("PPM", "1", {}), ("PPM", "L", {}),
        ("PCX", "RGB", {}), ("SGI", "RGB", {}), ("JPEG2000", "RGB", {}), ("JPEG2000", "LA", {}), ("MPO", "RGB", {}),
        ("ICO", "RGBA", {"sizes": [(16, 16), (WIDTH, HEIGHT)]}), ("DDS", "RGBA", {}),
    ))  # fmt: skip
    image, buffer, more = picture.convert(mode), io.BytesIO(), dict(options)
    if more.pop("animated", False):
        more |= {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT), "red").convert(mode)]}
    orientation = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 0, 9)) if kind in ("JPEG", "PNG", "WEBP") else 1
    if kind in ("JPEG", "PNG", "WEBP"):
        more["exif"] = Image.Exif()
        more["exif"][274] = orientation
    image.save(buffer, kind, **more)
    expected = np.asarray(image.convert("RGB"))
    if kind in ("JPEG", "JPEG2000", "MPO", "DDS"):  # decoded by Pillow: what is lost in saving is not the reader's
        expected = np.asarray(Image.open(buffer).convert("RGB"))
    return Odd(f"{kind} of {mode}, {options}, turned {orientation}", buffer.getvalue(), expected, orientation)


def netpbm(rng: Random) -> Odd:
    """PGM and PPM of any highest value, in numbers or bytes, and PFM of floats."""
    if rng.random() < 0.2:
        values = SHARE[::-1].astype("<f4")
        return Odd(
            "PFM",
            f"Pf {WIDTH} {HEIGHT} -1.0\n".encode() + values.tobytes(),
            rgb(np.round(SHARE * 255).astype("u1")),
            slack=1,
        )
    highest, colour, text = (
        rng.choice((1, 15, 100, 255, 256, 1023, 4095, 65535)),
        rng.random() < 0.5,
        rng.random() < 0.3,
    )
    picture = COLOURS if colour else SHARE[..., None]
    values = np.round(picture * highest).astype(int)
    head = f"P{(3 if text else 6) - (not colour)} {WIDTH} {HEIGHT} {highest}\n".encode()
    body = (
        " ".join(map(str, values.ravel())).encode()
        if text
        else values.astype("u1" if highest < 256 else ">u2").tobytes()
    )
    shown = np.round(values / highest * 255).astype(np.uint8)
    what = f"Netpbm {head[:2].decode()}, 0..{highest}"
    return Odd(what, head + body, rgb(shown if colour else shown.repeat(3, -1)), slack=1)


class Family:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def trial(self, rng: Random) -> Trial:
        odd = rng.choice((png, tiff, tiff, saved, saved, saved, netpbm))(rng)
        content, what = odd.content, odd.what
        damage = rng.choice(("", "", "", "cut", "more"))
        if damage == "cut":
            content = content[: rng.randrange(len(content) // 3, len(content))]
        elif damage == "more":
            content += rng.choice((b"\0", b"\n", b"x" * 100, content))
        path = self.folder / rng.choice(("a.jpg", "a.png", "a.tif", "a.gif", "a", "a b\n.JPEG", "ü.webp"))
        path.write_bytes(content)
        upright = rng.random() < 0.5
        shown = odd.pixels
        if shown is not None and (upright or odd.turned):
            shown = TURNS.get(odd.orientation, TURNS[1])(shown)

        def read() -> np.ndarray:
            if not upright:
                return read_rgb(str(path)).permute(1, 2, 0).numpy()
            width, height = read_header(path).size
            return np.asarray(read_image(path, height, width))

        def judge(pixels: np.ndarray) -> str | None:
            path.unlink()
            if shown is None:
                raise Wrong("pixels of samples whose white is not known")
            if pixels.shape == shown.shape and np.abs(pixels.astype(int) - shown).max() <= odd.slack:
                return None
            far = np.abs(pixels.astype(int) - shown).max() if pixels.shape == shown.shape else pixels.shape
            raise Wrong(f"other pixels, by {far}")

        return Trial(f"{what}{damage and ', ' + damage}, {'read_image' if upright else 'read_rgb'}", read, judge)
