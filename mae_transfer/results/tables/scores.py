"""Columns of main metrics, a row for each encoder: what the overview and the rank agreement are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from mae_transfer.results.comparable_runs import ComparableRuns, changes, comparable_runs
from mae_transfer.results.names import metric_title, size_title
from mae_transfer.results.tables.described import TaskTables
from mae_transfer.results.tables.partial import PARTIAL

Encoder = tuple[str, str, str]
"""Initialisation, backbone, weights."""


@dataclass(frozen=True)
class Scores:
    """A column: runs of one protocol, recipe and settings on one data set."""

    head: str
    metric: str
    better: str
    rows: Mapping[Encoder, ComparableRuns]
    task: str
    fingerprint: str
    """Of the data."""
    blind: float | None = None
    """The metric of what looks at no image, where its runs say one number."""

    def sign(self) -> int:
        return -1 if self.better == "lower" else 1

    def scores(self) -> dict[Encoder, float]:
        """Encoder -> mean over seeds, oriented so that higher is better."""
        means = {encoder: group.cell(self.metric).value for encoder, group in self.rows.items()}
        return {encoder: self.sign() * mean for encoder, mean in means.items() if mean is not None}


def blind_score(runs: pd.DataFrame) -> float | None:
    """What is scored without a look at the images, where runs say one number."""
    found = {round(value, 6) for value in runs["blind"].dropna()}
    return found.pop() if len(found) == 1 else None


def main_columns(tasks: Sequence[TaskTables], preset: str) -> tuple[list[Scores], list[str]]:
    """The columns of a preset's runs, and a footnote for each that only its settings tell from an earlier one."""
    notes: list[str] = []
    return _told_apart([column for task in tasks for column in _columns(task, preset, notes)]), notes


def _told_apart(columns: Sequence[Scores]) -> list[Scores]:
    """Columns whose heads are the same with the name of their task or, within one, digits of their data's
    fingerprint."""
    found = list(columns)
    for own in (lambda column: f", {column.task}", lambda column: f" [{column.fingerprint[:8]}]"):
        of_head: dict[str, set[str]] = {}
        for column in found:
            of_head.setdefault(column.head, set()).add(own(column))
        found = [replace(c, head=c.head + own(c)) if len(of_head[c.head]) > 1 else c for c in found]
    return found


def _columns(task: TaskTables, preset: str, notes: list[str]) -> list[Scores]:
    """The columns of a task."""
    runs = task.runs[(task.runs["preset"] == preset) & task.runs["main"].astype(bool) & task.runs["value"].notna()]
    found: list[Scores] = []
    for (data, fingerprint, _, protocol), part in runs.groupby(["data", "data_fingerprint", "rank", "protocol"]):
        metric = part["metric"].iloc[0]
        part = part[part["metric"] == metric]
        title, better = part[["metric_title", "better"]].iloc[0]
        recipes = part["recipe"].nunique()
        for recipe, of_recipe in part.groupby("recipe"):
            what = " ".join(filter(None, (str(protocol), str(recipe) if recipes > 1 else "")))
            head = metric_title(f"{title}{f', {what}' if what else ''}: {data}", better)
            blind = blind_score(of_recipe)
            for own, rows in _by_settings(head, comparable_runs(of_recipe), notes):
                found.append(Scores(own, metric, better, rows, task.name, str(fingerprint), blind))
    return found


def _by_settings(
    head: str, groups: Sequence[ComparableRuns], notes: list[str]
) -> list[tuple[str, dict[Encoder, ComparableRuns]]]:
    """Head and rows of a column for each settings id, that of most encoders first."""
    of_settings: dict[str, list[ComparableRuns]] = {}
    for group in groups:
        of_settings.setdefault(group.settings_id, []).append(group)
    ordered = sorted(of_settings.values(), key=lambda of: (-len(of), min(group.first for group in of)))
    columns = []
    heads: dict[str, ComparableRuns] = {}
    alike: dict[tuple[str, str], ComparableRuns] = {}
    for of in ordered:
        sizes = {group.size for group in of}
        own = f"{head}, {size_title(of[0].size)}" if len(ordered) > 1 and len(sizes) == 1 else head
        if of[0].protocol == PARTIAL:
            own += f", {of[0].blocks:g} blocks"
        first = heads.get(own) or (alike.get((of[0].size, f"{of[0].blocks}")) if own != head else None)
        if first:
            notes.append(f"[{len(notes) + 1}] {own}: {_unlike(of[0], first)}.")
            own += f" [{len(notes)}]"
        heads.setdefault(own, of[0])
        for group in of:
            alike.setdefault((group.size, f"{group.blocks}"), group)
        columns.append((own, {(g.init, g.backbone, g.weights): g for g in of}))
    return columns


def _unlike(group: ComparableRuns, first: ComparableRuns) -> str:
    """What tells the settings of a column from those of the first."""
    return changes(replace(group, init=""), first) or "other settings"
