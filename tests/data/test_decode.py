"""One reader of image files: deep samples, several frames, damaged files and things that are no files."""

import io
import os
import signal
import struct
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer.data.decode import read_header, read_image, read_rgb
from mae_transfer.data.images import ImageError, UndecodableImageError
from mae_transfer.errors import UserError

HEIGHT, WIDTH = 48, 64
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
DEEP = ((COLUMNS * 900 + ROWS * 100) % 65536).astype(np.uint16)
COLOURS = np.stack([COLUMNS * 4, ROWS * 5, (COLUMNS + ROWS) * 2], -1).astype(np.uint8)


def both(path: Path) -> np.ndarray:
    """(H, W, 3) as both readers give it, that of COCO and ADE20K and that of classification and pre-training."""
    upright = np.asarray(read_image(path, HEIGHT, WIDTH))
    np.testing.assert_array_equal(read_rgb(str(path)).permute(1, 2, 0).numpy(), upright)
    return upright


def colour_png(values: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which Pillow does not write, by the PNG specification."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm", "grey_big_endian.tif", "colour.png", "float.tif"])
def test_deep_images_are_scaled_by_the_range_of_their_type(tmp_path, name):
    """The 8 highest of 16 bits, as libpng and OpenCV take; a float is a share of white."""
    path, expected = tmp_path / name, np.repeat((DEEP >> 8)[..., None], 3, axis=2)
    if name == "colour.png":
        deep = np.stack([DEEP, DEEP.T.reshape(HEIGHT, WIDTH), DEEP[::-1]], -1)
        path.write_bytes(colour_png(deep))
        expected = deep >> 8
    elif name == "float.tif":
        Image.fromarray((DEEP / 65535).astype(np.float32)).save(path)
        expected = np.repeat(np.round(DEEP / 65535 * 255)[..., None], 3, axis=2)
    elif name == "grey.pgm":
        path.write_bytes(f"P5 {WIDTH} {HEIGHT} 65535\n".encode() + DEEP.astype(">u2").tobytes())
    elif "big" in name:
        Image.frombytes("I;16B", (WIDTH, HEIGHT), DEEP.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(DEEP).save(path)
    np.testing.assert_array_equal(both(path), expected)


@pytest.mark.parametrize("kind", ["u1", "<u2", "<f4", ">f4"])
def test_a_tiff_whose_0_is_white_is_turned_over(tmp_path, kind):
    """As TIFF 6.0 says of PhotometricInterpretation 0, whatever the depth."""
    values = (DEEP >> 8).astype("u1") if kind == "u1" else (DEEP / 65535 if "f" in kind else DEEP).astype(kind)
    expected = np.round(DEEP / 65535 * 255) if "f" in kind else DEEP >> 8
    (tmp_path / "a.tif").write_bytes(grey_tiff(values, 3 if "f" in kind else 1, photometric=0))
    np.testing.assert_array_equal(both(tmp_path / "a.tif"), 255 - np.repeat(expected[..., None], 3, axis=2))


def grey_tiff(values: np.ndarray, sample_format: int, photometric: int = 1) -> bytes:
    """One strip of grey without compression, by TIFF 6.0, in the byte order of the values."""
    end, data = ">" if values.dtype.byteorder == ">" else "<", values.tobytes()
    entries = {256: WIDTH, 257: HEIGHT, 258: values.itemsize * 8, 259: 1, 262: photometric, 273: 8, 277: 1, 278: HEIGHT}
    entries |= {279: len(data), 339: sample_format}
    table = struct.pack(f"{end}H", len(entries))
    for tag, value in entries.items():
        table += struct.pack(f"{end}HHI", tag, 4, 1) + struct.pack(f"{end}I", value)
    return (b"II*\0" if end == "<" else b"MM\0*") + struct.pack(f"{end}I", 8 + len(data)) + data + table + b"\0" * 4


def test_bytes_behind_a_png_are_no_part_of_it(tmp_path):
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, "PNG")
    for more in (b"\0" * 50, b"trailing text, longer than a chunk", file.getvalue()):
        (tmp_path / "a.png").write_bytes(file.getvalue() + more)
        np.testing.assert_array_equal(both(tmp_path / "a.png"), COLOURS)


