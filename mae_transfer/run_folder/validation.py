"""All checks of the records below a folder and of the files beside them. Needs no torch."""

from pathlib import Path

import numpy as np

from mae_transfer.errors import UserError
from mae_transfer.run_folder.per_image import Arrays, dense, read_per_image
from mae_transfer.run_folder.record import find_records

TOLERANCE = 1e-6
"""Percent, between a metric and the same from the results of single images."""


def validate(folder: Path) -> tuple[int, list[str]]:
    """How many runs have a right record, and a line for each thing that is wrong, with the path in it."""
    records, problems = find_records(folder)
    right = 0
    for record in records:
        try:
            per_image = record.get("per_image")
            if per_image is not None:
                run = Path(record["folder"])
                _check_metric(run, record["metrics"], read_per_image(run, per_image))
            right += 1
        except UserError as error:
            problems.append(str(error))
    return right, problems


def _check_metric(run: Path, metrics: dict[str, float | None], images: Arrays) -> None:
    """UserError unless the results of single images give the record's metric."""
    if "correct" in images:
        name, value = "top1", 100 * float(images["correct"].mean())
    else:
        intersection, union = dense(images, 1 + int(images["label"].max(initial=0)))
        total = union.sum(0)
        name, value = "mIoU", 100 * float(np.mean((intersection.sum(0) / np.where(total, total, 1))[total > 0]))
    recorded = metrics.get(name)
    if recorded is None or abs(recorded - value) > TOLERANCE:
        raise UserError(
            f"{run / 'record.json'} says {name} {recorded}, its per-image results {value}: evaluate it again"
        )
