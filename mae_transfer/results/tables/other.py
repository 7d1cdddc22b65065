"""The general table: runs and metrics that no other table has room for. None is lost without a word."""

from collections.abc import Sequence

from mae_transfer.results.tables.described import TaskTables
from mae_transfer.results.tables.table import Cell, Table
from mae_transfer.run_folder.schema import RunRecord

NOTE = "Runs of tasks that describe no metric, and metrics that their task does not describe."


def other_runs(records: Sequence[RunRecord], tasks: Sequence[TaskTables], warnings: list[str]) -> Table | None:
    """A row for each run that has a metric without a place in the other tables.

    `warnings` gets a line for each of them, and for each protocol that its task does not know.
    """
    rows = []
    known = {task.name: {row["name"] for row in task.rows} for task in tasks if task.rows}
    for record in records:
        if not record["transfers"]:
            continue
        run, name = record.get("folder") or f"run {record['run_id']}", record["row"]["name"]
        if name and record["task"] in known and name not in known[record["task"]]:
            warnings.append(f"{run}: the task {record['task']} here has no protocol {name}; its row stands last")
        told = {report["key"] for report in record["reports"]}
        untold = {key: value for key, value in record["metrics"].items() if "/" not in key and key not in told}
        if not untold and told & record["metrics"].keys():
            continue
        described = f"metric {', '.join(untold)}" if told else f"task {record['task']}"
        what = f"does not describe the {described}"
        if told and not untold:
            what = "has no metric"
        warnings.append(f"{run}: its record {what}; it stands in the table of other runs")
        backbone = record["backbone"]
        label = " ".join(filter(None, (record["task"], name, backbone["name"], f"seed {record['seed']}")))
        values = ", ".join(f"{key} {'-' if value is None else f'{value:.4g}'}" for key, value in untold.items())
        rows.append((label, (Cell(record["preset"]), Cell(record["data"]["name"]), Cell(values or "none"))))
    return (
        Table("Other runs", NOTE, ("run", "preset", "data", "metrics"), tuple(sorted(rows, key=str))) if rows else None
    )
