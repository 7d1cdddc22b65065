"""The search that a recipe documents (its section `search`): a run for every combination of values, then a table.

Published rows of both dense tasks come from such a search, chosen on the very set that the metric is of; a new kind of
initialisation owes itself the same.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mae_transfer.config.old_names import renamed_settings
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.distributed import on_rank_zero, shut_down
from mae_transfer.engine.progress import console
from mae_transfer.errors import UserError
from mae_transfer.run_folder.record import read_record
from mae_transfer.run_folder.schema import Report, RunRecord
from mae_transfer.runs.plan import Pairs, plan_runs
from mae_transfer.runs.same_data import difference
from mae_transfer.runs.series import make_fabrics, make_runs
from mae_transfer.runs.settings import make_settings
from mae_transfer.runs.state import state_of
from mae_transfer.runs.tasks import task_card

_LOG = logging.getLogger(__name__)
BY_THE_DATA = {"data_fingerprint", "norm_batch"}
"""Settings that a configuration alone does not tell."""


def run_search(
    task: str,
    backbone: str,
    *,
    resume: bool = False,
    eval_only: bool = False,
    progress: bool = False,
    **options: Any,
) -> str:
    """Make the runs of a recipe's search one after the other; the table of their metrics as Markdown on rank 0,
    an empty text on the others.

    A run that is done is not made again, one that was stopped goes on, so that the same command finishes a search that
    was interrupted. A run that diverges is a row of the table like any other.

    Args:
        resume: makes no difference.
        options: those of `plan_runs`.
    """
    if eval_only:
        raise UserError("--search makes and evaluates runs; --eval-only goes with a single run")
    runs = plan_runs(task, backbone, search=True, **options)
    fabrics = make_fabrics(runs)
    fabric = next(iter(fabrics.values()))
    with console() if progress else nullcontext():
        states = on_rank_zero(fabric, lambda: [state_of(run, resume=True) for run in runs])
        done = [run for run, state in zip(runs, states, strict=True) if state == "done"]
        on_rank_zero(fabric, lambda: [finished_record(run.config, run.path) for run in done])
        records: list[RunRecord | None] = []
        reference: RunRecord | None = None
        for run, record in zip(
            runs, make_runs(runs, states, fabrics, progress=progress, may_diverge=True), strict=True
        ):
            records.append(record)
            if record is not None:
                reference = reference or record
                _check_like(reference, record, {key for key, _ in run.point}, run.path)
    shut_down()
    if not fabric.is_global_zero:
        return ""
    metric = main_metric(task)
    return search_table([run.point for run in runs], [value_of(record, metric) for record in records], metric)


def main_metric(task: str) -> Report:
    """The metric that a search judges runs of the task by."""
    return next(report for report in task_card(task).metrics if report["main"])


def value_of(record: RunRecord | None, metric: Report) -> float | None:
    """The value of a metric, NaN where the record has none; None for no record."""
    if record is None:
        return None
    value = record["metrics"].get(metric["key"])
    return math.nan if value is None else value


def finished_record(config: RunConfig, path: Path) -> RunRecord:
    """The record of a finished run; UserError if it was evaluated in another way than is asked now."""
    record = read_record(path / "record.json")
    before = renamed_settings(record["settings"], config.task)
    now = make_settings(config, data_fingerprint="", norm_batch=0)
    unlike = [f"{key}={before[key]}" for key in before.keys() & now.keys() - BY_THE_DATA if before[key] != now[key]]
    if unlike:
        raise UserError(
            f"{path} is of {', '.join(sorted(unlike))}, not what is asked now; evaluate that run again by --eval-only, "
            "or search in another --output"
        )
    return record


def _check_like(one: RunRecord, other: RunRecord, searched: set[str], path: Path) -> None:
    """UserError if two runs differ in more than what is searched, such as the data under one path.

    Only settings that both records have are compared. The others came or went with a version of this project, which is
    said.
    """
    a, b = (renamed_settings(record["settings"], record["task"]) for record in (one, other))
    unlike = [key for key in sorted(a.keys() & b.keys() - searched - {"data_fingerprint"}) if a[key] != b[key]]
    alone = sorted(a.keys() ^ b.keys())
    if alone:
        _LOG.warning(
            "%s is of another version than the search's first run: only one of them has %s", path, ", ".join(alone)
        )
    unlike += [key for key in alone if key in ("pos_resampling", "window_padding")]  # other rules before
    if difference(one["data"], other["data"]):  # runs of an earlier version know their data by names alone
        unlike.append("data_fingerprint")
    if unlike:
        raise UserError(
            f"{path} differs from the search's other runs also in {', '.join(unlike)}; search again in another --output"
        )


def search_table(points: Sequence[Pairs], results: Sequence[float | None], metric: Report) -> str:
    """Markdown: a row per run in the order of the grid, then the best; a result is None if the run diverged."""
    title, sign = metric["title"], 1 if metric["better"] == "higher" else -1
    keys = [key for key, _ in points[0]]
    lines = [f"| {' | '.join([*keys, title])} |", "|" + "---:|" * (len(keys) + 1)]
    for point, result in zip(points, results, strict=True):
        cells = [str(value) for _, value in point] + ["diverged" if result is None else f"{result:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    finished = [(result, i) for i, result in enumerate(results) if result is not None and not math.isnan(result)]
    if finished:
        best, where = max(finished, key=lambda item: (sign * item[0], -item[1]))
        settings = " ".join(f"{key}={value}" for key, value in points[where])
        lines += ["", f"best: {settings} ({title} {best:.2f}), chosen on the validation set, as in the paper"]
        lines += on_boundary(points, points[where])
    return "\n".join(lines)


def on_boundary(points: Sequence[Pairs], best: Pairs) -> list[str]:
    """A line for each value of the best point that is the lowest or highest of those tried: then a better one may lie
    outside, and the search is to be expanded (Li et al. 2021, arXiv 2111.11429, section 2.4)."""
    lines = []
    for key, value in best:
        tried = sorted({dict(point)[key] for point in points if isinstance(dict(point)[key], int | float)})
        if len(tried) < 2 or value not in (tried[0], tried[-1]):
            continue
        end, inner = (tried[0], tried[1]) if value == tried[0] else (tried[-1], tried[-2])
        beyond = end * end / inner if inner else end
        wider = ",".join(f"{number:g}" for number in sorted({*tried, beyond}))
        lines.append(
            f"{key}={value} is the {'lowest' if value == tried[0] else 'highest'} value tried, a better one may lie "
            f"beyond: search again with {key}='[{wider}]'; runs that are done are kept"
        )
    return lines
