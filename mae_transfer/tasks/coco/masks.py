"""The masks of many objects in few arrays, each built when it is asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, overload

import numpy as np
from pycocotools import mask as rle

Polygons = list[np.ndarray]
RLE = dict[str, Any]
LEAST = 6
"""Numbers of a polygon: three points."""
_MOST = 6
"""Groups of five bits in a number of a run-length encoding: pycocotools reads negative ones of more as others."""
LONGEST = 2**29 - 1
"""Pixels of a run."""


@dataclass(frozen=True)
class Masks(Sequence["Polygons | RLE"]):
    """Mask i: its polygons, float64 (2k,) each, or a run-length encoding with `size` and compressed `counts`.

    Polygons that are none, of fewer than 3 points or of an odd count of numbers, are left out.
    """

    coordinates: np.ndarray
    """float64: those of all polygons, one after the other."""
    ends: np.ndarray
    """int64 (p + 1,): polygon j is `coordinates[ends[j] : ends[j + 1]]`."""
    parts: np.ndarray
    """int64 (n, 2): the polygons of mask i are parts[i, 0] up to parts[i, 1]."""
    counts: np.ndarray
    """uint8: those of all run-length encodings, one after the other."""
    runs: np.ndarray
    """int64 (n, 2): the counts of mask i; none for polygons."""
    sizes: np.ndarray
    """int64 (n, 2): height and width of the image of mask i."""

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, index: int) -> Polygons | RLE: ...
    @overload
    def __getitem__(self, index: slice) -> list[Polygons | RLE]: ...
    def __getitem__(self, index: int | slice) -> Polygons | RLE | list[Polygons | RLE]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, end = self.runs[index].tolist()
        if end > start:
            return {"size": self.sizes[index].tolist(), "counts": self.counts[start:end].tobytes()}
        first, last = self.parts[index].tolist()
        ends = self.ends[first : last + 1].tolist()
        return [self.coordinates[a:b] for a, b in pairwise(ends) if b - a >= LEAST and not (b - a) % 2]

    def of(self, rows: np.ndarray) -> "Masks":
        """Those of the objects `rows`, from the same arrays."""
        some = (self.parts[rows], self.counts, self.runs[rows], self.sizes[rows])
        return Masks(self.coordinates, self.ends, *some)

    @property
    def encoded(self) -> np.ndarray:
        """Bool (n,): which are run-length encodings."""
        found: np.ndarray = self.runs[:, 1] > self.runs[:, 0]
        return found

    @property
    def lengths(self) -> np.ndarray:
        """int64 (p,): numbers of every polygon, of those that are left out as well."""
        return np.diff(self.ends)

    def any_polygon(self, flags: np.ndarray) -> np.ndarray:
        """Bool (n,): whether one of the mask's polygons is flagged; `flags` is bool (p,)."""
        before = np.r_[0, np.cumsum(flags)]
        found: np.ndarray = before[self.parts[:, 1]] > before[self.parts[:, 0]]
        return found

    def whole_polygons(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The polygons of all masks in their order, without those that are left out.

        Returns:
            float64 (m, 2): the points of all; int64 (q,): the first point of each; int64 (n,): how many each mask has.
        """
        first, last = self.parts.T
        polygons = spans(first, last - first)
        lengths = self.lengths[polygons]
        whole = (lengths >= LEAST) & (lengths % 2 == 0)
        numbers = np.bincount(np.repeat(np.arange(len(self)), last - first)[whole], minlength=len(self))
        polygons, lengths = polygons[whole], lengths[whole]
        points = self.coordinates[spans(self.ends[polygons], lengths)].reshape(-1, 2)
        return points, (np.cumsum(lengths) - lengths) // 2, numbers

    def contents(self) -> Iterable[bytes]:
        """Bytes that are the same for the same mask and for no other."""
        starts, ends = self.ends[self.parts].T.tolist() if len(self) else ([], [])
        several = (self.parts[:, 1] - self.parts[:, 0] > 1).tolist()
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if several[i] or start == end:
                mask = self[i]
                yield mask["counts"] if isinstance(mask, dict) else b" ".join(polygon.tobytes() for polygon in mask)
            else:
                yield self.coordinates[start:end].tobytes()


def run_lengths(counts: bytes) -> np.ndarray:
    """int64: the runs of a compressed run-length encoding; raises ValueError for bytes that are none.

    Groups of five bits, the lowest first, have a sixth for "more follow". Numbers are signed, and from the fourth on
    differences from the last but one. Source: pycocotools `maskApi.c` `rleFrString`, which takes any bytes.
    """
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(groups) or groups.min() < 0 or groups.max() > 63:
        raise ValueError("it has other characters than those from 0 to o, or none" if len(groups) else "it is empty")
    ends = np.flatnonzero(groups < 32)
    starts = np.r_[0, ends[:-1] + 1]
    if not len(ends) or ends[-1] != len(groups) - 1 or (lengths := ends - starts + 1).max() > _MOST:
        raise ValueError("it ends within a number, or has one that is too long")
    shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, lengths))
    runs: np.ndarray = np.add.reduceat((groups & 31) << shifts, starts)
    runs -= np.where(groups[ends] & 16, 1 << 5 * lengths, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def compressed(runs: Sequence[np.ndarray]) -> list[bytes]:
    """Run-length encodings of these runs, int64, none above `LONGEST`: `run_lengths` is the way back.

    pycocotools' own, `rleToString`, writes beyond its memory for few runs of 2^24 pixels and more.
    """
    if not runs:
        return []
    differences = [np.r_[of[:3], of[3:] - of[1:-2]] for of in runs]
    numbers = np.concatenate(differences)
    bits = np.frexp(np.where(numbers < 0, ~numbers, numbers).astype(np.float64))[1] + 1
    lengths = -(-bits // 5)
    places = spans(np.zeros_like(lengths), lengths)
    groups = np.repeat(numbers, lengths) >> 5 * places & 31
    groups += np.where(places < np.repeat(lengths, lengths) - 1, 32 + 48, 48)
    text = groups.astype(np.uint8).tobytes()
    ends = np.cumsum(lengths)[np.cumsum([len(of) for of in runs]) - 1].tolist()
    return [text[start:end] for start, end in pairwise([0, *ends])]


def pixels(masks: Sequence[RLE]) -> np.ndarray:
    """float64 (n,): the area of each of these encodings."""
    # pycocotools 2.0.11 counts those of a call in one byte
    parts = [rle.area(list(masks[i : i + 255])) for i in range(0, len(masks), 255)]
    return np.concatenate([np.zeros(0), *parts])


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64: `starts[i]` up to `starts[i] + lengths[i]`, one after the other."""
    found: np.ndarray = np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return found
