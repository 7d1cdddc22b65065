"""Stored configurations of earlier versions, under today's names."""

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
