"""Arrays of frozen features in files: computed once, then mapped.

The rows of a data set lie in chunks of images, written whole or not at all. Chunk c is computed by rank c % ranks, and
every rank maps all of them. A resume, with any number of ranks, computes only what is missing. The caller names the
files by a hash of everything that the values depend on. A row of NaN (of -1 among integers) is an image that could not
be decoded.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from mae_transfer.config.sections import Workers
from mae_transfer.engine.distributed import on_rank_zero
from mae_transfer.engine.evaluation import EvalDataset, evaluation_batches
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write

if TYPE_CHECKING:
    from mae_transfer.run_folder.folder import RunFolder

Batch = dict[str, Any]


class Images(EvalDataset, Protocol):
    """A data set whose samples have `skipped`, which is empty unless the image cannot be decoded."""

    def report_skipped(self, batch: Batch, /) -> None: ...


@dataclass(frozen=True)
class Stored:
    """Rows of a data set: chunks (n, ...). Each has `chunk` images, the last one may have fewer."""

    chunks: list[np.ndarray]
    chunk: int

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """(len(indices), ...), in the type of the files."""
        found = np.empty((len(indices), *self.chunks[0].shape[1:]), self.chunks[0].dtype)
        number, place = np.divmod(indices, self.chunk)
        for i in np.unique(number):
            here = number == i
            found[here] = self.chunks[i][place[here]]
        return found

    def decoded(self) -> np.ndarray:
        """Indices of the images that could be decoded, of an array of floats."""
        firsts = [chunk.reshape(len(chunk), -1)[:, 0] for chunk in self.chunks]
        return np.flatnonzero(np.concatenate([~np.isnan(first) for first in firsts]))


@dataclass(frozen=True)
class Kind:
    """An array that is stored: the shape of a row, and its type."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def empty(self, length: int) -> Tensor:
        """Rows of images that could not be decoded."""
        missing = torch.nan if self.dtype.is_floating_point else -1
        return torch.full((length, *self.shape), missing, dtype=self.dtype)

    def write_header(self, file: IO[bytes], length: int) -> None:
        """What an .npy file of so many rows begins with."""
        descr = np.lib.format.dtype_to_descr(self.empty(0).numpy().dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (length, *self.shape)}
        np.lib.format.write_array_header_1_0(file, header)


_Files: TypeAlias = dict[str, tuple[Path, Kind]]
"""Stem -> the file of a chunk and what it holds."""


