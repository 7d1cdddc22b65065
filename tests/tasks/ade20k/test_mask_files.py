"""Mask files whose pixels, as readers give them, are not the numbers in the file."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.ade20k.config import Ade20kConfig, DataConfig
from mae_transfer.tasks.ade20k.data import Segmentation
from mae_transfer.tasks.ade20k.pairs import find_pairs

VALUES = np.random.default_rng(0).integers(0, 4, (48, 96))
CLASSES = ("data.reduce_zero_label=false", "data.num_classes=16")


def settings(folder: Path, content: bytes, suffix: str = ".png") -> DataConfig:
    """A set of one pair, an image of 96 x 48 pixels and this mask."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    Image.new("RGB", (96, 48), (9, 80, 200)).save(folder / "images/a.jpg")
    (folder / f"masks/a{suffix}").write_bytes(content)
    places = [f"data.{split}_{kind}={folder / kind}" for split in ("train", "val") for kind in ("images", "masks")]
    overrides = [*places, f"data.mask_suffix={suffix}", *CLASSES]
    config = load_config("ade20k", "random_vit_nano", overrides=overrides)
    assert isinstance(config, Ade20kConfig)
    return config.data


def refusal(folder: Path, content: bytes, suffix: str = ".png") -> str:
    with pytest.raises(UserError) as caught:
        find_pairs(settings(folder, content, suffix), "val")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def encoded(format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(VALUES.astype(np.uint8)).save(buffer, format, **options)
    return buffer.getvalue()


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG by its specification: samples packed from the high bit on, a filter byte of 0 before each row."""
    planes = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(planes.reshape(len(values), -1), axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    )
    parts = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_png_of_few_bits_holds_class_numbers(tmp_path: Path, bits: int) -> None:
    values = VALUES % 2 if bits == 1 else VALUES
    config = settings(tmp_path, grey_png(values, bits))
    _, label = Segmentation(find_pairs(config, "val"), config, None).read(0)
    np.testing.assert_array_equal(label, values)


@pytest.mark.parametrize(
    ("format", "suffix", "options"),
    [("JPEG", ".jpg", {}), ("JPEG", ".png", {"quality": 100}), ("TIFF", ".tif", {"compression": "jpeg"})],
)
def test_lossy_masks_are_refused(tmp_path: Path, format: str, suffix: str, options: dict[str, object]) -> None:
    line = refusal(tmp_path, encoded(format, **options), suffix)
    assert f"a{suffix}: a mask in {format}, whose compression changes class numbers" in line
    assert "num_classes" not in line


@pytest.mark.parametrize("orientation", [3, 6])
def test_masks_that_exif_turns_are_refused(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    line = refusal(tmp_path, encoded("PNG", exif=exif))
    assert f"a mask with EXIF orientation {orientation}" in line
    assert "write it upright, without EXIF" in line


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_read_as_stored_whatever_its_orientation(
    tmp_path: Path, orientation: int, compression: str | None
) -> None:
    """Pillow turns a TIFF as it decodes it, and says the size that it has then."""
    config = settings(tmp_path, encoded("TIFF", tiffinfo={274: orientation}, compression=compression), ".tif")
    _, label = Segmentation(find_pairs(config, "val"), config, None).read(0)
    np.testing.assert_array_equal(label, VALUES)


def test_exif_of_an_upright_mask_is_no_fault(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 1
    config = settings(tmp_path, encoded("PNG", exif=exif))
    _, label = Segmentation(find_pairs(config, "val"), config, None).read(0)
    np.testing.assert_array_equal(label, VALUES)


def test_grey_levels_that_readers_scale_or_invert_are_refused(tmp_path: Path) -> None:
    pgm = b"P5\n96 48\n15\n" + VALUES.astype(np.uint8).tobytes()
    assert "grey levels up to 15, which readers scale" in refusal(tmp_path / "pgm", pgm, ".pgm")
    pbm = b"P4\n96 48\n" + np.packbits(VALUES % 2, axis=1).tobytes()
    assert "0 is white" in refusal(tmp_path / "pbm", pbm, ".pbm")
    inverted = encoded("TIFF", tiffinfo={262: 0})
    assert "0 is white" in refusal(tmp_path / "tiff", inverted, ".tif")


@pytest.mark.parametrize(
    ("second", "said"),
    [([0, 0, 0, 0, 255, 0, 255, 0, 0], True), ([0, 0, 0, 255, 0, 0], False), ([9, 9, 9, 8, 8, 8, 7, 7, 7], False)],
)
def test_palettes_that_number_their_colours_otherwise_are_said(tmp_path: Path, second: list[int], said: bool) -> None:
    config = settings(tmp_path, b"")
    Image.new("RGB", (96, 48)).save(tmp_path / "images/b.jpg")
    for name, palette in (("a", [0, 0, 0, 255, 0, 0, 0, 255, 0]), ("b", second)):
        mask = Image.fromarray((VALUES % (len(palette) // 3)).astype(np.uint8), "P")
        mask.putpalette(palette)
        mask.save(tmp_path / f"masks/{name}.png")
    lines = find_pairs(config, "val").warnings
    assert [("colour (0, 255, 0) is value" in line or "colour (255, 0, 0) is" in line) for line in lines] == [
        True
    ] * said
