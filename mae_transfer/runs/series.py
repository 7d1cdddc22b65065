"""Make planned runs one after the other.

The data, batches and folder of every run are checked before the first one starts.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from lightning_fabric import Fabric

from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.distributed import make_fabric, on_rank_zero, shut_down
from mae_transfer.engine.end_together import ranks_end_together
from mae_transfer.engine.progress import console
from mae_transfer.engine.task import BaseTask
from mae_transfer.errors import DivergedError
from mae_transfer.run_folder.folder import stored_config
from mae_transfer.run_folder.record import read_record
from mae_transfer.run_folder.schema import RunRecord
from mae_transfer.runs.names import data_places
from mae_transfer.runs.plan import Run, plan_runs
from mae_transfer.runs.run import check_run, run_task
from mae_transfer.runs.same_data import check_same_data
from mae_transfer.runs.state import Resume, State, check_one_of, evaluated_otherwise, state_of
from mae_transfer.runs.tasks import make_task
from mae_transfer.runs.trained import of_file

_LOG = logging.getLogger(__name__)
Fabrics: TypeAlias = dict[tuple[str, bool], Fabric]
"""By `fabric_key`."""
CURVES = {"partial": "blocks", "layers": "layers"}
"""Kind of a curve -> the option whose series ends with one."""


def run_series(
    task: str,
    backbone: str | None,
    *,
    resume: Resume = False,
    eval_only: bool = False,
    progress: bool = False,
    **options: Any,
) -> list[RunRecord]:
    """Make the runs of `plan_runs(task, backbone, **options)`; their records.

    With `resume`, finished runs of a series are passed over, one that was stopped goes on, and the others start. A
    series with several numbers of blocks, or several layers, ends with their curve, as a picture and as numbers. With
    `auto` the same goes for a single run. `eval_only` with a checkpoint and no run folder evaluates a trained model
    (`trained.py`), whose file then tells the backbone.
    """
    check_one_of(resume, eval_only)
    with console() if progress else nullcontext():
        backbone, options["protocol"], eval_only = of_file(
            task,
            backbone,
            eval_only=eval_only,
            checkpoint=options.get("checkpoint"),
            protocol=options.get("protocol"),
            folder=lambda name, protocol: plan_runs(task, name, **{**options, "protocol": protocol})[0].path,
        )
        runs = plan_runs(task, backbone, **options)
        fabrics = make_fabrics(runs)
        first = next(iter(fabrics.values()))
        if len(runs) > 1 or resume == "auto":
            states = on_rank_zero(first, lambda: [state_of(run, resume=resume, eval_only=eval_only) for run in runs])
        else:  # a run that is done is resumed too: it writes its record again
            states = ["stopped" if resume else "new"]
        records = [
            record
            for record in make_runs(runs, states, fabrics, eval_only=eval_only, progress=progress)
            if record is not None
        ]
        kind = next((name for name, key in CURVES.items() if options.get(key) is not None), None)
        if kind is not None and len(records) > 1:
            from mae_transfer.runs.curve import curve_stem, draw_curves  # here: it imports pandas and matplotlib

            on_rank_zero(first, lambda: draw_curves(records, curve_stem(runs[0], options.get("output"), kind)))
    shut_down()
    return records


def fabric_key(config: RunConfig) -> tuple[str, bool]:
    """Precision, and whether the model is cut over the ranks."""
    return config.train.precision, config.train.shard


def make_fabrics(runs: Sequence[Run]) -> Fabrics:
    configs = {fabric_key(run.config): run.config for run in runs}
    return {key: make_fabric(config.device, key[0], shard=key[1]) for key, config in configs.items()}


def make_runs(
    runs: Sequence[Run],
    states: Sequence[State],
    fabrics: Fabrics,
    *,
    eval_only: bool = False,
    progress: bool = False,
    may_diverge: bool = False,
) -> Iterator[RunRecord | None]:
    """The records of the runs, in order and as they come; those that are done are read.

    The data of those too are compared with what is there now. Data that are gone are needed for none of them.

    One task at a time has its data read.

    Args:
        may_diverge: a run that diverges is None; else it ends the series.
    """
    with ranks_end_together():
        yield from _make_runs(runs, states, fabrics, eval_only, progress, may_diverge)


def _make_runs(
    runs: Sequence[Run],
    states: Sequence[State],
    fabrics: Fabrics,
    eval_only: bool,
    progress: bool,
    may_diverge: bool,
) -> Iterator[RunRecord | None]:
    first = next(iter(fabrics.values()))
    task = _check_runs(runs, states, fabrics, eval_only=eval_only)
    for number, (run, state) in enumerate(zip(runs, states, strict=True), 1):
        if (len(runs) > 1 or state == "done") and first.is_global_zero:
            what = "finished before: " if state == "done" else ""
            point = f" ({run.point_label})" if run.point else ""
            _LOG.info("run %d of %d%s: %s%s", number, len(runs), point, what, run.path)
        if state == "done":
            record = on_rank_zero(first, partial(read_record, run.path / "record.json"))
            if (unlike := evaluated_otherwise(run.config, record)) and first.is_global_zero:
                _LOG.warning("%s: its numbers are of another evaluation (%s); --eval-only makes it", run.path, unlike)
            yield record
            continue
        fabric = fabrics[fabric_key(run.config)]
        if task is None or task.config is not run.config:
            task = make_task(run.config, task)
        try:
            record = run_task(fabric, task, run.path, resume=state == "stopped", eval_only=eval_only, progress=progress)
        except DivergedError as error:
            if not may_diverge:
                raise
            _LOG.warning("diverged: %s", error)
            yield None
        else:
            yield record


def _check_runs(runs: Sequence[Run], states: Sequence[State], fabrics: Fabrics, *, eval_only: bool) -> BaseTask | None:
    """Check the data of every run, and the batches of those to make. Runs that differ in how they train alone have
    their data read once.

    Returns:
        The last task that was made.
    """
    task: BaseTask | None = None
    for run, state in zip(runs, states, strict=True):
        if state == "done" and _data_are_gone(run):
            continue
        if task is None or _without_training(task.config) != _without_training(run.config):
            task = make_task(run.config, task)
        fabric = fabrics[fabric_key(run.config)]
        if state == "done":
            on_rank_zero(fabric, partial(check_same_data, task, run.path))
        else:
            check_run(fabric, run.config, task, eval_only=eval_only)
    return task


def _data_are_gone(run: Run) -> bool:
    """Whether a path of the data that a finished run names, as its configuration does, is not there (any more)."""
    places, stored = data_places(run.config), stored_config(run.path)
    gone = any(place is not None and not Path(str(place)).expanduser().exists() for place in places.values())
    return gone and all(stored.get(key) == place for key, place in places.items())


def _without_training(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(exclude={"optim", "schedule", "backbone"})
