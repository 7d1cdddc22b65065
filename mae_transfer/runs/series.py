"""Make planned runs one after the other.

The data, batches and folder of every run are checked before the first one starts.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from mae_transfer.engine.distributed import make_fabric, on_rank_zero, shut_down
from mae_transfer.engine.progress import console
from mae_transfer.engine.task import BaseTask
from mae_transfer.errors import DivergedError
from mae_transfer.run_folder.record import read_record
from mae_transfer.run_folder.schema import RunRecord
from mae_transfer.runs.plan import Run, plan_runs
from mae_transfer.runs.run import check_run, run_task
from mae_transfer.runs.state import State, state_of
from mae_transfer.runs.tasks import make_task

_LOG = logging.getLogger(__name__)


def run_series(
    task: str, backbone: str, *, resume: bool = False, eval_only: bool = False, progress: bool = False, **options: Any
) -> list[RunRecord]:
    """Make the runs of `plan_runs(task, backbone, **options)`; their records.

    With `resume`, finished runs of a series are passed over, one that was stopped goes on, and the others start. A
    series with several numbers of blocks ends with their curve, as a picture and as numbers.
    """
    runs = plan_runs(task, backbone, **options)
    fabrics = make_fabrics(runs)
    first = next(iter(fabrics.values()))
    with console() if progress else nullcontext():
        if len(runs) > 1:
            states = on_rank_zero(first, lambda: [state_of(run, resume=resume, eval_only=eval_only) for run in runs])
        else:  # a run that is done is resumed too: it writes its record again
            states = ["stopped" if resume else "new"]
        records = [
            record
            for record in make_runs(runs, states, fabrics, eval_only=eval_only, progress=progress)
            if record is not None
        ]
        if options.get("blocks") is not None and len(records) > 1:
            output = options.get("output")
            stem = Path(output) / "partial_curve" if output is not None else _curve_stem(runs[0])
            on_rank_zero(first, lambda: _draw_curve(records, stem))
    shut_down()
    return records


def make_fabrics(runs: Sequence[Run]) -> dict[str, Fabric]:
    """Precision -> fabric of the runs."""
    precisions = {run.config.train.precision: run.config.device for run in runs}
    return {precision: make_fabric(device, precision) for precision, device in precisions.items()}


def make_runs(
    runs: Sequence[Run],
    states: Sequence[State],
    fabrics: dict[str, Fabric],
    *,
    eval_only: bool = False,
    progress: bool = False,
    may_diverge: bool = False,
) -> list[RunRecord | None]:
    """The records of the runs, in order; those that are done are read.

    may_diverge: a run that diverges is None; else it ends the series.
    """
    first = next(iter(fabrics.values()))
    tasks: list[BaseTask] = []
    for run in runs:
        tasks.append(make_task(run.config, tasks[0] if tasks else None))
        check_run(fabrics[run.config.train.precision], tasks[-1], eval_only=eval_only)
    records: list[RunRecord | None] = []
    for number, (run, task, state) in enumerate(zip(runs, tasks, states, strict=True), 1):
        if len(runs) > 1 and first.is_global_zero:
            what = "finished before: " if state == "done" else ""
            point = f" ({run.point_label})" if run.point else ""
            _LOG.info("run %d of %d%s: %s%s", number, len(runs), point, what, run.path)
        if state == "done":
            records.append(on_rank_zero(first, lambda run=run: read_record(run.path / "record.json")))  # type: ignore[misc]
            continue
        fabric = fabrics[run.config.train.precision]
        try:
            records.append(
                run_task(fabric, task, run.path, resume=state == "stopped", eval_only=eval_only, progress=progress)
            )
        except DivergedError as error:
            if not may_diverge:
                raise
            _LOG.warning("diverged: %s", error)
            records.append(None)
    return records


def _draw_curve(records: Sequence[RunRecord], stem: Path) -> None:
    # here: they import pandas and matplotlib
    from mae_transfer.results.long_table import long_table
    from mae_transfer.results.plots.comparisons import main_metrics, partial_plots
    from mae_transfer.results.plots.figure import write_plot

    for plot in partial_plots(main_metrics(long_table(records))):  # one: they differ in nothing but the blocks
        write_plot(plot, stem)
        _LOG.info("curve: %s.png, .svg and .csv", stem)


def _curve_stem(run: Run) -> Path:
    name = run.config.backbone.name.replace(":", "-").replace("/", "-")
    return run.path.parent / f"{run.config.task}-partial-{name}-{run.config.preset}-seed{run.config.seed}"
