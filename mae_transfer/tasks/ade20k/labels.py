"""Classes by name and by mask value.

Mask values become classes as by mmsegmentation's `reduce_zero_label`, but that a value which is no class is an error
here: there it is dropped from the ground truth, still counts as a prediction, or wraps around in uint8.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from mae_transfer.data.images import ImageError
from mae_transfer.errors import UserError
from mae_transfer.files import user_path
from mae_transfer.tasks.ade20k.config import PairsConfig
from mae_transfer.tasks.ade20k.mask_files import read_mask
from mae_transfer.tasks.ade20k.transforms import IGNORE

_OUTSIDE = -2


def class_names(config: PairsConfig) -> list[str]:
    """One name per class; of a file with columns apart by tabs the last."""
    if config.class_names is None:
        if config.num_classes != 150:
            return [f"class {i}" for i in range(config.num_classes)]
        from mmseg.utils import ade_classes

        return [name.strip() for name in ade_classes()]
    path = user_path(config.class_names)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} (data.class_names) cannot be read ({error}); give a text file") from None
    names = [line.rsplit("\t", 1)[-1].strip() for line in lines if line.strip()]
    if len(names) != config.num_classes:
        raise UserError(
            f"{path} (data.class_names) has {len(names)} names and data.num_classes is {config.num_classes}; "
            "give one line per class"
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path} (data.class_names) has {repeated[0]!r} more than once; names must differ")
    return names


class Labels:
    """Mask values -> classes 0 .. K-1 or IGNORE, by a table of all 16-bit values."""

    def __init__(self, config: PairsConfig) -> None:
        first = 1 if config.reduce_zero_label else 0
        self.allowed = f"{first}..{first + config.num_classes - 1}"
        table = np.full(65536, _OUTSIDE, dtype=np.int16)
        table[first : first + config.num_classes] = np.arange(config.num_classes)
        ignored = {0} if config.reduce_zero_label else set()
        ignored |= set() if config.ignore_value is None else {config.ignore_value}
        self.ignored = sorted(ignored)
        table[self.ignored] = IGNORE
        self.table = table

    def read(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        """A mask file as int16 (height, width) classes or IGNORE; errors are those of `read_values`."""
        label: np.ndarray = self.table[self.read_values(path, size)]
        return label

    def read_values(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        """A mask file as uint16 (height, width); ImageError names the first value that is no class."""
        values = read_mask(path)
        if values.shape != size:
            raise ImageError(f"{path}: the mask is no longer {size[1]}x{size[0]}; restart after changing the data")
        if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > 65535):
            self._reject(path, values, (values < 0) | (values > 65535))
        values = values.astype(np.uint16, copy=False)
        outside = self.table[values] == _OUTSIDE
        if outside.any():
            self._reject(path, values, outside)
        return values

    def _reject(self, path: Path, values: np.ndarray, outside: np.ndarray) -> None:
        row, column = (int(i) for i in np.argwhere(outside)[0])
        ignored = f" or ignored ({', '.join(map(str, self.ignored))})" if self.ignored else ""
        raise ImageError(
            f"{path}: value {int(values[row, column])} at row {row}, column {column}; values must be {self.allowed}"
            f"{ignored}: set data.num_classes, data.ignore_value and data.reduce_zero_label to fit the masks"
        )
