"""WebDataset tar shards as a list of images that can be read in any order.

The `webdataset` library streams shards and shuffles in a buffer, so what a step sees depends on workers, ranks and
restarts. The engine's contract is that a sample is a function of (seed, epoch, index): here the members of all shards
are indexed once (and the index is kept in the user's cache folder), after which an image is one seek and one read. Tar
files must not be compressed; images in them are already.

As in WebDataset, a sample is the members of one name up to the first dot: `n01/0001.jpg` and `n01/0001.cls`. The image
is the member with an image's suffix, the label the number in `.cls`, or "label" in `.json`; others are left alone.
"""

import glob
import hashlib
import json
import logging
import os
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from math import inf
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mae_transfer.data.dataset import Span
from mae_transfer.data.identity import identify_members, known_names
from mae_transfer.data.images import ImageError
from mae_transfer.data.index_cache import lock_file
from mae_transfer.data.names import IMAGE_SUFFIXES, Names
from mae_transfer.data.paths import is_address
from mae_transfer.data.remote import fetch
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write, parse_json, user_path

_LOG = logging.getLogger(__name__)

VERSION = 1
_BLOCK = 512
_THREADS = 8
_MOST = 100_000
NO_LABEL = -1
LABELS = 2**31
"""Class numbers are below."""


