"""Markdown tables from run records, next to the published numbers. pandas only: builds in a second, without torch.

Rows are initialisations, columns are metrics by encoder size, cells are mean ± standard deviation over seeds with n.
Presets, data sets and recipes each have a table of their own. Within one, runs that followed unlike protocols are never
averaged: they get a row each, with a footnote that names what differs. Image classification, where the protocols of a
data set stand in one table, is in `classification_tables.py`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

METRICS = {"ade20k": {"mIoU": "mIoU"}, "coco": {"box_AP": "AP box", "mask_AP": "AP mask"}}
"""Task -> metric -> column title."""

INIT_TITLES = {
    "random": "random",
    "sup": "supervised",
    "mocov3": "MoCo v3",
    "dino": "DINO",
    "beit": "BEiT",
    "mae": "MAE",
}
"""Known initialisations in the order of the paper's table; others follow by name."""

INIT_ORDER = list(INIT_TITLES)
SIZE_ORDER = ["nano", "ti", "s", "b", "l", "h"]
BENCHMARK_DATA = {"ade20k": "ADE20K val", "coco": "COCO val2017"}
"""Task -> name of the data set that the published numbers are of."""
PRESET_NOTES = {
    "full": "The full recipe on another data set than the published numbers.",
    "mini": "Mini runs: a small recipe of this project, comparable with each other and with nothing published.",
    "smoke": "Smoke runs: a few steps on a tiny subset or generated images. They show that the code runs; the "
    "numbers mean nothing.",
}
PUBLISHED = Path(__file__).parent / "published.csv"


def read_published() -> pd.DataFrame:
    """The published numbers: `recipe` is empty but for COCO, `protocol` where a task has none, `blocks` NaN but for
    partial fine-tuning."""
    return pd.read_csv(PUBLISHED, keep_default_na=False, na_values={"blocks": [""]})


def make_tables(records: Iterable[dict[str, Any]]) -> str:
    """All tables as one Markdown text; the same text whatever the order of the records.

    The published rows stand in the table of the full preset on the full data set, which is there even while no run is.
    """
    records = list(records)
    runs = to_frame(records)
    published = read_published()
    parts = []
    for task in sorted({*runs["task"], *published["task"]} & METRICS.keys()):
        of_task = runs[runs["task"] == task]
        quoted = published[published["task"] == task]
        benchmark = (of_task["preset"] == "full") & (of_task["data"] == BENCHMARK_DATA[task])
        head = f"## {task.upper()}: {BENCHMARK_DATA[task]}"
        for recipe, group in of_task[benchmark].groupby("recipe", sort=True):
            of_recipe = quoted[quoted["recipe"].isin(["", recipe])]
            parts.append(one_table(f"{head}, recipe {recipe}", task, group, of_recipe))
        if not benchmark.any():
            for recipe, of_recipe in quoted.groupby("recipe", sort=True):
                title = f"{head}{recipe and f', recipe {recipe}'} (no full run recorded yet)"
                parts.append(one_table(title, task, of_task.iloc[:0], of_recipe))
        for preset in ("full", "mini", "smoke"):
            others = of_task[(of_task["preset"] == preset) & ~benchmark]
            for (data, _, recipe), group in others.groupby(["data", "data_fingerprint", "recipe"], sort=True):
                title = f"## {task.upper()}, {preset}: {data}, recipe {recipe}\n\n{PRESET_NOTES[preset]}"
                parts.append(one_table(title, task, group, quoted.iloc[:0]))
    from mae_transfer.results.classification_tables import classification_tables  # which is built on this module

    return "\n".join([*parts, *classification_tables(records, published)])


COLUMNS = [
    *("run_id", "task", "preset", "recipe", "data", "data_fingerprint", "init", "backbone", "weights", "size", "seed"),
    *("draw", "protocol_id", "protocol", "metric", "value"),
]


