"""The grid of patches that an image is cut into."""

from mae_transfer.errors import UserError

Grid = tuple[int, int]
"""Tokens (or pixels) down and across."""


def pair(size: int | Grid) -> Grid:
    """Height and width of a size that is one number for a square."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def grid_of(
    size: int | Grid, patch: int, name: str, *, what: str = "image size ", least: int = 1, hint: str = ""
) -> Grid:
    """Patches down and across of an image.

    Args:
        size: pixels, one number for a square.
        name: the backbone, for the message.
        what: what gives the size, such as `data.image_size=`.
        least: the fewest patches of a side.
        hint: what else could be done, after the sizes that fit.

    Raises:
        UserError: a side that is no multiple of the patch, or too short; the line names the nearest sizes that fit.
    """
    sides = pair(size)
    if any(side % patch or side < least * patch for side in sides):
        low = [side // patch * patch for side in sides]
        high = [max(-(-side // patch), least) * patch for side in sides]
        fitting = [each for each in (low, high) if min(each) >= least * patch]
        near = " or ".join(dict.fromkeys(_text(each, size) for each in fitting))
        few = f", at least {least} of them" if least > 1 else ""
        raise UserError(
            f"{what}{_text(sides, size)} is no multiple of the patch {patch} of {name}{few}; use {near}{hint}"
        )
    return sides[0] // patch, sides[1] // patch


def text(grid: Grid) -> str:
    """`14x14`."""
    return f"{grid[0]}x{grid[1]}"


def _text(sides: Grid | list[int], size: int | Grid) -> str:
    return str(sides[0]) if isinstance(size, int) else f"{sides[0]}x{sides[1]}"
