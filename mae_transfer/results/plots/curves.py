"""Plots of one run from its record: losses, metric and learning rate over the epochs. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from mae_transfer.config.schedule import Schedule
from mae_transfer.config.sections import ScheduleConfig
from mae_transfer.results.plots.figure import Plot, Series

POINTS = 240
"""Of a learning-rate curve."""


def curve_plots(record: Mapping[str, object], steps: Sequence[Mapping[str, object]] = ()) -> list[Plot]:
    """Those of losses, metric and learning rate that the run has; `steps` are lines of its metrics.jsonl."""
    plots = (loss_plot(record, steps), metric_plot(record), schedule_plot(record))
    return [plot for plot in plots if plot is not None]


def shows_steps(record: Mapping[str, Any]) -> bool:
    """Whether the losses of steps may be shown: there are fewer than three epochs."""
    return len(_epochs(record)) < 3


def _epochs(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [line for line in record.get("history") or [] if "loss" in line]


def loss_plot(record: Mapping[str, Any], steps: Sequence[Mapping[str, Any]] = ()) -> Plot | None:
    """The mean of each loss over each epoch, or the losses of the steps while there are fewer than three epochs."""
    lines = _epochs(record)
    of_steps = [line for line in steps if "loss" in line]
    if shows_steps(record) and len(of_steps) > len(lines):
        lines = of_steps
    if not lines:
        return None
    names = [name for name in lines[0] if name.startswith("loss")]
    if len(names) == 2:  # the only part of a sum is the sum
        names = names[:1]
    found = []
    for name in names:
        points = [(line["epoch"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            x, y = zip(*points, strict=True)
            found.append(Series(name, x, y))
    if not found:
        return None
    return Plot("loss", "Training loss", "epoch", "loss", tuple(found), ("epoch", "loss"))


def metric_plot(record: Mapping[str, Any]) -> Plot | None:
    """What the run is judged by, at each evaluation during the training and at the end."""
    history = record.get("history") or []
    evaluations = [(line["epoch"], line["eval"]) for line in history if line.get("eval")]
    if history:
        evaluations.append((history[-1]["epoch"], record["metrics"]))
    names = {report["key"]: report["title"] for report in record["reports"] if report["main"]}
    if not record["transfers"] or not names:
        names = {name: name for _, metrics in evaluations for name in metrics}
    found = []
    for name, title in names.items():
        points = {epoch: metrics[name] for epoch, metrics in evaluations if metrics.get(name) is not None}
        if len(points) > 1:
            found.append(Series(title, tuple(points), tuple(points.values())))
    if not found:
        return None
    return Plot("metric", "Evaluation during training", "epoch", "metric", tuple(found), ("epoch", "metric"))


def schedule_plot(record: Mapping[str, Any]) -> Plot | None:
    """The learning rate by the recipe's formula, and the values that the run wrote down; None for a run of no steps.

    Where layers have rates of their own this is the largest, that of the head.
    """
    settings, total = record["settings"], record.get("steps") or 0
    keys = {name: f"schedule.{name}" for name in ScheduleConfig.model_fields}
    images = record["data"].get("train_images")
    if total < 2 or not images or not {*keys.values(), "optim.lr", "train.global_batch"} <= settings.keys():
        return None
    config = ScheduleConfig(**{name: settings[key] for name, key in keys.items()})
    per_epoch = images / settings["train.global_batch"]
    warmup = config.warmup_steps if config.warmup_steps is not None else config.warmup_epochs * per_epoch
    schedule = Schedule(total, float(warmup), config)
    at = sorted({round(i * (total - 1) / (POINTS - 1)) for i in range(POINTS)})
    rates = tuple(settings["optim.lr"] * schedule.factor(step) for step in at)
    found = [Series("by the recipe", tuple((step + 1) / per_epoch for step in at), rates)]
    lines = [line for line in record.get("history") or [] if line.get("lr") is not None]
    if lines:
        x, y = tuple(line["step"] / per_epoch for line in lines), tuple(line["lr"] for line in lines)
        found.append(Series("in the run", x, y, line=False))
    return Plot(
        "learning-rate", "Learning rate", "epoch", "learning rate", tuple(found), ("epoch", "lr"), markers=len(at) < 30
    )
