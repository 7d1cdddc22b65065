"""Arrays of frozen features in files: computed once, then mapped.

The rows of a data set lie in chunks of images, written whole or not at all. Chunk c is computed by rank c % ranks, and
every rank maps all of them. A resume, with any number of ranks, computes only what is missing. The caller names the
files by a hash of everything that the values depend on. A row of NaN (of -1 among integers) is an image that could not
be decoded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any, Protocol

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
        stem: str,
        images: Images,
        chunk: int,
        kinds: Mapping[str, Kind],
        compute: Callable[[Batch], Mapping[str, Tensor]],
    ) -> dict[str, Stored]:
        """The arrays of a data set; only what the files lack is computed. Called on every rank.

        Args:
            title: on the progress bar.
            stem: of the files, which are <stem><name>-<number of the chunk>.npy.
            chunk: images of a file, a multiple of the batch size.
            kinds: name -> the array; the first one is checked to be finite.
            compute: a batch on the device -> name -> its rows, for the images that could be decoded.

        Raises:
            UserError: the files cannot be written or read, or values are not finite.
        """
        count = -(-len(images) // chunk)
        files = [{name: self.path / f"{stem}{name}-{i:05d}.npy" for name in kinds} for i in range(count)]
        files = on_rank_zero(self.fabric, lambda: [self._find(each) for each in files])
        there = on_rank_zero(self.fabric, lambda: [all(f.exists() for f in each.values()) for each in files])
        missing = [i for i in range(count) if not there[i]]
        if missing:
            on_rank_zero(self.fabric, lambda: self._check_space(title, kinds, min(len(missing) * chunk, len(images))))
        mine = missing[self.fabric.global_rank :: self.fabric.world_size]
        spans = [(files[i], range(i * chunk, min((i + 1) * chunk, len(images)))) for i in mine]
        self._compute(title, images, spans, kinds, compute)
        self.fabric.barrier()
        return {name: Stored([_map(each[name]) for each in files], chunk) for name in kinds}

    def _find(self, files: dict[str, Path]) -> dict[str, Path]:
        """The files of a chunk: those of this run or, if it has none, of one beside it."""
        if not self.beside or all(file.exists() for file in files.values()):
            return files
        first = next(iter(files.values()))
        for other in sorted(self.path.parent.parent.glob(f"*/features/{first.name}")):
            found = {name: other.with_name(file.name) for name, file in files.items()}
            if all(file.exists() for file in found.values()):
                return found
        return files

    def _check_space(self, title: str, kinds: Mapping[str, Kind], images: int) -> None:
        needed = images * sum(int(np.prod(kind.shape)) * kind.dtype.itemsize for kind in kinds.values())
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
        spans: Sequence[tuple[Mapping[str, Path], range]],
        kinds: Mapping[str, Kind],
        compute: Callable[[Batch], Mapping[str, Tensor]],
    ) -> None:
        """Write each chunk: the rows of the images of its span."""
        batches = evaluation_batches(
            _Marked(images),
            batch_size=self.batch_size,
            workers=self.workers,
            fabric=self.fabric,
            progress=self.progress,
            title=title,
            mine=[index for _, span in spans for index in span],
        )
        for files, span in spans:
            rows = {name: _empty(len(span), kind) for name, kind in kinds.items()}
            done = 0
            while done < len(span):
                batch = next(batches)
                images.report_skipped(batch)
                place = done + batch["decoded"].nonzero()[:, 0]
                done += len(batch["decoded"])
                if not len(place):
                    continue
                with torch.no_grad(), self.fabric.autocast():
                    found = compute(self.fabric.to_device(batch))
                for name, kind in kinds.items():
                    rows[name][place] = found[name].to(kind.dtype).cpu()
                first = rows[next(iter(kinds))][place]
                if not first.isfinite().all():
                    name = (batch.get("names") or batch["file_names"])[0]
                    raise UserError(
                        f"features of {name} or its neighbours are not finite; set train.precision=fp32 or check the "
                        "weights"
                    )
            for name, file in files.items():
                with atomic_write(file) as target:
                    np.save(target, rows[name].numpy())
        next(batches, None)  # ends the loader and fills the bar


def chunk_of(images: int, batch_size: int) -> int:
    """About as many images, a whole number of batches."""
    return -(-images // batch_size) * batch_size


def _empty(length: int, kind: Kind) -> Tensor:
    missing = torch.nan if kind.dtype.is_floating_point else -1
    return torch.full((length, *kind.shape), missing, dtype=kind.dtype)


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
