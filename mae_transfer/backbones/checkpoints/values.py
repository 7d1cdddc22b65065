"""Values that a configuration or a run states of its weights, checked before they are taken over."""

import math
from collections.abc import Mapping
from typing import Any

from mae_transfer.errors import UserError


def whole(value: object, what: str) -> int:
    """A whole number above 0, as it is; raises UserError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**20:
        raise UserError(f"{what} is {told(value)}; give a whole number above 0.")
    return value


def flag(value: object, what: str) -> bool:
    """True or false, as it is; raises UserError for anything else."""
    if not isinstance(value, bool):
        raise UserError(f"{what} is {told(value)}; give true or false.")
    return value


def epsilon(value: Any, what: str) -> float:
    """The eps of a LayerNorm, between 0 and 1."""
    if not number(value) or not 0 < value < 1:
        raise UserError(f"{what} is {told(value)}; give a number above 0 and below 1, such as 1e-6.")
    return float(value)


def size(value: object, what: str) -> tuple[int, int]:
    """Height and width in pixels, of one number or two."""
    pair = [value, value] if isinstance(value, int) else value
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise UserError(f"{what} is {told(value)}; give pixels, one number or height and width.")
    return whole(pair[0], what), whole(pair[1], what)


def statistics(stated: Mapping[str, object], what: str, channels: int = 3) -> dict[str, tuple[float, ...]]:
    """Those of `mean` and `std` that are stated, for pixels in 0..1; one number stands for all channels."""
    found = {}
    for part in [part for part in ("mean", "std") if part in stated]:
        value = stated[part]
        each = [value] * channels if number(value) else value
        if isinstance(each, (list, tuple)) and len(each) == 1:
            each = list(each) * channels
        if not isinstance(each, (list, tuple)) or len(each) != channels or not all(number(one) for one in each):
            raise UserError(f"{what} {part} is {told(value)}; give a number for each of {channels} channels, or one.")
        if part == "std" and not all(one > 0 for one in each):
            raise UserError(f"{what} std is {told(value)}; give numbers above 0.")
        if any(abs(one) > 2 for one in each):
            raise UserError(f"{what} {part} is {told(value)}, for pixels of 0 to 255; divide it by 255.")
        found[part] = tuple(float(one) for one in each)
    return found


def told(value: object) -> str:
    """The value for a message, cut."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)
