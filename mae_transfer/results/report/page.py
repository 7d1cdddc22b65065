"""The page: what is on it, and its HTML. Everything that comes from a record is escaped by the template."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mae_transfer.bars import shown
from mae_transfer.results.data_names import data_names, task_heading
from mae_transfer.results.names import init_title
from mae_transfer.results.plots.comparisons import comparison_plots
from mae_transfer.results.plots.figure import page_svg
from mae_transfer.results.report.budget import within
from mae_transfer.results.report.runs import Run, data_uri, read_run, tell_apart
from mae_transfer.results.tables.build import build_tables
from mae_transfer.run_folder.schema import RunRecord

HERE = Path(__file__).parent
CURVES = 6 * 2**20
"""Bytes of the curves of single runs."""
RUN_HEADS = (
    *("task", "initialisation", "backbone", "data", "preset", "seed", "metric", "value", "time", "memory", "finished"),
)

FILTERS: dict[str, Callable[[Run], str]] = {
    "task": lambda run: task_heading(run.record),
    "data": lambda run: run.data,
    "initialisation": lambda run: init_title(run.record["backbone"]["init"]),
    "preset": lambda run: run.record["preset"],
}
"""What runs can be narrowed down by."""


def make_page(
    records: Sequence[RunRecord],
    left_out: Sequence[str],
    *,
    picture_bytes: int,
    control: str | None = None,
    descriptions: Sequence[Mapping[str, object]] = (),
    progress: bool = False,
) -> str:
    """The HTML of all records (`read_records`); `left_out` names what was found and could not be counted.

    picture_bytes: the most that pictures may take, as they are in the page.
    control, descriptions: as of `tables.build_tables`.
    progress: show on standard error how far it is.
    """
    warnings: list[str] = []
    tables = build_tables(records, control=control, descriptions=descriptions, warnings=warnings)
    names = data_names(records)
    numbered = shown(list(enumerate(records, 1)), title="read", unit="runs", show=progress)
    runs = [read_run(record, number, names[record["run_id"]]) for number, record in numbered]
    tell_apart(runs)
    notes = [*_add_curves(runs, progress), *_add_pictures(runs, picture_bytes)]
    plots = [page_svg(plot, f"p{number}-") for number, plot in enumerate(comparison_plots(records), 1)]
    script, style = (HERE / "page.js").read_text(), (HERE / "page.css").read_text()
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        tables=tables,
        plots=[Markup(plot) for plot in plots],
        runs=runs,
        run_heads=RUN_HEADS,
        groups=_groups(runs),
        filters=[(title, sorted({str(value(run)) for run in runs})) for title, value in FILTERS.items()],
        chosen=FILTERS,
        left_out=[*left_out, *warnings],
        notes=notes,
        tasks=sorted({task_heading(record) for record in records}),
        finished=sorted(record["finished"][:10] for record in records if record.get("finished")),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _add_curves(runs: Sequence[Run], progress: bool) -> list[str]:
    """The first curve of every run, then the second, and so on, until they take as much as they may."""
    most = max((len(run.plots) for run in runs), default=0)
    turns = [(run, turn) for turn in range(most) for run in runs if turn < len(run.plots)]
    left, missing = CURVES, len(turns)
    for run, turn in shown(turns, title="draw curves", unit="curves", show=progress):
        svg = _drawn(run, turn)
        left -= len(svg)
        if left < 0:
            return [f"{missing} curves of single runs are left out for the size of the page."]
        missing -= 1
        run.svgs += [Markup(svg)] if svg else []
    return []


def _drawn(run: Run, turn: int) -> str:
    """A curve of a run; empty, with a warning on the page, for odd values, such as text for a loss."""
    try:
        return page_svg(run.plots[turn], f"{run.anchor}-{turn}-")
    except (TypeError, ValueError) as error:
        warning = f"no curves: its metrics.jsonl or its record holds odd values ({error})"
        run.warnings += [warning] if warning not in run.warnings else []
        return ""


def _add_pictures(runs: Sequence[Run], limit: int) -> list[str]:
    found = []
    for run in runs:
        uris = [(picture, data_uri(picture)) for picture in run.pictures]
        run.warnings += [f"picture {picture.path.name} is no JPEG file, or gone" for picture, uri in uris if not uri]
        found.append([(picture, uri) for picture, uri in uris if uri])
    counts = within([[len(uri) for _, uri in of_run] for of_run in found], limit)
    for run, of_run, count in zip(runs, found, counts, strict=True):
        run.images = of_run[:count]
    missing = sum(map(len, found)) - sum(counts)
    if not missing:
        return []
    return [f"{missing} pictures are left out for the size of the page; they are in pictures/ of each run's folder."]


def _groups(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Runs by task."""
    by_task: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_task.setdefault((run.record["task"], task_heading(run.record)), []).append(run)
    return [(heading, of_task) for (_, heading), of_task in sorted(by_task.items())]
