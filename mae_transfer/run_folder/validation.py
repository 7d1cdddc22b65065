"""All checks of the records below a folder and of the files beside them. Needs no torch."""

import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from mae_transfer.config.old_names import renamed, renamed_settings
from mae_transfer.config.overrides import flatten
from mae_transfer.config.yaml import read_yaml
from mae_transfer.errors import UserError
from mae_transfer.files import damaged_member, reading
from mae_transfer.run_folder.matches import AveragePrecision
from mae_transfer.run_folder.metrics import read_metrics
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

_NOT_OF_CONFIG = ("data_fingerprint", "norm_batch", "pos_resampling", "window_padding", "tokenizer.kind")
"""Settings that are no field of the configuration, or not as it has them."""
_ABSENT = object()
TOLERANCE = 1e-6
"""Percent, between a metric and the same from counts of single images."""
ROUNDING = 1e-5
"""The same where single images have fractions, of which a run may have taken the mean in single precision."""


def validate(folder: Path) -> tuple[int, list[str]]:
    """How many runs have a right record and right files beside it, and a line for each thing that is wrong, with the
    path in it.

    Checkpoints are read whole, for their checksums. A file that is not there is not missed, but for results of single
    images.
    """
    records, problems = read_records(folder)
    right = 0
    for record in records:
        found = _problems(Path(record["folder"]), record)
        problems += found
        right += not found
    return right, problems


def _problems(run: Path, record: RunRecord) -> list[str]:
    checks = [partial(check, run, record) for check in (_check_images, _check_config, _check_history)]
    checks += [partial(_check_checkpoint, path) for path in sorted((run / "checkpoints").glob("step_*.pt"))]
    found = []
    for check in checks:
        try:
            check()
        except UserError as error:
            found.append(str(error))
    return found


def _check_config(run: Path, record: RunRecord) -> None:
    path = run / "config.yaml"
    if not path.exists():
        return
    config = flatten(renamed(read_yaml(path, "the run's configuration")))
    settings = renamed_settings(record["settings"], record["task"])
    settings = {key: value for key, value in settings.items() if key not in _NOT_OF_CONFIG}
    unlike = [key for key, value in settings.items() if config.get(key, _ABSENT) != value]
    if unlike:
        raise UserError(
            f"{path} is not the configuration of the record beside it: {len(unlike)} of {len(settings)} settings "
            f"differ or are missing, such as {unlike[0]}; restore it or delete it"
        )


def _check_history(run: Path, record: RunRecord) -> None:
    """A kill may cut the last line of a run that goes on, and none of one that has a record."""
    path, steps = run / "metrics.jsonl", record.get("steps", 0)
    if not path.exists():
        return
    last = max((line["step"] for line in read_metrics(run)), default=0)
    with reading(path):
        whole = path.read_bytes()[-1:] in (b"", b"\n")
    if not whole or last < steps:
        raise UserError(f"{path} ends after step {last} of {steps}: restore it or delete it")


def _check_checkpoint(path: Path) -> None:
    try:
        damaged = damaged_member(path)
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"checkpoint {path} cannot be read ({reason}): restore it or delete it") from error
    if damaged:
        raise UserError(f"checkpoint {path}: {damaged} fails its checksum: restore it or delete it")


def _check_images(run: Path, record: RunRecord) -> None:
    per_image = record.get("per_image")
    if per_image is not None:
        _check_metrics(run, record, read_per_image(run, per_image))


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