class ChunkStore:
    """The `features/` of a run folder.

    Args:
        batch_size: divides every chunk, so that no batch reaches into two.
        beside: also take files from the features of the runs that lie beside this one.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(
        self,
        fabric: Fabric,
        folder: "RunFolder | None",
        *,
        batch_size: int,
        workers: Workers,
        progress: bool,
        beside: bool = False,
    ) -> None:
        self.fabric, self.batch_size, self.workers, self.progress = fabric, batch_size, workers, progress
        self.beside = beside
        self.path = Path(on_rank_zero(fabric, lambda: str(_make(folder.path / "features")) if folder else ""))

    def stored(
        self,
        title: str,
        images: Images,
        chunk: int,
        kinds: Mapping[str, Kind],
        compute: Callable[[Batch], Mapping[str, Tensor]],
        also: Mapping[str, Kind] | None = None,
    ) -> dict[str, Stored]:
        """The arrays of a data set; only what the files lack is computed. Called on every rank.

        Args:
            title: on the progress bar.
            chunk: images of a file, a multiple of the batch size.
            kinds: stem -> the array, whose files are <stem>-<number of the chunk>.npy.
            compute: a batch on the device -> stem -> its rows, for the images that could be decoded.
            also: further arrays, written for later runs where a pass over the images is needed anyway.

        Raises:
            UserError: the files cannot be written or read, or values are not finite.
        """
        spans = [range(first, min(first + chunk, len(images))) for first in range(0, len(images), chunk)]
        every = {**kinds, **(also or {})}
        files = [{stem: self.path / f"{stem}-{i:05d}.npy" for stem in every} for i in range(len(spans))]
        files = on_rank_zero(self.fabric, lambda: [{stem: self._find(file) for stem, file in f.items()} for f in files])
        lacking = on_rank_zero(self.fabric, lambda: [[s for s, file in f.items() if not file.exists()] for f in files])
        missing = [i for i, stems in enumerate(lacking) if set(stems) & set(kinds)]
        to_write = [(spans[i], {stem: (files[i][stem], every[stem]) for stem in lacking[i]}) for i in missing]
        if missing:
            on_rank_zero(self.fabric, lambda: self._check_space(title, to_write))
        self._compute(title, images, to_write[self.fabric.global_rank :: self.fabric.world_size], compute)
        self.fabric.barrier()
        return {stem: Stored([_map(each[stem]) for each in files], chunk) for stem in kinds}

    def _find(self, file: Path) -> Path:
        """A file of this run or, if it has none, of one beside it."""
        if not self.beside or file.exists():
            return file
        return next(iter(sorted(self.path.parent.parent.glob(f"*/features/{file.name}"))), file)

    def _check_space(self, title: str, to_write: Sequence[tuple[range, _Files]]) -> None:
        needed = sum(len(span) * kind.row_bytes for span, files in to_write for _, kind in files.values())
        free = disk_usage(self.path).free
        if needed > free:
            raise UserError(
                f"{self.path}: {title} take {needed / 2**30:.3g} GiB and {free / 2**30:.3g} GiB are free; make room, "
                "choose another --output, or use a smaller --subset"
            )

    def _compute(
        self,
        title: str,
        images: Images,
        to_write: Sequence[tuple[range, _Files]],
        compute: Callable[[Batch], Mapping[str, Tensor]],
    ) -> None:
        """Write each chunk batch by batch: memory holds the rows of one batch, whatever the number of arrays."""
        batches = evaluation_batches(
            _Marked(images),
            batch_size=self.batch_size,
            workers=self.workers,
            fabric=self.fabric,
            progress=self.progress,
            title=title,
            mine=[index for span, _ in to_write for index in span],
        )
        for span, files in to_write:
            with ExitStack() as opened:
                targets = {stem: opened.enter_context(atomic_write(file)) for stem, (file, _) in files.items()}
                for stem, (_, kind) in files.items():
                    kind.write_header(targets[stem], len(span))
                done = 0
                while done < len(span):
                    batch = next(batches)
                    images.report_skipped(batch)
                    decoded = batch["decoded"]
                    done += len(decoded)
                    found: Mapping[str, Tensor] = {}
                    if decoded.any():
                        with torch.no_grad(), self.fabric.autocast():
                            found = compute(self.fabric.to_device(batch))
                    for stem, (_, kind) in files.items():
                        rows = kind.empty(len(decoded))
                        if stem in found:
                            rows[decoded] = found[stem].to(kind.dtype).cpu()
                            _check_finite(rows[decoded], batch)
                        targets[stem].write(rows.numpy().tobytes())
        next(batches, None)  # ends the loader and fills the bar


def _check_finite(rows: Tensor, batch: Batch) -> None:
    if not rows.isfinite().all():
        name = (batch.get("names") or batch["file_names"])[0]
        raise UserError(
            f"features of {name} or its neighbours are not finite; set train.precision=fp32 or check the weights"
        )


def chunk_of(images: int, batch_size: int) -> int:
    """About as many images, a whole number of batches."""
    return -(-images // batch_size) * batch_size


def _make(path: Path) -> Path:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {path}: {error.strerror}; free space or choose another --output") from error
    return path


def _map(file: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {file} ({error}); all nodes must share the run folder, and a damaged file is to be deleted"
        ) from None
    return array


class _Marked:
    """The data set, its batches with "decoded" (B,): which of the images asked for are in them."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        sample: Batch = self.images[index]
        return sample

    def collate(self, samples: list[Batch]) -> Batch:
        decoded = torch.tensor([not sample["skipped"] for sample in samples])
        return self.images.collate(samples) | {"decoded": decoded}