def to_frame(records: Iterable[dict[str, Any]], metrics: Mapping[str, Mapping[str, str]] | None = None) -> pd.DataFrame:
    """One row per run and metric of the table (those of `METRICS` by default): what everything is built from."""
    rows = []
    for record in records:
        for metric in (metrics or METRICS).get(record["task"], {}):
            rows.append(
                {
                    "run_id": record["run_id"],
                    "task": record["task"],
                    "preset": record["preset"],
                    "recipe": record["protocol"].get("recipe", ""),
                    "data": record["data"]["name"],
                    "data_fingerprint": record["data"]["fingerprint"],
                    "init": record["backbone"]["init"],
                    "backbone": record["backbone"]["name"],
                    # of pre-trainings by one protocol each seed has weights of its own, which may share a cell
                    "weights": record["backbone"].get("trained_as") or record["backbone"]["fingerprint"] or "random",
                    "size": record["backbone"]["size"],
                    "seed": record["seed"],
                    "draw": record["data"].get("draw", 0),
                    "protocol_id": record["protocol_id"],
                    "protocol": record["protocol"],
                    "metric": metric,
                    "value": record["metrics"].get(metric),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def one_table(title: str, task: str, runs: pd.DataFrame, published: pd.DataFrame) -> str:
    """One Markdown table of runs on one data set, with its footnotes."""
    metrics = METRICS[task]
    sizes = sorted(
        {*runs["size"], *published["size"]}, key=lambda s: (SIZE_ORDER.index(s) if s in SIZE_ORDER else 99, s)
    )
    inits = sorted(
        {*runs["init"], *published["init"]}, key=lambda i: (INIT_ORDER.index(i) if i in INIT_ORDER else 99, i)
    )
    columns = [(metric, size) for metric in metrics for size in sizes]
    heads = [f"{metrics[metric]} {size.upper() if len(size) == 1 else size}" for metric, size in columns]
    lines = [title, "", "| initialisation | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(columns)]
    notes: list[str] = []
    references = reference_runs(runs)
    for init in inits:
        name = INIT_TITLES.get(init, init)
        quoted = published[published["init"] == init]
        if not quoted.empty:
            cells = [published_cell(quoted, metric, size) for metric, size in columns]
            lines.append(f"| {name}, published ({'; '.join(quoted['source'].unique())}) | " + " | ".join(cells) + " |")
        for rows in rows_of_like_runs(runs[runs["init"] == init]):
            differs = [f"{size}: {change}" for size, change in differences(rows, references) if change]
            marker = f" [{len(notes) + 1}]" if differs else ""
            cells = [run_cell(rows[(rows["metric"] == metric) & (rows["size"] == size)]) for metric, size in columns]
            lines.append(f"| {name}{marker} | " + " | ".join(cells) + " |")
            if differs:
                notes.append(
                    f"[{len(notes) + 1}] unlike the table's reference run of its size in " + "; ".join(differs) + "."
                )
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def rows_of_like_runs(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """Split the runs of one initialisation into table rows such that no cell averages unlike runs.

    Per size, runs are grouped by backbone, weights file and protocol; the k-th group of a size goes to the k-th row.
    """
    rows: list[list[pd.DataFrame]] = []
    for _, of_size in runs.groupby("size", sort=True):
        for k, (_, group) in enumerate(of_size.groupby(["backbone", "weights", "protocol_id"], sort=True)):
            if k == len(rows):
                rows.append([])
            rows[k].append(group)
    return [pd.concat(groups) for groups in rows]


def reference_runs(runs: pd.DataFrame) -> dict[str, pd.Series]:
    """Per size the run that the others' protocols are compared with: MAE's where there is one, else the first."""
    return {
        str(size): (group[group["init"] == "mae"] if (group["init"] == "mae").any() else group)
        .sort_values("run_id")
        .iloc[0]
        for size, group in runs.groupby("size", sort=True)
    }


def differences(rows: pd.DataFrame, references: dict[str, pd.Series]) -> list[tuple[str, str]]:
    """Per size of a table row: 'optim.lr 8e-05 -> 4e-05, ...' against the reference run, empty where they agree."""
    found = []
    for size, group in rows.groupby("size", sort=True):
        run, reference = group.iloc[0], references[str(size)]
        changes = []
        if run["init"] == reference["init"]:
            changes = [
                f"{key} {reference[key]} -> {run[key]}" for key in ("backbone", "weights") if run[key] != reference[key]
            ]
        old, new = reference["protocol"], run["protocol"]
        changes += [
            f"{key} {old.get(key)} -> {new.get(key)}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)
        ]
        found.append((str(size), ", ".join(changes)))
    return found


def run_cell(rows: pd.DataFrame) -> str:
    """'50.3 (n=1)', '50.3 ± 0.1 (n=3)', or '-' where no run is recorded.

    A seed (and draw of few shots) that was run twice counts once: the run with the last run id, which starts with its
    time.
    """
    values = rows.drop_duplicates(["seed", "draw"], keep="last")["value"].dropna()
    if values.empty:
        return "-"
    if len(values) == 1:
        return f"{values.iloc[0]:.1f} (n=1)"
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f} (n={len(values)})"


def published_cell(quoted: pd.DataFrame, metric: str, size: str) -> str:
    found = quoted[(quoted["metric"] == metric) & (quoted["size"] == size)]["value"]
    return f"{found.iloc[0]:.1f}" if len(found) else "-"
