"""All checks of the records below a folder and of the files beside them. Needs no torch."""

from pathlib import Path

import numpy as np

from mae_transfer.errors import UserError
from mae_transfer.run_folder.matches import AveragePrecision
from mae_transfer.run_folder.per_image import (
    FILE,
    IOU,
    KINDS,
    Arrays,
    known_source,
    mean_iou,
    read_per_image,
    sources,
    values_of,
)
from mae_transfer.run_folder.record import read_records
from mae_transfer.run_folder.schema import RunRecord

TOLERANCE = 1e-6
"""Percent, between a metric and the same from counts of single images."""
ROUNDING = 1e-5
"""The same where single images have fractions, of which a run may have taken the mean in single precision."""


def validate(folder: Path) -> tuple[int, list[str]]:
    """How many runs have a right record, and a line for each thing that is wrong, with the path in it."""
    records, problems = read_records(folder)
    right = 0
    for record in records:
        try:
            per_image = record.get("per_image")
            if per_image is not None:
                run = Path(record["folder"])
                _check_metrics(run, record, read_per_image(run, per_image))
            right += 1
        except UserError as error:
            problems.append(str(error))
    return right, problems


def _check_metrics(run: Path, record: RunRecord, images: Arrays) -> None:
    """UserError unless the results of single images give the record's metrics that follow from them.

    Of arrays that no metric is said to follow from, the hash alone is known.
    """
    for metric, source in sources(record["reports"]).items():
        known = known_source(images, source)
        if known is None and source in KINDS and metric not in record["metrics"]:
            continue  # a set of boxes alone
        if known is None and source:
            raise UserError(f"{run / FILE} has no array for {metric} ({source}): evaluate the run again by --eval-only")
        if known is None:
            continue
        value, tolerance = _value(run, images, known)
        recorded = record["metrics"].get(metric)
        if recorded is None or not abs(recorded - value) <= tolerance:
            raise UserError(
                f"{run / 'record.json'} says {metric} {recorded}, its per-image results {value}: evaluate it again"
            )


def _value(run: Path, images: Arrays, source: str) -> tuple[float, float]:
    """A metric by the results of single images, and how far the record's may be from it."""
    if source == IOU:
        return mean_iou(images), TOLERANCE
    if source in KINDS:
        return float(AveragePrecision(images, source)(np.ones((1, len(images["ids"])), bool))[0]), TOLERANCE
    try:
        values = values_of(images, source)
    except UserError as error:
        raise UserError(f"{run / FILE}: {error}") from None
    mean = float(values.mean()) if len(values) else np.nan
    return (100 * mean, TOLERANCE) if values.dtype == bool else (mean, ROUNDING * max(1.0, abs(mean)))
