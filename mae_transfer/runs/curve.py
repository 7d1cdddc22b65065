"""The curve of a series over its numbers of trained blocks or the layers that it reads, as files beside its runs."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mae_transfer.files import user_path
from mae_transfer.results.long_table import long_table
from mae_transfer.results.plots.comparisons import layer_plots, main_metrics, partial_plots
from mae_transfer.results.plots.figure import Plot, write_plot
from mae_transfer.run_folder.schema import RunRecord
from mae_transfer.runs.plan import Run

_LOG = logging.getLogger(__name__)


def draw_curves(records: Sequence[RunRecord], stem: Path) -> None:
    """Write `<stem>.png`, `.svg` and `.csv`. A series has several curves if its runs are on several sets of images, or
    were in part made by an earlier version; those after the first have numbers.

    A file of before is replaced by a curve that has all its points. Another curve gets a number of its own.
    """
    written: set[Path] = set()
    table = main_metrics(long_table(records))
    for plot in [*partial_plots(table[table["layer"].isna()]), *layer_plots(table)]:
        path, number = stem, 1
        while path in written or not _has_all_points(plot, path):
            number += 1
            path = stem.with_name(f"{stem.name}-{number}")
        write_plot(plot, path)
        written.add(path)
        _LOG.info("curve: %s.png, .svg and .csv", path)


def curve_stem(run: Run, output: str | Path | None, kind: str) -> Path:
    """Where the curve of a series goes: into `output`, or beside the first run. kind: partial or layers."""
    if output is not None:
        return user_path(output) / f"{kind}_curve"
    name = run.config.backbone.name.replace(":", "-").replace("/", "-")
    return run.path.parent / f"{run.config.task}-{kind}-{name}-{run.config.preset}-seed{run.config.seed}"


def _has_all_points(plot: Plot, stem: Path) -> bool:
    """Whether a plot has the points of the CSV file that is there; also if none is. False for a file that is none of
    a curve."""
    file = stem.with_name(f"{stem.name}.csv")
    if not file.exists():
        return True
    columns = ["name", plot.columns[0]]
    try:
        before = pd.read_csv(file)[columns]
    except (OSError, ValueError, KeyError):
        return False
    points = plot.frame()[columns]
    return set(before.itertuples(index=False, name=None)) <= set(points.itertuples(index=False, name=None))