@dataclass(frozen=True)
class Shards:
    """The images of a set of shards, in the order of the shards and of their members.

    `names` are `<shard>/<member>`; `shard`, `offset`, `size` (int64, (n,)) say where the bytes are; `labels` int64
    (n,), None if not every image has one.
    """

    paths: tuple[Path, ...]
    names: Names
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.names)

    def span(self, index: int) -> Span:
        return str(self.paths[self.shard[index]]), int(self.offset[index]), int(self.size[index])

    def read(self, index: int) -> np.ndarray:
        """The bytes of an image file, uint8 (n,); ImageError if they are no longer there."""
        path, size = self.paths[self.shard[index]], int(self.size[index])
        try:
            content = np.fromfile(path, dtype=np.uint8, count=size, offset=int(self.offset[index]))
        except OSError as error:
            raise ImageError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
        if len(content) != size:
            raise ImageError(f"{path}: ends within {self.names[index]}; it was cut since the run began, fetch it again")
        return content

    @property
    def where(self) -> Path:
        return self.paths[0].parent

    def identity(self, indices: np.ndarray) -> str:
        """Of the images at these indices, in order, with their labels (`data/identity.py`)."""
        whole = len(indices) == len(self)
        names = self.names if whole else Names(self.names[i] for i in indices.tolist())
        labels = None if self.labels is None else self.labels[indices]

        def read(place: int) -> bytes:
            return self.read(int(indices[place])).tobytes()

        return identify_members(self.paths, names, self.size[indices], read, labels)

    def names_fingerprint(self) -> str:
        """SHA-256 of all names, sizes and labels. It leaves out the pixels, and where the shards lie."""
        sizes = hashlib.sha256(self.size.tobytes()).hexdigest()
        return known_names(self.names, self.labels, f"shards {sizes}", self._names_fingerprint)

    def _names_fingerprint(self) -> str:
        digest = hashlib.sha256()
        labels = np.full(len(self), NO_LABEL) if self.labels is None else self.labels
        for name, size, label in zip(self.names, self.size.tolist(), labels.tolist(), strict=True):
            digest.update(f"{name}\t{size}\t{label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def is_shards(data: str | Path) -> bool:
    """Whether a data path means shards: an address, a pattern ending in .tar, or a folder with .tar files, itself or in
    train/."""
    text = str(data)
    if text.endswith(".tar") or is_address(text):
        return True
    folder = user_path(text)
    return any(any(place.glob("*.tar")) for place in (folder / "train", folder))


def find_shards(data: str | Path, cache_gib: float = inf) -> tuple[list[Path], list[Path]]:
    """Shards of the training and of the validation set, sorted; the latter may be empty.

    Of a folder: train/*.tar and val/*.tar, else train*.tar and val*.tar, else *.tar for training. Or a pattern such as
    `shards/train-{000000..000146}.tar`, with braces as WebDataset writes them or the shell's * and ?, for training; or
    an address with braces, whose files are fetched into a cache of `cache_gib` at most.

    Raises UserError if there is none, or if one of a range is missing.
    """
    if is_address(str(data)):
        addresses = list(islice(_braces(str(data)), _MOST + 1))
        if len(addresses) > _MOST:
            raise UserError(f"{data}: more than {_MOST} shards; check the range")
        if glob.has_magic(str(data)) or not all(address.endswith(".tar") for address in addresses):
            raise UserError(
                f"{data}: of an address give .tar files, with braces for their numbers, such as "
                "https://HOST/train-{000000..000146}.tar"
            )
        return fetch(addresses, cache_gib), []
    text = str(user_path(data))
    if text.endswith(".tar"):
        return expand(text), []
    folder = Path(text)
    if (folder / "train").is_dir():
        groups = [sorted((folder / split).glob("*.tar")) for split in ("train", "val")]
    else:
        groups = [sorted(folder.glob(f"{split}*.tar")) for split in ("train", "val")]
        if not groups[0]:
            groups = [sorted(set(folder.glob("*.tar")) - set(groups[1])), groups[1]]
    if not groups[0]:
        raise UserError(f"{folder}: has no .tar shards to train on; give --data a folder or a pattern of them")
    return groups[0], groups[1]


def expand(pattern: str) -> list[Path]:
    """The files of a pattern with `{000..146}`, `{a,b}`, `*` and `?`; UserError for what is not there."""
    return [path for text in _braces(pattern) for path in _there(text)]


def _braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    first, last, listed = match.groups()
    parts: Iterable[str]
    if listed is not None:
        parts = listed.split(",")
    elif int(last) < int(first):
        raise UserError(f"{pattern}: the range {{{first}..{last}}} is empty; the first number comes first")
    else:
        parts = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    for part in parts:
        yield from _braces(pattern[: match.start()] + part + pattern[match.end() :])


def _there(pattern: str) -> list[Path]:
    found = sorted(Path(name) for name in glob.glob(pattern)) if glob.has_magic(pattern) else [Path(pattern)]
    missing = next((path for path in found if not path.is_file()), None)
    if missing is not None or not found:
        raise UserError(
            f"shard {missing or pattern} is not there; give --data a folder of .tar files or a pattern of them"
        )
    return found


def open_shards(paths: Sequence[Path]) -> Shards:
    """The images of shards, from the index in the cache if they have not changed since it was made.

    Raises UserError, naming the shard, for one that is truncated, corrupt, compressed or holds no image.
    """
    paths = [path.resolve() for path in paths]
    stats = [path.stat() for path in paths]
    state = [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in zip(paths, stats, strict=True)]
    digest = hashlib.sha256(json.dumps([VERSION, state]).encode()).hexdigest()[:24]
    cache = user_path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "mae_transfer"
    file = cache / f"shards_{digest}.npz"
    with lock_file(file.with_suffix(".lock")) as writable:  # of the processes of a node, one makes it
        stored = _stored_index(file)
        if stored is not None:
            return _from_index(paths, *stored)
        _LOG.info("indexing %d shards", len(paths))
        with ThreadPoolExecutor(_THREADS) as pool:
            members = list(pool.map(list_images, paths))
        rows = np.array(
            [[i, *numbers] for i, found in enumerate(members) for _, *numbers in found], dtype=np.int64
        ).reshape(-1, 4)
        names = b"\0".join(
            os.fsencode(f"{path.name}/{name}") for path, found in zip(paths, members, strict=True) for name, *_ in found
        )
        if writable:
            with atomic_write(file) as out:
                np.savez(out, names=np.frombuffer(names, dtype=np.uint8), rows=rows)
    return _from_index(paths, names, rows)


def _stored_index(file: Path) -> tuple[bytes, np.ndarray] | None:
    """Names and rows of an index in the cache; None without one, or if it is damaged, which sets it aside."""
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as index:
            names, rows = index["names"].tobytes(), index["rows"]
        if rows.dtype == np.int64 and rows.shape == (names.count(b"\0") + 1, 4):
            return names, rows
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        pass
    aside = file.with_suffix(".damaged")
    _LOG.warning("%s: the index of the shards is damaged; it is set aside as %s and made anew", file, aside.name)
    with suppress(OSError):  # of a cache that cannot be written: the index is made anew every time
        file.replace(aside)
    return None


def list_images(path: Path) -> list[tuple[str, int, int, int]]:
    """(name, offset, size, label) of the images in a shard, label NO_LABEL where there is none."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    dotted: dict[str, str] = {}
    end = 0
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.islnk() or member.issym() or member.issparse():
                    if member.name.lower().endswith((*IMAGE_SUFFIXES, ".cls", ".json")):
                        raise UserError(
                            f"shard {path}: {member.name} is a link or a sparse file, of which the shard has no "
                            "content; write the shards anew, with `tar --hard-dereference -h` and without -S"
                        )
                    continue
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, kind = base.partition(".")
                key = f"{folder}/{stem}"
                if f".{kind.lower()}" in IMAGE_SUFFIXES:
                    if key in images:
                        raise UserError(
                            f"shard {path}: {images[key][0]} and {member.name} are two images of one sample; name "
                            "them apart"
                        )
                    images[key] = (member.name, member.offset_data, member.size)
                elif stem and kind.lower().endswith(IMAGE_SUFFIXES):
                    dotted[key] = member.name
                elif kind in ("cls", "json"):
                    label = _label(path, member.name, kind, _content(tar, member))
                    if label is not None and (kind == "cls" or key not in labels):
                        labels[key] = label
            whole = _ends(file, end)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(f"shard {path}: {_why(path, error)}") from None
    if not whole:
        raise UserError(f"shard {path}: truncated or corrupt after {end} bytes; fetch it again")
    lost = [name for key, name in dotted.items() if key not in images]
    if lost:
        raise UserError(
            f"shard {path}: {lost[0]} has a dot within its name ({len(lost)} such samples without another image); a "
            "sample's name ends at the first dot, as in WebDataset: write the shards anew with other names"
        )
    if not images:
        raise UserError(f"shard {path}: holds no image ({', '.join(IMAGE_SUFFIXES[:4])}, ...); leave it out")
    return [(*image, labels.get(key, NO_LABEL)) for key, image in images.items()]


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _label(path: Path, name: str, kind: str, content: bytes) -> int | None:
    """The label in a `.cls` or `.json` member; None for a `.json` without one."""
    try:
        told = {"label": int(content)} if kind == "cls" else parse_json(content)
        value = told.get("label") if isinstance(told, dict) else ""
        if value is None or (type(value) is int and 0 <= value < LABELS):
            return value
    except ValueError:
        pass
    raise UserError(f"shard {path}: {name} holds {content[:20]!r}, not the number of a class (0, 1, 2, ...)")


def _ends(file: BinaryIO, end: int) -> bool:
    """Whether an archive ends properly after its last member: zeros, a block at least, and nothing else.

    Python's tarfile takes a damaged header, and the end of the file, for the end of the archive.
    """
    file.seek(end)
    size = 0
    while piece := file.read(1 << 20):
        if any(piece):
            return False
        size += len(piece)
    return size >= _BLOCK


def _why(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror}); check the file and its permissions"
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "is compressed, so that no image in it can be found without the others; unpack it to a plain .tar"
    return f"truncated or corrupt ({error}); fetch it again"


def _from_index(paths: Sequence[Path], names: bytes, rows: np.ndarray) -> Shards:
    shard, offset, size, labels = rows.T
    found = Names(os.fsdecode(name) for name in names.split(b"\0"))
    return Shards(tuple(paths), found, shard, offset, size, None if (labels == NO_LABEL).any() else labels)
