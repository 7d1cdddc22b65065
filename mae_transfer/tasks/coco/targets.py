"""What a training target must hold, checked on the CPU."""

from collections.abc import Sequence
from typing import Any

from mae_transfer.errors import UserError


def check_targets(targets: Sequence[dict[str, Any]], names: Sequence[str], num_classes: int) -> None:
    """Raises UserError if a target has an empty box or a class outside 0 .. K-1."""
    for target, name in zip(targets, names, strict=True):
        boxes, classes = target["boxes"], target["classes"]
        if not bool((boxes[:, 2:] > boxes[:, :2]).all()):
            raise UserError(f"a target of image {name} has a box of no area: drop it from the annotations")
        if not bool(((classes >= 0) & (classes < num_classes)).all()):
            raise UserError(
                f"a target of image {name} has a class outside 0..{num_classes - 1}: "
                "check the categories of the annotations"
            )
