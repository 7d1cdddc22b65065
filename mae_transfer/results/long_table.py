"""The long table: one row per run and metric, what every table, statistic and plot is built from. Needs no torch."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

COLUMNS = {
    "run_id": "starts with the time of the run's start",
    "task": "coco, ade20k, imagenet, ..., or pretrain",
    "kind": "protocol of image classification (finetune, linear, ...) or method of a pre-training; empty if none",
    "frozen": "whether the encoder's weights stayed as they were, as the record says",
    "recipe": "name of the recipe",
    "preset": "full, mini or smoke",
    "data": "name of the data set",
    "data_fingerprint": "of the images, labels and subset",
    "init": "initialisation: random, sup, mae, ...",
    "backbone": "name of the backbone",
    "weights": "fingerprint of the weights, the protocol id of this project's own pre-training, or random",
    "size": "b, l, h, ...; with the image size where classification has other than 224 pixels (h448)",
    "blocks": "trained blocks of partial fine-tuning, else NaN",
    "seed": "seed of the run",
    "draw": "which draw of few shots, 0 where there is one",
    "protocol_id": "of all that may change the metric and is not compared",
    "protocol": "the flat protocol itself (one dict is shared by runs of the same id)",
    "blind": "top-1 in percent of naming the commonest class, NaN where the record does not say",
    "classes": "number of classes, NaN where the record does not say",
    "processor": "GPU or CPU",
    "hours": "GPU-hours: wall time x processes; on a CPU core-hours: wall time x processes x threads",
    "peak_memory_bytes": "the largest of any process, NaN if not measured",
    "parameters": "of the whole model",
    "encoder_flops": "floating-point operations of one forward pass of the encoder on one image, NaN in old records",
    "folder": "where the record was found, None for one that was not read from a file",
    "per_image": "the record's entry of that name: the file of its results of single images, None if it has none",
    "metric": "name of the metric",
    "value": "its value, NaN if it has none",
}
"""Column -> what it holds."""


def long_table(records: Iterable[Mapping[str, Any]], *, details: bool = False) -> pd.DataFrame:
    """One row per run and metric with the columns of `COLUMNS`, in the order of run ids and of a record's metrics.

    details: also metrics with a slash in their names, such as the AP of a class or the top-1 of a head of a sweep.
    """
    ordered = sorted(records, key=lambda record: str(record["run_id"]))
    runs = pd.DataFrame([_run(record) for record in ordered], columns=[c for c in COLUMNS if c not in _OF_METRIC])
    metrics = [
        [(name, value) for name, value in record["metrics"].items() if details or "/" not in name] for record in ordered
    ]
    rows = np.repeat(np.arange(len(ordered)), [len(of_run) for of_run in metrics])
    flat = [pair for of_run in metrics for pair in of_run]
    table = runs.iloc[rows].reset_index(drop=True)
    table["metric"] = pd.Series([name for name, _ in flat], dtype=object)
    table["value"] = np.array([value for _, value in flat], dtype=float)  # None is NaN
    return table


_OF_METRIC = ("metric", "value")


def _run(record: Mapping[str, Any]) -> dict[str, Any]:
    backbone, data, protocol = record["backbone"], record["data"], record["settings"]
    processor, hours = _cost(record)
    return {
        "run_id": record["run_id"],
        "task": record["task"],
        "kind": protocol.get("protocol") or protocol.get("method") or "",
        "frozen": record["row"]["frozen"],
        "recipe": protocol.get("recipe", ""),
        "preset": record["preset"],
        "data": data["name"],
        "data_fingerprint": data["fingerprint"],
        "init": backbone["init"],
        "backbone": backbone["name"],
        # of pre-trainings by one protocol each seed has weights of its own, which may share a cell
        "weights": backbone.get("trained_as") or backbone.get("fingerprint") or "random",
        "size": _size(backbone["size"], protocol),
        "blocks": _number(protocol.get("model.blocks")),
        "seed": record["seed"],
        "draw": data.get("draw", 0),
        "protocol_id": record["settings_id"],
        "protocol": protocol,
        "blind": _number(data.get("blind")),
        "classes": _number(data.get("classes")),
        "processor": processor,
        "hours": hours,
        "peak_memory_bytes": _number(record.get("peak_memory_bytes")),
        "parameters": _number(record.get("parameters")),
        "encoder_flops": _number(record.get("encoder_flops")),
        "folder": record.get("folder"),
        "per_image": record.get("per_image"),
    }


def _size(size: str, protocol: Mapping[str, Any]) -> str:
    pixels = protocol.get("data.image_size") if "protocol" in protocol else None
    return size if pixels in (None, 224) else f"{size}{pixels}"


def _cost(record: Mapping[str, Any]) -> tuple[str, float]:
    device, seconds = record.get("device"), record.get("wall_seconds")
    threads = re.fullmatch(r"cpu \((\d+) threads\)", device or "")
    factor = int(threads[1]) if threads else 1
    hours = np.nan if seconds is None else seconds * record.get("world_size", 1) * factor / 3600
    return ("" if device is None else "CPU" if device.startswith("cpu") else "GPU"), hours


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
