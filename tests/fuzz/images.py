"""Image files of five formats, damaged, through both readers."""

import io
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from campaign import Trial, Wrong
from mutate import mutate_bytes
from PIL import Image

from mae_transfer.data.decode import read_header, read_image, read_rgb

HEIGHT, WIDTH = 30, 40
FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {}, "JPEG": {"quality": 90}, "GIF": {}, "WEBP": {"lossless": True}, "TIFF": {"compression": "tiff_lzw"},
}  # fmt: skip


class Family:
    def __init__(self, folder: Path) -> None:
        rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
        colours = np.stack([columns * 6, rows * 8, (columns * rows) % 251], -1).astype(np.uint8)
        self.path = folder / "image"
        self.files: list[tuple[str, bytes, np.ndarray]] = []
        for kind, options in FORMATS.items():
            for mode in ("RGB", "L", "P") if kind in ("PNG", "TIFF") else ("L",) if kind == "GIF" else ("RGB",):
                exif = Image.Exif()
                exif[274] = 1
                buffer = io.BytesIO()
                Image.fromarray(colours).convert(mode).save(buffer, kind, exif=exif, **options)
                self.path.write_bytes(buffer.getvalue())
                self.files.append((kind, buffer.getvalue(), np.asarray(read_image(self.path, HEIGHT, WIDTH))))

    def trial(self, rng: Random) -> Trial:
        kind, whole, expected = rng.choice(self.files)
        what, content = mutate_bytes(whole, rng)
        self.path.write_bytes(content)
        upright = rng.random() < 0.5

        def read() -> np.ndarray:
            if upright:
                read_header(self.path)
                return np.asarray(read_image(self.path, HEIGHT, WIDTH))
            return read_rgb(str(self.path)).permute(1, 2, 0).numpy()

        def judge(pixels: np.ndarray) -> str | None:
            if np.array_equal(pixels, expected):
                return None
            if kind == "PNG":
                raise Wrong("other pixels from a PNG, which has checksums")
            try:
                other = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
            except Exception as error:
                raise Wrong(f"pixels from a file that Pillow refuses: {error}") from error
            if pixels.shape != other.shape or np.abs(pixels.astype(int) - other).max() > 0:
                raise Wrong("other pixels than Pillow reads")
            return f"pixels of a {kind}, which has no checksum"

        return Trial(f"{kind}, {what}", read, judge)
