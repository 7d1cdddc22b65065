"""Read a pickle of numpy arrays, as detectron2's model zoo has them (`.pkl`), without running anything in it.

Only plain containers, numbers and text come out as they are; what a pickle calls to make arrays is replaced by the
stand-ins below, so that neither numpy's constructors nor any other code ever sees what the file says. Any other global
is refused. Old pickles of Python 2 are read as detectron2 reads them (encoding latin1).
"""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

_TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")


def read(path: Path) -> Any:
    """What the file holds, its arrays as tensors. Raises pickle.UnpicklingError, which names a refused global."""
    with path.open("rb") as file:
        return _tensors(_Unpickler(file, encoding="latin1").load(), {})


class _StandIn:
    """A pickle may set the state of whatever it has, also of a class: only instances that expect one take it."""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a state for what has none")


class _Dtype(_StandIn):
    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def real(self) -> np.dtype:
        if self.code not in _TYPES or self.order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"arrays of type {self.code!r}")
        return np.dtype(self.order + self.code)


class _Array(_StandIn):
    """Before its state comes: empty."""

    def __init__(self, *_: Any) -> None:
        self.value: np.ndarray = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, columns_first, data = state
        self.fill(data, dtype, shape, "F" if columns_first else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        raw = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(raw, (bytes, bytearray)) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
            raise pickle.UnpicklingError("an array without its bytes")
        kind = dtype.real()
        if math.prod(shape) * kind.itemsize != len(raw):
            raise pickle.UnpicklingError(f"an array of shape {shape} in {len(raw)} bytes")
        self.value = np.frombuffer(raw, kind).reshape(shape, order=order)


class _FromBuffer(_StandIn):
    """`numpy.core.numeric._frombuffer` of protocol 5."""

    def __new__(cls, data: object, dtype: object, shape: object, order: object) -> Any:
        if not isinstance(data, (bytes, bytearray, pickle.PickleBuffer)):
            raise pickle.UnpicklingError("an array without its bytes")  # bytes(number) would make as many
        array = _Array()
        array.fill(bytes(data), dtype, shape, order)
        return array


class _Encode(_StandIn):
    """`_codecs.encode`, with which protocol 2 writes bytes."""

    def __new__(cls, text: object, encoding: object) -> Any:
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError(f"text in {encoding!r}")
        return text.encode("latin1")


_KNOWN = {
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _Encode,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FromBuffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return _KNOWN[module, name]


def _tensors(value: object, seen: dict[int, object]) -> object:
    """seen: what has become of each object, by its id; a file may name one any number of times."""
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, _Array):
        seen[id(value)] = torch.from_numpy(value.value.astype(value.value.dtype.newbyteorder("=")))
    elif isinstance(value, Mapping):
        result: dict[object, object] = {}
        seen[id(value)] = result
        result.update({key: _tensors(item, seen) for key, item in value.items()})
    elif isinstance(value, (list, tuple)):
        items: list[object] = []
        seen[id(value)] = items
        items.extend(_tensors(item, seen) for item in value)
    else:
        return value
    return seen[id(value)]
