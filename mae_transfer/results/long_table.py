"""The long table: one row per run and metric, what every table, statistic and plot is built from. Needs no torch."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mae_transfer.results.data_names import data_names, task_heading
from mae_transfer.run_folder.per_image import sources
from mae_transfer.run_folder.schema import RunRecord

COLUMNS = {
    "run_id": "starts with the time of the run's start",
    "task": "coco, ade20k, imagenet, ..., or pretrain",
    "heading": "the task in a title: COCO of COCO itself, Detection of any other set",
    "transfers": "false for a pre-training",
    "benchmark": "title of the data set that published numbers are of, empty if there is none",
    "controls": "initialisations to compare with, the best first",
    "protocol": "protocol of a task that has some, or method of a pre-training; empty if none",
    "rank": "place of the protocol among those of its task",
    "frozen": "whether the encoder's weights stayed as they were",
    "recipe": "name of the recipe",
    "preset": "full, mini or smoke",
    "data": "name of the data set, with digits of its fingerprint where two sets have one name",
    "data_fingerprint": "of the images, labels and subset",
    "skipped": "number of images that could not be decoded and were skipped",
    "overlap": "number of val images that are training images too",
    "init": "initialisation: random, sup, mae, ...",
    "backbone": "name of the backbone",
    "weights": "fingerprint of the weights, the settings id of this project's own pre-training, or random",
    "fingerprint": "of the weights themselves, None where the record does not say",
    "pretraining": "settings of the weights' own pre-training, where its record is among these; else None",
    "size": "b, l, h, ...; with the image size where classification has other than 224 pixels (h448)",
    "blocks": "trained blocks of partial fine-tuning, else NaN",
    "layer": "0-based number of the only block that a frozen protocol was told to read, else NaN",
    "seed": "seed of the run",
    "draw": "which draw of few labels, 0 where there is one",
    "fraction": "percent of the training images that was trained on",
    "whole_fingerprint": "of the data that the fraction was taken of",
    "settings_id": "of all that may change the metric and is not compared",
    "settings": "the flat settings themselves (one dict is shared by runs of the same id)",
    "blind": "the main metric of a prediction that looks at no image, NaN where the record does not say",
    "classes": "number of classes, NaN where the record does not say",
    "processor": "GPU or CPU",
    "machine": "device and number of processes",
    "hours": "GPU-hours: wall time x processes; on a CPU core-hours: wall time x processes x threads",
    "images_per_second": "of training, NaN if not measured",
    "peak_memory_bytes": "the largest of any process, NaN if not measured",
    "parameters": "of the whole model",
    "encoder_flops": "floating-point operations of one forward pass of the encoder on one image, NaN in old records",
    "folder": "where the record was found, None for one that was not read from a file",
    "per_image": "the record's entry of that name: the file of its results of single images, None if it has none",
    "sources": "metrics that follow from those results, and from which array (`run_folder/per_image.py`)",
    "metric": "name of the metric",
    "value": "its value, NaN if it has none",
    "metric_title": "the metric in a column's head; None for one that the record does not describe",
    "better": "higher or lower",
    "unit": "of the metric",
    "main": "whether runs are judged by it",
    "group": "the table that the metric stands in: empty for the first one, details for none",
}
"""Column -> what it holds."""
_OF_METRIC = ("metric", "value", "metric_title", "better", "unit", "main", "group")
_UNTOLD = {"title": None, "better": "higher", "unit": "", "main": False, "group": ""}


def long_table(records: Iterable[RunRecord], *, details: bool = False) -> pd.DataFrame:
    """One row per run and metric with the columns of `COLUMNS`, in the order of run ids and of a record's metrics.

    details: also metrics with a slash in their names, such as the AP of a class or the top-1 of a head of a sweep.
    """
    ordered = sorted(records, key=lambda record: str(record["run_id"]))
    names = data_names(ordered)
    pretrainings = {
        str(record["settings_id"]): {"backbone": record["backbone"]["name"], **record["settings"]}
        for record in ordered
        if not record["transfers"]
    }
    runs = pd.DataFrame(
        [_run(record, names, pretrainings) for record in ordered], columns=[c for c in COLUMNS if c not in _OF_METRIC]
    )
    metrics = [_metrics(record, details) for record in ordered]
    rows = np.repeat(np.arange(len(ordered)), [len(of_run) for of_run in metrics])
    table = runs.iloc[rows].reset_index(drop=True)
    flat = [of_metric for of_run in metrics for of_metric in of_run]
    for i, column in enumerate(_OF_METRIC):
        kind = float if column == "value" else object  # None is NaN
        table[column] = pd.Series([of_metric[i] for of_metric in flat], dtype=kind)
    return table


def _metrics(record: RunRecord, details: bool) -> list[tuple[Any, ...]]:
    told: dict[str, Any] = {report["key"]: report for report in record["reports"]}
    found = []
    for name, value in record["metrics"].items():
        if details or "/" not in name:
            of = told.get(name, _UNTOLD)
            found.append((name, value, *(of[key] for key in ("title", "better", "unit", "main", "group"))))
    return found


def _run(
    record: RunRecord, names: Mapping[str, str], pretrainings: Mapping[str, Mapping[str, object]]
) -> dict[str, object]:
    backbone, data, settings = record["backbone"], record["data"], record["settings"]
    processor, hours = _cost(record)
    # of pre-trainings by the same settings each seed has weights of its own, which may share a cell
    weights = backbone.get("trained_as") or backbone.get("fingerprint") or "random"
    return {
        "run_id": record["run_id"],
        "task": record["task"],
        "heading": task_heading(record),
        "transfers": record["transfers"],
        "benchmark": record["benchmark"] or "",
        "controls": tuple(record["controls"]),
        "protocol": record["row"]["name"],
        "rank": record["row"]["rank"],
        "frozen": record["row"]["frozen"],
        "recipe": settings.get("recipe", ""),
        "preset": record["preset"],
        "data": names[record["run_id"]],
        "data_fingerprint": data["fingerprint"],
        "skipped": len(data.get("skipped_files") or ()),
        "overlap": data.get("overlap") or 0,
        "init": backbone["init"],
        "backbone": backbone["name"],
        "weights": weights,
        "fingerprint": backbone.get("fingerprint"),
        "pretraining": pretrainings.get(weights),
        "size": _size(backbone["size"], settings),
        "blocks": _blocks(settings.get("model.blocks")),
        "layer": _layer(settings.get("probe.layers")),
        "seed": record["seed"],
        "draw": data.get("draw", 0),
        "fraction": _number(settings.get("data.fraction") or 100),
        "whole_fingerprint": data.get("whole_fingerprint") or data["fingerprint"],
        "settings_id": record["settings_id"],
        "settings": settings,
        "blind": _number(data.get("blind")),
        "classes": _number(data.get("classes")),
        "processor": processor,
        "machine": f"{record.get('device')}, {record.get('world_size', 1)}",
        "hours": hours,
        "images_per_second": _number(record.get("images_per_second")),
        "peak_memory_bytes": _number(record.get("peak_memory_bytes")),
        "parameters": _number(record.get("parameters")),
        "encoder_flops": _number(record.get("encoder_flops")),
        "folder": record.get("folder"),
        "per_image": record.get("per_image"),
        "sources": sources(record["reports"]),
    }


def _size(size: str, settings: Mapping[str, Any]) -> str:
    dense = {"data.mask_suffix", "data.pad_value"} & settings.keys()  # there it is a setting as any other
    whole_images = "protocol" in settings and not dense
    pixels = settings.get("data.image_size") if whole_images else None
    return size if pixels in (None, 224) else f"{size}{pixels}"


def _cost(record: RunRecord) -> tuple[str, float]:
    device, seconds = record.get("device"), record.get("wall_seconds")
    threads = re.fullmatch(r"cpu \((\d+) threads\)", device or "")
    factor = int(threads[1]) if threads else 1
    hours = np.nan if seconds is None else seconds * record.get("world_size", 1) * factor / 3600
    return ("" if device is None else "CPU" if device.startswith("cpu") else "GPU"), hours


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _blocks(value: Any) -> float:
    """The number of trained blocks; NaN where another package's task means something else by the key."""
    return float(value) if isinstance(value, int | float) else np.nan


def _layer(value: Any) -> float:
    return float(value[0]) if isinstance(value, list | tuple) and len(value) == 1 else np.nan
