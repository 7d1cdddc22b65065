"""Results of single val images, kept beside a run's record, so that two runs can be compared image by image.

`per_image.npz` holds arrays of a row per image, sorted by image: `ids` (the file name, as bytes), and

    classification  correct bool (n,): the highest score was the image's own class
    ADE20K          sparse counts of pixels, one entry per image and class that occurs in label or prediction:
                    image int32 (m,) row of the image, label int32 (m,), intersection and union int64 (m,)
    COCO            detections, each image's by falling score, and objects that are no crowd: detection_image,
                    detection_label, object_image, object_label int32, score float32; for box and mask uint16 (m,) with
                    a bit for each overlap of 0.50, 0.55 .. 0.95, whether the detection matched an object (box_matched)
                    or only lies on a crowd (box_ignored)
    another task    what it likes; of an array (n,) of numbers or bools the metric may be the mean that says so

A metric's report says by `per_image` what it follows from: the name of an array, of which it is the mean (in percent of
bools), `iou`, the mean over classes of the counts, or `box` or `mask`, COCO's AP (`matches.py`). Where no report does,
the main metric is that of `correct` or of the counts, as in records of earlier versions.

The record names the file and its SHA-256: a file of another evaluation than the record's is found out. Needs no torch.
"""

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write
from mae_transfer.run_folder.schema import Report

FILE = "per_image.npz"
COUNTS = ("image", "label", "intersection", "union")
IOU = "iou"
"""`per_image` of a metric that is the mean over classes of intersection over union, in percent."""
DETECTIONS = ("detection_image", "detection_label", "score")
OBJECTS = ("object_image", "object_label")
KINDS = ("box", "mask")
"""`per_image` of metrics that are COCO's AP."""
CLASSES = 65536
"""Labels are below; a mask has at most 16 bits."""
Arrays: TypeAlias = Mapping[str, np.ndarray]
# What numpy and the zip reader raise for bytes that are no such file.
_BROKEN = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    EOFError,
    OSError,
    SyntaxError,
    RuntimeError,
    MemoryError,
    OverflowError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


def correct_images(parts: Iterable[tuple[Sequence[str], np.ndarray]]) -> Arrays:
    """The arrays of a classification from the names and bool (n,) of each process, in any order."""
    parts = list(parts)
    ids = _ids([name for names, _ in parts for name in names])
    correct = np.concatenate([np.zeros(0, bool), *(part for _, part in parts)])
    order = np.argsort(ids, kind="stable")
    return {"ids": ids[order], "correct": correct[order]}


def segmented_images(parts: Iterable[tuple[Sequence[str], np.ndarray, np.ndarray]]) -> Arrays:
    """The arrays of a segmentation from the names and dense int64 (n, K) intersections and unions of each process."""
    parts = [part for part in parts if len(part[0])]
    ids = _ids([name for names, _, _ in parts for name in names])
    order = np.argsort(ids, kind="stable")
    if not parts:
        none = np.zeros(0, np.int64)
        return {"ids": ids, "image": none, "label": none, "intersection": none, "union": none}
    intersection, union = (np.concatenate([part[i] for part in parts])[order] for i in (1, 2))
    image, label = np.nonzero(union)
    return {
        "ids": ids[order],
        "image": image.astype(np.int32),
        "label": label.astype(np.int32),
        "intersection": intersection[image, label],
        "union": union[image, label],
    }


def _ids(names: Sequence[str]) -> np.ndarray:
    return np.array([name.encode("utf-8", "surrogateescape") for name in names], dtype=np.bytes_)


