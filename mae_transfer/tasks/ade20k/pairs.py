"""The image and mask files of a split: ADE20K's layout, or any folders of images and masks.

ADE20K here is SceneParse150 (`ADEChallengeData2016.zip`): masks of one channel, 0 ignored, 1 .. 150 the classes. The
full ADE20K, whose `_seg.png` masks have three channels and 3000 classes, is refused by name. All pairs are checked, by
their file headers only.
"""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from mae_transfer.data import decode, images
from mae_transfer.data.decode import header_of, open_file
from mae_transfer.data.identity import combine, identify
from mae_transfer.data.images import DECODE_ERRORS, unusable
from mae_transfer.data.index_cache import header_numbers
from mae_transfer.data.names import walk_files
from mae_transfer.data.paths import find_paths
from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k import mask_files
from mae_transfer.tasks.ade20k.config import PairsConfig
from mae_transfer.tasks.ade20k.mask_files import mask_fault

LAYOUT = {
    "train_images": "images/training",
    "train_masks": "annotations/training",
    "val_images": "images/validation",
    "val_masks": "annotations/validation",
}
EXPECTED = (
    "expected is ADE20K's layout, to be had as ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu: "
    f"data.root (--data) with {', '.join(LAYOUT.values())}; or folders of your own by data.train_images=, "
    "data.train_masks=, data.val_images= and data.val_masks="
)
SOURCES = [__file__, decode.__file__, images.__file__, mask_files.__file__]


@dataclass(frozen=True)
class Pairs:
    """The checked pairs of one split, in order of name. `sizes` are (height, width)."""

    image_folder: Path
    mask_folder: Path
    names: list[str]
    image_suffix: str
    mask_suffix: str
    sizes: list[tuple[int, int]]
    names_fingerprint: str
    """SHA-256 over names and file sizes in bytes."""
    warnings: list[str]
    """A line for each folder with files that belong to no pair."""

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Path:
        return self.image_folder / f"{self.names[index]}{self.image_suffix}"

    def mask(self, index: int) -> Path:
        return self.mask_folder / f"{self.names[index]}{self.mask_suffix}"

    def headers(self) -> np.ndarray:
        """int64 (n, 5) of `_check_pair`; from the cache if no file has changed."""
        masks = os.path.realpath(self.mask_folder)
        files = [f"{name}{self.image_suffix}" for name in self.names]
        files += [os.path.join(masks, f"{name}{self.mask_suffix}") for name in self.names]

        def read(index: int) -> tuple[int, ...]:
            return _check_pair(self.image(index), self.mask(index))

        about = f"pairs, Pillow {PIL.__version__}"
        return header_numbers(self.image_folder, files, about, SOURCES, len(self), read)

    def identity(self, indices: np.ndarray) -> str:
        """Of the images and masks of these pairs (`data/identity.py`)."""
        names = [self.names[i] for i in indices.tolist()]
        images = identify(self.image_folder, [f"{name}{self.image_suffix}" for name in names])
        return combine(images, identify(self.mask_folder, [f"{name}{self.mask_suffix}" for name in names]))


