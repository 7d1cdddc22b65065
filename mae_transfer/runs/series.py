"""Several runs from one command: protocols, numbers of trained blocks, draws of few shots; a folder and a record each.

Every configuration is resolved, and every run's data, batches and folder are checked, before the first one starts.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_transfer.config.load import backbone_spec, default_recipe, task_entry
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.distributed import make_fabric, on_rank_zero, shut_down
from mae_transfer.engine.progress import console
from mae_transfer.engine.task import Task
from mae_transfer.errors import UserError
from mae_transfer.results.long_table import long_table
from mae_transfer.results.plots.comparisons import main_metrics, partial_plots
from mae_transfer.results.plots.figure import write_plot
from mae_transfer.run_folder.folder import check_free, check_same_recipe
from mae_transfer.run_folder.record import read_record
from mae_transfer.runs.run import check_run, default_output, resolve_config, run_label, run_task
from mae_transfer.runs.tasks import make_task

_LOG = logging.getLogger(__name__)
CURVE = (0, 0.5, 1, 2, 4, 6, 12, 18, 24)
"""Blocks of MAE Figure 9; the encoder's depth ends it."""


@dataclass(frozen=True)
class Run:
    config: RunConfig
    path: Path


def plan_series(
    task: str,
    backbone: str,
    *,
    protocol: str | None = None,
    blocks: str | None = None,
    shots: int | None = None,
    draws: int | None = None,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> list[Run]:
    """The runs that these options ask for, in order, with their folders.

    protocol: names with commas between them.
    blocks: numbers with commas between them, or `curve`: a run of the protocol partial each, 0 being the linear probe.
    draws: runs with data.draw = 0 .. draws - 1.
    output: the folder of a single run, or that in which several have theirs.
    options: those of `resolve_config`.
    """
    variants: list[tuple[str | None, list[str]]] = []
    names = [name.strip() for name in protocol.split(",")] if protocol is not None else [None]
    for name in names:
        default_recipe(task, name)  # an unknown one is found first
    if blocks is not None and "partial" not in names:
        raise UserError("--blocks goes with --protocol partial")
    for name in names:
        if name == "partial" and blocks is not None:
            for number in parse_blocks(blocks, backbone):
                variants.append(("partial", [f"model.blocks={number:g}"]) if number else ("linear", []))
        elif name == "partial" and not any(text.startswith("model.blocks=") for text in overrides):
            raise UserError("--protocol partial needs --blocks: a number, a list such as 1,2,4, or curve")
        else:
            variants.append((name, []))
    _check_overrides([name or "" for name, _ in variants], overrides)
    if (shots is not None or draws is not None) and not task_entry(task).protocols:
        raise UserError(f"--shots and --draws are for image classification, not for the task {task}")
    if draws is not None and (shots is None or draws < 1):
        raise UserError("--draws goes with --shots, and is 1 or more")
    few = [] if shots is None else [[f"data.shots={shots}", f"data.draw={draw}"] for draw in range(draws or 1)]
    configs: list[RunConfig] = []
    for name, own in variants:
        for draw in few or [[]]:
            config = resolve_config(task, backbone, protocol=name, overrides=[*own, *draw, *overrides], **options)
            if config not in configs:
                configs.append(config)
    if len(configs) == 1:
        return [Run(configs[0], Path(output) if output is not None else default_output(configs[0]))]
    return [
        Run(config, default_output(config) if output is None else Path(output) / run_label(config))
        for config in configs
    ]


def _check_overrides(protocols: Sequence[str], overrides: Sequence[str]) -> None:
    """UserError for an override of one recipe's optimizer that would reach the runs of another: rates of LARS and AdamW
    are a factor of a thousand apart."""
    of_one = [text for text in overrides if text.startswith("optim.")]
    if of_one and len(set(protocols)) > 1:
        raise UserError(
            f"{of_one[0]} would reach runs of several recipes ({', '.join(dict.fromkeys(protocols))}); make them one "
            "protocol at a time (0 blocks is the protocol linear)"
        )


def parse_blocks(text: str, backbone: str) -> list[float]:
    """'4', '0.5,1,2' or 'curve' -> numbers of blocks that the backbone has."""
    depth = backbone_spec(backbone).depth
    if text == "curve":
        return [*(number for number in CURVE if number < depth), depth]
    numbers = []
    for part in text.split(","):
        try:
            number = float(part)
        except ValueError:
            number = -1.0
        if number != 0.5 and not (number.is_integer() and 0 <= number <= depth):
            raise UserError(f"--blocks {part.strip()}: {backbone} takes 0, 0.5, 1, 2, ... {depth}, or curve")
        numbers.append(number)
    return numbers


def run_series(
    task: str, backbone: str, *, resume: bool = False, eval_only: bool = False, progress: bool = False, **options: Any
) -> list[dict[str, Any]]:
    """Make the runs of `plan_series(task, backbone, **options)` one after the other; their records.

    With `resume`, finished runs of a series are passed over, one that was stopped goes on, and the others start. A
    series with several numbers of blocks ends with their curve, as a picture and as numbers.
    """
    runs = plan_series(task, backbone, **options)
    precisions = {run.config.train.precision: run.config.device for run in runs}
    fabrics = {precision: make_fabric(device, precision) for precision, device in precisions.items()}
    first = next(iter(fabrics.values()))
    with console() if progress else nullcontext():
        if len(runs) > 1:
            states = on_rank_zero(first, lambda: [_state(run, resume, eval_only) for run in runs])
        else:
            states = ["stopped" if resume else "new"]
        tasks: list[Task] = []
        for run in runs:
            tasks.append(make_task(run.config, tasks[0] if tasks else None))
            check_run(fabrics[run.config.train.precision], tasks[-1], eval_only=eval_only)
        records = []
        for number, (run, task_of_run, state) in enumerate(zip(runs, tasks, states, strict=True), 1):
            if len(runs) > 1 and first.is_global_zero:
                _LOG.info("run %d of %d: %s", number, len(runs), "finished before" if state == "done" else run.path)
            if state == "done":
                records.append(read_record(run.path / "record.json"))
                continue
            fabric = fabrics[run.config.train.precision]
            going_on = state == "stopped"
            records.append(
                run_task(fabric, task_of_run, run.path, resume=going_on, eval_only=eval_only, progress=progress)
            )
        if options.get("blocks") is not None and len(records) > 1:
            output = options.get("output")
            stem = Path(output) / "partial_curve" if output is not None else _curve_stem(runs[0])
            for plot in partial_plots(main_metrics(long_table(records))):  # one: they differ in nothing but the blocks
                on_rank_zero(first, lambda plot=plot: write_plot(plot, stem))  # type: ignore[misc]
                if first.is_global_zero:
                    _LOG.info("curve: %s.png, .svg and .csv", stem)
    shut_down()
    return records


def _state(run: Run, resume: bool, eval_only: bool) -> str:
    """new, stopped or done; UserError if the folder does not allow what is asked."""
    if not resume and not eval_only:
        check_free(run.path)
        return "new"
    if not (run.path / "config.yaml").exists():
        if eval_only:
            raise UserError(f"nothing to evaluate in {run.path}: it has no config.yaml; train first")
        return "new"
    check_same_recipe(run.path, run.config.model_dump(mode="json"))
    return "done" if (run.path / "record.json").exists() and not eval_only else "stopped"


def _curve_stem(run: Run) -> Path:
    name = run.config.backbone.name.replace(":", "-").replace("/", "-")
    return run.path.parent / f"{run.config.task}-partial-{name}-{run.config.preset}-seed{run.config.seed}"
