"""The search that a recipe documents (its section `search`): a run for every combination of values, then a table.

Published rows of both dense tasks come from such a search, chosen on the very set that the metric is of; a new kind of
initialisation owes itself the same.
"""

import itertools
import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from mae_transfer.config.load import search_grid
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.distributed import make_fabric, on_rank_zero, shut_down
from mae_transfer.engine.progress import console
from mae_transfer.errors import DivergedError, UserError
from mae_transfer.results.tables.build import METRICS
from mae_transfer.results.tables.classification import ACCURACY
from mae_transfer.run_folder.folder import check_same_recipe
from mae_transfer.run_folder.record import make_protocol, read_record
from mae_transfer.runs.run import default_output, resolve_config, run_task
from mae_transfer.runs.tasks import make_task

_LOG = logging.getLogger(__name__)

Point = dict[str, Any]
BY_THE_DATA = {"data_fingerprint", "norm_batch"}
"""Entries of a protocol that a configuration alone does not tell."""


def run_search(
    task: str,
    backbone: str,
    *,
    protocol: str | None = None,
    blocks: str | None = None,
    shots: int | None = None,
    draws: int | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    eval_only: bool = False,
    overrides: Sequence[str] = (),
    progress: bool = False,
    **options: Any,
) -> str:
    """Make the runs of a recipe's search one after the other; the table of their metrics as Markdown on rank 0,
    an empty text on the others.

    A run that is done is not made again, one that was stopped goes on, so that the same command finishes a search that
    was interrupted. A run that diverges is a row of the table like any other.

    Args:
        output: folder in which the runs have theirs; None gives each the folder that the run alone would have.
        resume: makes no difference.
        options: those of `run_transfer`.
    """
    if eval_only:
        raise UserError("--search makes and evaluates runs; --eval-only goes with a single run")
    if blocks is not None or shots is not None or draws is not None:
        raise UserError("--search makes a run for each value of a grid; leave out --blocks, --shots and --draws")
    grid = search_grid(task, protocol=protocol, preset=options.get("preset", "full"), overrides=overrides)
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    runs = []
    for point in points:
        values = [f"{key}={value}" for key, value in point.items()]
        config = resolve_config(task, backbone, protocol=protocol, overrides=[*values, *overrides], **options)
        runs.append((config, default_output(config) if output is None else Path(output) / ",".join(values)))
    fabric = make_fabric(runs[0][0].device, runs[0][0].train.precision)
    metric, title = next(iter(METRICS.get(task, ACCURACY).items()))
    results: list[float | None] = []
    reference: dict[str, Any] = {}
    with console() if progress else nullcontext():
        states = on_rank_zero(fabric, lambda: [_state(*run) for run in runs])
        for number, (point, (config, path), state) in enumerate(zip(points, runs, states, strict=True), start=1):
            if fabric.is_global_zero:
                _LOG.info("search, run %d of %d (%s): %s", number, len(runs), state, path)
            record = _run(fabric, config, path, state, progress)
            if record is not None:
                reference = reference or record["protocol"]
                _check_like(reference, record["protocol"], set(point), path)
            value = None if record is None else record["metrics"][metric]
            results.append(math.nan if record is not None and value is None else value)
    shut_down()
    return search_table(points, results, title) if fabric.is_global_zero else ""


def _state(config: RunConfig, path: Path) -> str:
    """new, stopped or done; UserError if the folder has a run of another recipe."""
    if not (path / "config.yaml").exists():
        return "new"
    check_same_recipe(path, config.model_dump(mode="json"))
    return "done" if (path / "record.json").exists() else "stopped"


def _run(fabric: Fabric, config: RunConfig, path: Path, state: str, progress: bool) -> dict[str, Any] | None:
    """The record of a run; None if it diverged."""
    if state == "done":
        return on_rank_zero(fabric, lambda: finished_record(config, path))
    try:
        return run_task(fabric, make_task(config), path, resume=state == "stopped", eval_only=False, progress=progress)
    except DivergedError as error:
        _LOG.warning("diverged: %s", error)
        return None


def finished_record(config: RunConfig, path: Path) -> dict[str, Any]:
    """The record of a finished run; UserError if it was evaluated in another way than is asked now."""
    record = read_record(path / "record.json")
    before = record["protocol"]
    now = make_protocol(config.model_dump(mode="json"), data_fingerprint="", norm_batch=0)
    unlike = [f"{key}={before[key]}" for key in before.keys() & now.keys() - BY_THE_DATA if before[key] != now[key]]
    if unlike:
        raise UserError(
            f"{path} is of {', '.join(sorted(unlike))}, not what is asked now; evaluate that run again by --eval-only, "
            "or search in another --output"
        )
    return record


def _check_like(one: dict[str, Any], other: dict[str, Any], searched: set[str], path: Path) -> None:
    """UserError if two runs differ in more than what is searched, such as the data under one path."""
    unlike = [key for key in sorted({*one, *other} - searched) if one.get(key) != other.get(key)]
    if unlike:
        raise UserError(
            f"{path} differs from the search's other runs also in {', '.join(unlike)}; search again in another --output"
        )


def search_table(points: Sequence[Point], results: Sequence[float | None], metric: str) -> str:
    """Markdown: a row per run in the order of the grid, then the best; a result is None if the run diverged."""
    keys = list(points[0])
    lines = [f"| {' | '.join([*keys, metric])} |", "|" + "---:|" * (len(keys) + 1)]
    for point, result in zip(points, results, strict=True):
        cells = [str(point[key]) for key in keys] + ["diverged" if result is None else f"{result:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    finished = [(result, i) for i, result in enumerate(results) if result is not None and not math.isnan(result)]
    if finished:
        best, where = max(finished, key=lambda item: (item[0], -item[1]))
        settings = " ".join(f"{key}={value}" for key, value in points[where].items())
        lines += ["", f"best: {settings} ({metric} {best:.2f}), chosen on the validation set, as in the paper"]
    return "\n".join(lines)
