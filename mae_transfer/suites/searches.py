"""The tables of the searches in a suite: for each backbone, the values tried and the best on the validation set."""

from collections.abc import Sequence

from mae_transfer.results.tables.build import METRICS
from mae_transfer.results.tables.classification import ACCURACY
from mae_transfer.run_folder.record import read_record
from mae_transfer.runs.search import search_table
from mae_transfer.suites.plan import SuiteRun


def search_tables(runs: Sequence[SuiteRun]) -> list[str]:
    """Markdown for each search of which every run is done or has diverged; another failure is to be retried first."""
    searches: dict[str, list[SuiteRun]] = {}
    for run in runs:
        if run.point:
            searches.setdefault(f"{run.row} {run.column} seed {run.seed}", []).append(run)
    tables = []
    for title, points in searches.items():
        states = [run.place.state() for run in points]
        open_ends = [s for s, run in zip(states, points, strict=True) if s != "done" and not _diverged(s, run)]
        if open_ends or "done" not in states:
            continue
        metric, name = next(iter(METRICS.get(points[0].config.task, ACCURACY).items()))
        results = [
            read_record(run.place.record)["metrics"][metric] if run.place.record.exists() else None for run in points
        ]
        values = [dict(pair.split("=", 1) for pair in run.point.split(" ")) for run in points]
        tables.append(f"{title}\n\n{search_table(values, results, name)}")
    return tables


def _diverged(state: str, run: SuiteRun) -> bool:
    """By the line with which the command line ends such a run (`cli.exit_code`)."""
    return state == "failed" and run.place.reason().startswith("diverged: ")