def find_pairs(config: PairsConfig, split: str) -> Pairs:
    """The pairs of `train` or `val`.

    Raises UserError for a missing folder, an image without mask, a mask of another size than its (upright) image or
    whose values are no labels (`mask_files.py`), and a file that is no image.
    """
    paths = find_paths(config, {key: place for key, place in LAYOUT.items() if key.startswith(split)}, EXPECTED)
    folder, masks = paths[f"{split}_images"], paths[f"{split}_masks"]
    names = _names(folder, config.image_suffix)
    if not names:
        found = ", ".join(sorted({p.suffix for p in folder.rglob("*") if p.is_file()})) or "no files"
        raise UserError(
            f"{folder}: no file ends in {config.image_suffix!r} (it holds {found}); set data.image_suffix or the folder"
        )
    masked = set(_names(masks, config.mask_suffix))
    missing = [name + config.image_suffix for name in names if name not in masked]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(names)} images have no mask in {masks}: {_some(missing)}; add <name>"
            f"{config.mask_suffix} there (data.mask_suffix), or take the images out"
        )
    pairs = Pairs(folder, masks, names, config.image_suffix, config.mask_suffix, [], "", [])
    headers = pairs.headers().tolist()
    digest = hashlib.sha256()
    for name, header in zip(names, headers, strict=True):
        digest.update(f"{name} {header[2]} {header[3]}\n".encode())
    firsts = np.unique([header[4] for header in headers], return_index=True)[1].tolist()
    palettes = {_header(pairs.mask(number), mask=True)[2]: number for number in firsts}
    used = {path for i in range(len(names)) for path in (pairs.image(i), pairs.mask(i))}
    warnings = _unlike_palettes({pairs.mask(number): palette for palette, number in sorted(palettes.items())})
    for place in sorted({folder, masks}):
        left = [file for file in _names(place, "") if place / file not in used]
        if left:
            warnings.append(
                f"{place}: {len(left)} files belong to no pair and are not used (data.image_suffix="
                f"{config.image_suffix}, data.mask_suffix={config.mask_suffix}): {_some(left)}"
            )
    return replace(
        pairs,
        sizes=[(header[0], header[1]) for header in headers],
        names_fingerprint=digest.hexdigest(),
        warnings=warnings,
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _names(folder: Path, suffix: str) -> list[str]:
    """Paths below the folder, without the suffix, of all files that have it."""
    found = [
        path.removesuffix(suffix)
        for path in walk_files(folder)
        if path.endswith(suffix) and not os.path.basename(path).startswith(".")
    ]
    return sorted(found)


def _unlike_palettes(masks: dict[Path, bytes]) -> list[str]:
    """A line if palettes give one colour to several values, as where each file's are numbered by how much they fill.

    masks: the palettes that differ, 3 bytes a value, and a file of each.
    """
    values: dict[bytes, tuple[int, Path]] = {}
    for path, palette in masks.items():
        colours = [palette[i : i + 3] for i in range(0, len(palette), 3)]
        once = {colour for colour, count in Counter(colours).items() if count == 1}
        for value, colour in enumerate(colours):
            before, other = values.setdefault(colour, (value, path)) if colour in once else (value, path)
            if before != value:
                return [
                    f"{path}: the palette's colour {tuple(colour)} is value {value} and in {other.name} value {before}"
                    "; classes are the values, not the colours: if the colours are right, write class numbers"
                ]
    return []


def _check_pair(image: Path, mask: Path) -> tuple[int, int, int, int, int]:
    """Height and width of a pair, the bytes of either file, and a number that tells the mask's palette from others."""
    size, *_ = _header(image)
    mask_size, fault, palette = _header(mask, mask=True)
    if fault is not None:
        raise UserError(f"{mask}: {fault}")
    if size != mask_size:
        raise UserError(
            f"{mask}: the mask is {mask_size[1]}x{mask_size[0]} pixels and {image} is {size[1]}x{size[0]} (upright); "
            "they must agree, annotate or resize one of them again"
        )
    told = int.from_bytes(hashlib.sha256(palette).digest()[:7], "big")
    return *size, image.stat().st_size, mask.stat().st_size, told


def _header(path: Path, *, mask: bool = False) -> tuple[tuple[int, int], str | None, bytes]:
    """(height, width) of the upright image, or of a mask as stored, why it is none, and its palette; not decoded."""
    with open_file(str(path)) as file:
        try:
            opened = Image.open(file)
            fault = mask_fault(opened) if mask else None
            header = header_of(opened)
            rawmode, palette = opened.palette.getdata() if mask and opened.palette else (None, b"")
        except Image.DecompressionBombError as error:
            raise unusable(path, error, "mask" if mask else "image") from None
        except DECODE_ERRORS as error:
            reason = "of no known format" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
            raise UserError(f"{path}: not a readable image ({reason}); fetch it again or take the pair out") from None
    colours = bytes(palette) if rawmode == "RGB" else b""
    return (header.stored_size if mask else header.size)[::-1], fault, colours
