"""Names of image files: which there are in a folder, which are images, and millions of them in little memory."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn, overload

import numpy as np

from mae_transfer.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""torchvision's IMG_EXTENSIONS."""
_CHUNK = 10_000


class Names(Sequence[str]):
    """Strings packed into one block of bytes.

    Loader processes share the block. A list of `str` would be copied page by page in each of them as reference counts
    change.
    """

    def __init__(self, names: Iterable[str]) -> None:
        strings = list(names)
        text = "".join(strings)
        if text.isascii():
            content, lengths = text.encode(), map(len, strings)
        else:
            encoded = [os.fsencode(name) for name in strings]
            content, lengths = b"".join(encoded), map(len, encoded)
        self._bytes = np.frombuffer(content, dtype=np.uint8)
        self._ends = np.zeros(len(strings) + 1, np.int64)
        self._ends[1:] = np.fromiter(lengths, np.int64, len(strings)).cumsum()

    @classmethod
    def packed(cls, content: np.ndarray, ends: np.ndarray) -> "Names":
        """Name i is the bytes `ends[i]` up to `ends[i + 1]` of the uint8 `content`."""
        names = cls(())
        names._bytes, names._ends = content, ends
        return names

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """What `packed` takes."""
        return self._bytes, self._ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _CHUNK):
            ends = self._ends[start : start + _CHUNK + 1].tolist()
            first = ends[0]
            content = self._bytes[first : ends[-1]].tobytes()
            if content.isascii():
                text = content.decode()
                yield from (text[a - first : b - first] for a, b in pairwise(ends))
            else:
                yield from (os.fsdecode(content[a - first : b - first]) for a, b in pairwise(ends))

    def digest(self) -> bytes:
        """SHA-256 of all names in their order."""
        return hashlib.sha256(self._ends.astype("<i8").tobytes() + self._bytes.tobytes()).digest()

    def folders(self) -> list[str]:
        """The folders that the names are in, sorted."""
        content = self._bytes.tobytes()
        found = {content[a:b].rpartition(b"/")[0] for a, b in pairwise(self._ends.tolist())}
        return sorted(map(os.fsdecode, found))


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as an image's does. Hidden files are none: macOS keeps attributes in `._<name>`."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def walk_files(folder: str | Path) -> Iterator[str]:
    """Paths, relative to the folder, of its files at any depth, folder by folder in order of name.

    Raises UserError for a subfolder that cannot be listed, whose images would be missing without a word, and for a link
    to a folder that it lies in, whose images would be there again and again.
    """
    above: dict[str, tuple[os.stat_result, ...]] = {}
    for place, subfolders, files in os.walk(Path(folder), followlinks=True, onerror=_refuse):
        state, outer = os.stat(place), above.get(os.path.dirname(place), ())
        if any(os.path.samestat(state, other) for other in outer):
            raise UserError(f"folder {place} is a link to a folder that it lies in; take the link out")
        if subfolders:
            above[place] = (*outer, state)
        subfolders.sort()
        for file in files:
            yield os.path.relpath(os.path.join(place, file), folder)


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"folder {error.filename} cannot be listed ({error.strerror}); check it and its permissions")
