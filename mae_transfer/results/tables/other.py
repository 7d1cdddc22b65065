"""The general table: runs and metrics that no other table has room for. None is lost without a word."""

from collections.abc import Sequence

from mae_transfer.results.data_names import data_names
from mae_transfer.results.tables.described import TaskTables
from mae_transfer.results.tables.partial import PARTIAL
from mae_transfer.results.tables.table import Cell, Table
from mae_transfer.run_folder.schema import RunRecord

NOTE = "Runs of tasks that describe no metric, and metrics that their task does not describe."


def other_runs(records: Sequence[RunRecord], tasks: Sequence[TaskTables], warnings: list[str]) -> Table | None:
    """A row for each run that has a metric without a place in the other tables.

    `warnings` gets a line for each kind of them, with the first run, and for each protocol that its task does not know.
    """
    rows, names = [], data_names(records)
    known = {task.name: {row["name"] for row in task.rows} for task in tasks if task.rows}
    said: dict[str, list[str]] = {}
    for record in records:
        if not record["transfers"]:
            continue
        run, task, name = record.get("folder") or f"run {record['run_id']}", record["task"], record["row"]["name"]
        if name and task in known and name not in known[task]:
            said.setdefault(f"the task {task} here has no protocol {name}; its row stands last", []).append(run)
        plain = {key: value for key, value in record["metrics"].items() if "/" not in key}
        shown, told = _shown(record), {report["key"] for report in record["reports"]}
        left = {key: value for key, value in plain.items() if key not in told} if shown & plain.keys() else plain
        if not left and plain:
            continue
        if not told:
            what = f"does not describe the task {task}"
        elif not plain:
            what = "has no metric"
        elif shown & plain.keys():
            what = f"does not describe the metric {', '.join(left)}"
        else:
            what = f"lacks the metrics that the tables of {task} show"
        said.setdefault(f"its record {what}; it stands in the table of other runs", []).append(run)
        label = " ".join(filter(None, (task, name, record["backbone"]["name"], f"seed {record['seed']}")))
        values = ", ".join(f"{key} {'-' if value is None else f'{value:.4g}'}" for key, value in left.items())
        rows.append((label, (Cell(record["preset"]), Cell(names[record["run_id"]]), Cell(values or "none"))))
    for text, runs in said.items():
        more = f" and {len(runs) - 1} more runs" if len(runs) > 1 else ""
        warnings.append(f"{runs[0]}{more}: {text}")
    head = ("run", "preset", "data", "metrics")
    return Table("Other runs", NOTE, head, tuple(sorted(rows, key=str))) if rows else None


def _shown(record: RunRecord) -> set[str]:
    """Metrics of a run that other tables show: of partial fine-tuning the main one alone."""
    keys = [report["key"] for report in record["reports"] if report["group"] != "details"]
    if record["row"]["name"] == PARTIAL:
        return {report["key"] for report in record["reports"] if report["main"]} or set(keys[:1])
    return set(keys)
