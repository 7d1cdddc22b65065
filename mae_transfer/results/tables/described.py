"""What the records say of their task, and what follows from it for its tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mae_transfer.run_folder.schema import RunRecord


@dataclass(frozen=True)
class TaskTables:
    """A task as its records describe it, with the rows of the long table.

    Descriptions (`TaskCard.describe` and its `rows`) tell of tasks and protocols that have no record.
    """

    name: str
    title: str
    benchmark: str
    """Empty if the task has none."""
    controls: tuple[str, ...]
    runs: pd.DataFrame
    reports: tuple[Mapping[str, Any], ...]
    rows: tuple[Mapping[str, Any], ...]
    """The protocols that descriptions name."""

    @property
    def has_protocols(self) -> bool:
        """Whether every run names its protocol. Those of a dense task's first protocol do not."""
        names = {row["name"] for row in self.rows} | set(self.runs["protocol"])
        return bool(names) and "" not in names

    def metrics(self, group: str) -> dict[str, tuple[str, str]]:
        """Key -> title and direction of the metrics of a group, in the order of the first record that names them."""
        found = {report["key"]: (report["title"], report["better"]) for report in self.reports}
        of_group = {report["key"] for report in self.reports if report["group"] == group}
        return {key: value for key, value in found.items() if key in of_group}

    @property
    def main(self) -> str:
        """The metric that runs are judged by: the first main one, else the first."""
        of_first = [report for report in self.reports if report["group"] == ""]
        return str(next((r["key"] for r in of_first if r["main"]), of_first[0]["key"] if of_first else ""))

    def groups(self) -> list[str]:
        """Names of the groups of metrics that have a table of their own."""
        return list(dict.fromkeys(r["group"] for r in self.reports if r["group"] not in ("", "details")))

    def shown(self, group: str) -> pd.DataFrame:
        """The rows of the long table with a metric of the group."""
        return self.runs[self.runs["metric"].isin(self.metrics(group))]

    def on_benchmark(self, runs: pd.DataFrame) -> pd.Series:
        """Which rows are of full runs on the whole benchmark."""
        return (runs["preset"] == "full") & (runs["data"] == self.benchmark) & (self.benchmark != "")

    def protocols(self, runs: pd.DataFrame, quoted: pd.DataFrame) -> list[tuple[str, bool]]:
        """(name, frozen) of the protocols of some runs and published numbers, in the order of their task's."""
        places = {row["name"]: (row["rank"], row["frozen"]) for row in self.rows}
        for name, rank, frozen in runs[["protocol", "rank", "frozen"]].drop_duplicates().itertuples(index=False):
            places.setdefault(name, (rank, frozen))
        names = {*runs["protocol"], *quoted["protocol"]}
        last = (len(places) + 1, False)
        return [(n, places.get(n, last)[1]) for n in sorted(names, key=lambda n: (places.get(n, last)[0], n))]


def described_tasks(
    table: pd.DataFrame, records: Sequence[RunRecord], descriptions: Iterable[Mapping[str, Any]]
) -> list[TaskTables]:
    """The tasks of the records and of the descriptions that transfer an encoder, sorted by name.

    Those without protocols come first. Where records of one task describe it in several ways, all metrics are shown.
    """
    told = {description["task"]: description for description in descriptions}
    of_task: dict[str, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda record: str(record["run_id"])):
        of_task.setdefault(record["task"], []).append(record)
    found = []
    for name in sorted({*told, *of_task}):
        described = [told[name]] if name in told else []
        described += of_task.get(name, [])
        first = described[0]
        if not first["transfers"]:
            continue
        reports = {report["key"]: report for one in reversed(described) for report in one["reports"]}
        order = dict.fromkeys(report["key"] for one in described for report in one["reports"])
        found.append(
            TaskTables(
                name=name,
                title=first["title"],
                benchmark=first["benchmark"] or "",
                controls=tuple(first["controls"]),
                runs=table[table["task"] == name],
                reports=tuple(reports[key] for key in order),
                rows=tuple(told.get(name, {}).get("rows", ())),
            )
        )
    return sorted(found, key=lambda task: task.has_protocols)