def test_what_has_no_known_white_is_refused_in_one_line(tmp_path):
    (tmp_path / "signed.tif").write_bytes(grey_tiff((DEEP >> 9).astype("i1"), 2))
    with pytest.raises(ImageError, match=r"signed\.tif: an image of 8-bit integers that may be signed"):
        both(tmp_path / "signed.tif")
    (tmp_path / "no image").write_bytes(b"text")
    with pytest.raises(UndecodableImageError, match=r"no image: truncated or corrupt image \(of no known format\);"):
        both(tmp_path / "no image")
    images = {
        "int32.tif": DEEP.astype(np.int32),
        "0 to 255.tif": (DEEP / 257).astype(np.float32),
        "negative.tif": (DEEP / 65535 - 0.5).astype(np.float32),
        "nan.tif": np.where(DEEP < 900, np.nan, 0.5).astype(np.float32),
    }
    for name, values in images.items():
        Image.fromarray(values).save(tmp_path / name)
        for read in (lambda path: read_rgb(str(path)), lambda path: read_image(path, HEIGHT, WIDTH)):
            with pytest.raises(ImageError, match=f"{name}: a.* save it with 8 or 16 bits") as caught:
                read(tmp_path / name)
            assert not isinstance(caught.value, UndecodableImageError)  # never skipped as damaged


@pytest.mark.parametrize(("kind", "name"), [("GIF", "a.jpg"), ("WEBP", "a.webp"), ("TIFF", "a.tif"), ("PNG", "a.png")])
def test_of_several_frames_the_first_is_read(tmp_path, kind, name):
    frames = [Image.fromarray(COLOURS).quantize(64).convert("RGB"), Image.new("RGB", (WIDTH, HEIGHT), "red")]
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(tmp_path / name, kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(both(tmp_path / name), np.asarray(frames[0]))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_a_flipped_bit_never_kills_the_process(tmp_path, kind):
    """In a process of its own; of a PNG, which has checksums, no other picture comes of it either."""
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    whole, path = file.getvalue(), tmp_path / "image"
    path.write_bytes(whole)
    expected = both(path)
    places = range(len(whole)) if len(whole) < 150 else np.linspace(0, len(whole) - 1, 150).astype(int).tolist()
    child = os.fork()
    if child == 0:
        status = 2
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            wrong = False
            for place in places:
                for bit in (0, 3, 6):
                    damaged = bytearray(whole)
                    damaged[place] ^= 1 << bit
                    path.write_bytes(damaged)
                    try:
                        pixels = read_rgb(str(path)).permute(1, 2, 0).numpy()
                        wrong |= kind == "PNG" and not np.array_equal(pixels, expected)
                    except UserError:
                        pass
            status = int(wrong)
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    assert not os.WIFSIGNALED(ended), signal.Signals(os.WTERMSIG(ended)).name
    assert os.WEXITSTATUS(ended) == 0


def test_jpeg_is_what_pillow_gives(tmp_path):
    image = Image.fromarray(COLOURS)
    for mode in ("RGB", "L", "CMYK"):
        image.convert(mode).save(tmp_path / f"{mode}.jpg")
        np.testing.assert_array_equal(
            both(tmp_path / f"{mode}.jpg"), Image.open(tmp_path / f"{mode}.jpg").convert("RGB")
        )
    assert read_rgb(str(tmp_path / "L.jpg")).is_contiguous()
    assert read_rgb(str(tmp_path / "L.jpg")).dtype == torch.uint8


def test_an_image_that_is_too_large_is_said_to_be_so(tmp_path, monkeypatch):
    """Beyond Pillow's limit against small files that decode to a memory full, which no image that it reads may pass."""
    Image.new("L", (60, 50)).save(tmp_path / "a.png")
    Image.new("L", (60, 50)).save(tmp_path / "b.jpg", progressive=True, comment=b"x" * 300)
    filled = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "c.jpg").write_bytes(filled[:2] + b"\xff\xff" + filled[2:])  # bytes that may fill up before a marker
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for read, name in product((lambda path: read_rgb(str(path)), read_header), ("a.png", "b.jpg", "c.jpg")):
        with pytest.raises(
            UndecodableImageError, match="the image is too large, of more than 2,000 pixels; make it"
        ) as e:
            read(tmp_path / name)
        assert "corrupt" not in str(e.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    assert [read_rgb(str(tmp_path / name)).shape for name in ("b.jpg", "c.jpg")] == [(3, 50, 60)] * 2


def test_a_named_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for read in (lambda path: read_rgb(str(path)), read_header):
        with pytest.raises(ImageError, match=r"pipe\.jpg: cannot be read \(no regular file\)"):
            read(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "XMP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_header_says_the_size_that_is_read(tmp_path, kind, orientation):
    exif, path = Image.Exif(), tmp_path / "image"
    exif[274] = orientation
    if kind == "XMP":
        about = f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        Image.fromarray(COLOURS).save(path, "JPEG", xmp=f"<x:xmpmeta>{about}</x:xmpmeta>".encode())
    else:
        Image.fromarray(COLOURS).save(path, kind, exif=exif)
    size = (HEIGHT, WIDTH) if orientation == 6 else (WIDTH, HEIGHT)
    assert read_header(path).size == size
    assert read_image(path, size[1], size[0]).size == size
