"""Stored configurations and settings of earlier versions, under today's names."""

from collections.abc import Mapping
from typing import Any


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """The nested configuration of a run of any version, under today's names; the argument is left as it is."""
    values, task = dict(values), values.get("task")
    engine = values.pop("engine", None)
    if isinstance(values.get("model"), dict):
        values["model"] = dict(values["model"])
        if engine is not None and task == "coco":
            values["model"]["implementation"] = engine
        if task == "ade20k":
            values["model"].pop("norm", None)  # nothing read it
    return values


def renamed_settings(settings: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The flat settings of a record of any version, under today's names."""
    settings = dict(settings)
    engine = settings.pop("engine", None)
    if engine is not None and task == "coco":
        settings["model.implementation"] = engine
    if task == "ade20k":
        settings.pop("model.norm", None)
    return settings
