"""The tables of the searches in a suite: for each backbone, the values tried and the best on the validation set."""

from collections.abc import Sequence

from mae_transfer.run_folder.record import read_record
from mae_transfer.runs.search import main_metric, search_table, value_of
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
        metric = main_metric(points[0].config.task)
        records = [read_record(run.place.record) if run.place.record.exists() else None for run in points]
        values = [value_of(record, metric) for record in records]
        tables.append(f"{title}\n\n{search_table([run.point for run in points], values, metric)}")
    return tables


def _diverged(state: str, run: SuiteRun) -> bool:
    """By the line with which the command line ends such a run (`cli.exit_code`)."""
    return state == "failed" and run.place.reason().startswith("diverged: ")
