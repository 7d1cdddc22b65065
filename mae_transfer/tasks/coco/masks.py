"""The masks of many objects in few arrays, each built when it is asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, overload

import numpy as np

Polygons = list[np.ndarray]
RLE = dict[str, Any]
LEAST = 6
"""Numbers of a polygon: three points."""


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
        polygons = _spans(first, last - first)
        lengths = self.lengths[polygons]
        whole = (lengths >= LEAST) & (lengths % 2 == 0)
        numbers = np.bincount(np.repeat(np.arange(len(self)), last - first)[whole], minlength=len(self))
        polygons, lengths = polygons[whole], lengths[whole]
        points = self.coordinates[_spans(self.ends[polygons], lengths)].reshape(-1, 2)
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


def _spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64: `starts[i]` up to `starts[i] + lengths[i]`, one after the other."""
    found: np.ndarray = np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return found