def write_per_image(folder: Path, arrays: Arrays) -> dict[str, object]:
    """Write the file atomically; what the record says of it. The same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    with atomic_write(folder / FILE) as file:
        file.write(content)
    return {"file": FILE, "sha256": hashlib.sha256(content).hexdigest(), "images": len(arrays["ids"])}


def read_per_image(folder: Path, entry: Mapping[str, Any]) -> Arrays:
    """The arrays that a record's `per_image` names; UserError when the file is not there or not that of the record."""
    path = folder / entry["file"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; restore it beside its record") from error
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise UserError(f"{path} is not the file that its record names; evaluate the run again by --eval-only")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        _check(arrays)
        return arrays
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is no file of per-image results ({reason}); evaluate the run again") from error


def _check(arrays: Arrays) -> None:
    """Raise KeyError or ValueError if the arrays of a classification or a segmentation are not what they should be."""
    ids = arrays["ids"]
    if ids.dtype.kind != "S" or ids.ndim != 1:
        raise ValueError("ids are no names")
    if "score" in arrays and "object_image" in arrays:
        return _check_matches(arrays)
    names = ("correct",) if "correct" in arrays else COUNTS if arrays.keys() & {*COUNTS} else ()
    columns = [arrays[name] for name in names]
    if any(array.shape != (len(columns[0]),) for array in columns):
        raise ValueError("its arrays differ in length")
    if not names:
        return
    if names == ("correct",):
        if columns[0].dtype != bool or len(ids) != len(columns[0]):
            raise ValueError("correct is no truth of each image")
        return
    image, label, intersection, union = columns
    if any(array.dtype.kind not in "iu" or (array < 0).any() for array in columns):
        raise ValueError("its counts are no whole numbers from 0")
    if (image >= len(ids)).any() or (label >= CLASSES).any() or (intersection > union).any():
        raise ValueError("its counts contradict each other")


def _check_matches(arrays: Arrays) -> None:
    """Raise KeyError or ValueError if the arrays of detections are not what they should be."""
    kinds = [kind for kind in KINDS if f"{kind}_matched" in arrays]
    bits = [f"{kind}_{what}" for kind in kinds for what in ("matched", "ignored")]
    for names in ((*DETECTIONS, *bits), OBJECTS):
        if any(arrays[name].shape != arrays[names[0]].shape or arrays[name].ndim != 1 for name in names):
            raise ValueError("its arrays differ in length")
    whole = [arrays[name] for name in (*DETECTIONS[:2], *bits, *OBJECTS)]
    if any(array.dtype.kind not in "iu" or (array < 0).any() for array in whole):
        raise ValueError("its matches are no whole numbers from 0")
    images, labels = ([arrays[f"{of}_{what}"] for of in ("detection", "object")] for what in ("image", "label"))
    if any((array >= len(arrays["ids"])).any() for array in images) or any((a >= CLASSES).any() for a in labels):
        raise ValueError("its matches contradict each other")
    if arrays["score"].dtype.kind != "f" or not np.isfinite(arrays["score"]).all():
        raise ValueError("its scores are no finite numbers")


def sources(reports: Iterable[Report]) -> dict[str, str]:
    """Metric -> what it follows from, by its `per_image`; empty for the main one where no report says anything."""
    reports = list(reports)
    told = {report["key"]: report["per_image"] for report in reports if report.get("per_image")}
    main = next((report for report in reports if report["main"]), None)
    percent = main is not None and (main["unit"], main["better"]) == ("%", "higher")
    return told or ({main["key"]: ""} if main is not None and percent else {})


def known_source(arrays: Arrays, source: str) -> str | None:
    """The source if the file has it; of an empty one the known arrays that are there. None if there is nothing."""
    found = source or ("correct" if "correct" in arrays else IOU)
    array = COUNTS[-1] if found == IOU else f"{found}_matched" if found in KINDS else found
    return found if array in arrays else None


def values_of(arrays: Arrays, name: str) -> np.ndarray:
    """An array of which a metric is the mean, bool or float64 (n,).

    Raises:
        UserError: it is no finite number, or no bool, for each image.
    """
    array = arrays[name]
    if array.shape != (len(arrays["ids"]),) or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise UserError(f"the per-image array {name} is no finite number for each image; evaluate the run again")
    return array if array.dtype == bool else array.astype(np.float64)


def mean_iou(arrays: Arrays) -> float:
    """In percent, over the classes that occur; NaN if none does."""
    intersection, union = dense(arrays, 1 + int(arrays["label"].max(initial=0)))
    total = union.sum(0)
    occurs = total > 0
    return 100 * float(np.mean(intersection.sum(0)[occurs] / total[occurs])) if occurs.any() else np.nan


def dense(arrays: Arrays, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Intersections and unions of a segmentation as int64 (n, K)."""
    found = np.zeros((2, len(arrays["ids"]), num_classes), np.int64)
    for values, name in zip(found, ("intersection", "union"), strict=True):
        values[arrays["image"], arrays["label"]] = arrays[name]
    return found[0], found[1]


def same_images(one: Arrays, other: Arrays) -> bool:
    """Whether both have the same images, each once: row i of one is then row i of the other."""
    return len(np.unique(one["ids"])) == len(one["ids"]) and np.array_equal(one["ids"], other["ids"])
