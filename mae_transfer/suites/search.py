"""The tables of the searches in a suite: for each backbone, the values tried and the best on the validation set."""

from collections.abc import Sequence

from mae_transfer.results.classification_tables import ACCURACY
from mae_transfer.results.record import read_record
from mae_transfer.results.tables import METRICS
from mae_transfer.search import search_table
from mae_transfer.suites.plan import SuiteRun


def search_tables(runs: Sequence[SuiteRun]) -> list[str]:
    """Markdown for each search of which every run is done, or has failed after its training had begun (diverged)."""
    searches: dict[str, list[SuiteRun]] = {}
    for run in runs:
        if run.point:
            searches.setdefault(f"{run.row} {run.column} seed {run.seed}", []).append(run)
    tables = []
    for title, points in searches.items():
        states = {run.place.state() for run in points}
        if not states <= {"done", "failed"} or "done" not in states:
            continue
        metric, name = next(iter(METRICS.get(points[0].config.task, ACCURACY).items()))
        results = [
            read_record(run.place.record)["metrics"][metric] if run.place.record.exists() else None for run in points
        ]
        values = [dict(pair.split("=", 1) for pair in run.point.split(" ")) for run in points]
        tables.append(f"{title}\n\n{search_table(values, results, name)}")
    return tables
