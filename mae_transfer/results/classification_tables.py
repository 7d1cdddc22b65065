"""The tables of image classification: the protocols of a data set in one table, partial fine-tuning, robustness.

A row is a protocol and an initialisation, a column a metric and an encoder's size (with the image size where it is not
224 pixels). Rows of published numbers stand in the tables of full runs on the whole benchmark; the blind row is
the accuracy of always naming the commonest class of the training set.
"""

from collections.abc import Callable
from typing import Any

import pandas as pd

from mae_transfer.results import tables
from mae_transfer.results.record import protocol_id

TITLES = {
    "imagenet": "ImageNet-1K val",
    "inat2017": "iNaturalist 2017 val",
    "inat2018": "iNaturalist 2018 val",
    "inat2019": "iNaturalist 2019 val",
    "inat2021": "iNaturalist 2021 val",
    "places205": "Places205 val",
    "places365": "Places365 val",
}
"""Task -> name of the data set that the published numbers are of; `folder` has none."""

ACCURACY = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
ROBUSTNESS = {
    "imagenet_c_mCE": "IN-C mCE (lower is better)",
    "imagenet_a_top1": "IN-A top-1",
    "imagenet_r_top1": "IN-R top-1",
    "imagenet_sketch_top1": "IN-Sketch top-1",
}
PROTOCOLS = ("finetune", "partial", "linear", "attentive", "logreg", "knn")
"""In the order of the tables."""
BLIND = "blind (the commonest class)"


def classification_tables(records: list[dict[str, Any]], published: pd.DataFrame) -> list[str]:
    """The tables of every classification task that has a record."""
    records = [record for record in records if "protocol" in record["protocol"]]
    metrics = {record["task"]: ACCURACY | ROBUSTNESS for record in records}
    runs = with_protocol(tables.to_frame(records, metrics), records)
    parts = []
    for task in sorted(metrics):
        of_task, quoted = runs[runs["task"] == task], published[published["task"] == task]
        benchmark = (of_task["preset"] == "full") & (of_task["data"] == TITLES.get(task))
        if benchmark.any():
            parts += tables_of(f"## {TITLES[task]}", of_task[benchmark], quoted)
        elif task in TITLES:
            parts += tables_of(f"## {TITLES[task]} (no full run recorded yet)", of_task.iloc[:0], quoted)
        for preset in ("full", "mini", "smoke"):
            others = of_task[(of_task["preset"] == preset) & ~benchmark]
            for (data, _), group in others.groupby(["data", "data_fingerprint"], sort=True):
                title = f"## {task}, {preset}: {data}"
                parts += tables_of(title, group, quoted.iloc[:0], f"\n\n{tables.PRESET_NOTES[preset]}")
    return parts


def with_protocol(runs: pd.DataFrame, records: list[dict[str, Any]]) -> pd.DataFrame:
    """Add `kind` (the protocol's name), `blocks` and `blind`; the size's name gets an image size that is not 224."""
    blind = {record["run_id"]: record["data"]["blind"] for record in records}
    pixels = runs["protocol"].map(lambda protocol: protocol["data.image_size"]).astype(object)
    return runs.assign(
        kind=runs["protocol"].map(lambda protocol: protocol["protocol"]),
        blocks=runs["protocol"].map(lambda protocol: protocol["model.blocks"]).astype(float),
        blind=runs["run_id"].map(blind),
        size=[size if side == 224 else f"{size}{side}" for size, side in zip(runs["size"], pixels, strict=True)],
    )


def tables_of(title: str, runs: pd.DataFrame, quoted: pd.DataFrame, note: str = "") -> list[str]:
    """The tables of one data set: accuracy, then partial fine-tuning and robustness if there is something to show."""
    parts = [accuracy_table(title + note, runs, quoted)]
    if (runs["kind"] == "partial").any() or (quoted["protocol"] == "partial").any():
        parts.append(partial_table(f"{title}, partial fine-tuning{note}", runs, quoted))
    robust = runs[runs["metric"].isin(ROBUSTNESS) & runs["value"].notna()]
    if not robust.empty or quoted["metric"].isin(ROBUSTNESS).any():
        parts.append(_rows_table(f"{title}, robustness{note}", robust, quoted, ROBUSTNESS, robust["blind"].iloc[:0]))
    return parts


def accuracy_table(title: str, runs: pd.DataFrame, quoted: pd.DataFrame) -> str:
    """Top-1, and top-5 and mean per class of recorded runs, of every protocol but partial fine-tuning."""
    metrics = ACCURACY if len(runs) else {"top1": ACCURACY["top1"]}
    own = runs[(runs["kind"] != "partial") & runs["metric"].isin(metrics)]
    return _rows_table(title, own, quoted[quoted["protocol"] != "partial"], metrics, runs["blind"])


def _rows_table(title: str, runs: pd.DataFrame, quoted: pd.DataFrame, metrics: dict[str, str], blind: pd.Series) -> str:
    quoted = quoted[quoted["metric"].isin(metrics)]
    sizes = _sizes(runs, quoted)
    columns = [(metric, size) for metric in metrics for size in sizes]
    heads = [f"{metrics[metric]} {_size_title(size)}" for metric, size in columns]
    lines, notes = _head(title, "protocol, initialisation", heads), list[str]()
    if len(blind):
        values = sorted(blind.unique())  # one, unless the shots of the draws differ
        text = f"{values[0]:.1f}" if len(values) == 1 else f"{values[0]:.1f} to {values[-1]:.1f}"
        lines.append(_line(BLIND, [text if metric == "top1" else "-" for metric, _ in columns]))
    for kind in PROTOCOLS:
        of_kind, quoted_kind = runs[runs["kind"] == kind], quoted[quoted["protocol"] == kind]
        several = of_kind["recipe"].nunique() > 1
        for init in _inits(of_kind, quoted_kind):
            name = f"{kind}, {tables.INIT_TITLES.get(init, init)}"
            for source, group in quoted_kind[quoted_kind["init"] == init].groupby("source", sort=False):
                cells = [tables.published_cell(group, metric, size) for metric, size in columns]
                lines.append(_line(f"{name}, published ({source})", cells))
            for recipe, group in of_kind[of_kind["init"] == init].groupby("recipe", sort=True):
                label = f"{name} ({recipe})" if several else name
                references = tables.reference_runs(of_kind[of_kind["recipe"] == recipe])
                lines += _run_lines(label, group, references, notes, lambda rows: _cells(rows, columns))
    return _text(lines, notes)


def partial_table(title: str, runs: pd.DataFrame, quoted: pd.DataFrame) -> str:
    """Top-1 by the number of blocks; the linear probe of the same data stands at 0."""
    quoted = quoted[quoted["protocol"] == "partial"]
    linear = runs[(runs["kind"] == "linear") & (runs["recipe"] == "linear_mae")].assign(blocks=0.0)
    own = pd.concat([runs[runs["kind"] == "partial"], linear])
    own = own[own["metric"] == "top1"]
    columns = sorted({*own["blocks"], *quoted["blocks"]})
    lines, notes = _head(title, "initialisation, size", [f"{blocks:g}" for blocks in columns]), list[str]()
    for size in _sizes(own, quoted):
        of_size, quoted_size = own[own["size"] == size], quoted[quoted["size"] == size]
        for init in _inits(of_size, quoted_size):
            name = f"{tables.INIT_TITLES.get(init, init)} {_size_title(size)}"
            for source, group in quoted_size[quoted_size["init"] == init].groupby("source", sort=False):
                found = dict(zip(group["blocks"], group["value"], strict=True))
                cells = [f"{found[blocks]:.1f}" if blocks in found else "-" for blocks in columns]
                lines.append(_line(f"{name}, published ({source})", cells))
            runs_of_init = of_size[of_size["init"] == init]
            if len(runs_of_init):
                lines += _partial_lines(name, runs_of_init, columns, notes)
    return _text(lines, notes)


def _partial_lines(name: str, runs: pd.DataFrame, columns: list[float], notes: list[str]) -> list[str]:
    """A line for the runs that differ in the number of blocks alone, in the order of their first runs.

    The linear probe of the same weights stands at 0 blocks in each line, unless there are unlike ones: then those have
    lines of their own. Every line but the first has a note that names what differs from the first.
    """
    keys = ["backbone", "weights", "like"]
    runs = runs.assign(protocol=runs["protocol"].map(_without_blocks))
    runs = runs.assign(like=runs["protocol"].map(protocol_id)).sort_values("run_id")
    partial, linear = runs[runs["kind"] == "partial"], runs[runs["kind"] == "linear"]
    sets = [rows for _, rows in partial.groupby(keys, sort=False)]
    for _, probes in linear.groupby(["backbone", "weights"], sort=False):
        first = probes.iloc[0]
        same = [
            k
            for k, rows in enumerate(sets)
            if (rows.iloc[0][["backbone", "weights"]] == first[["backbone", "weights"]]).all()
        ]
        if same and probes["like"].nunique() == 1:
            for k in same:
                sets[k] = pd.concat([sets[k], probes])
        else:
            sets += [rows for _, rows in probes.groupby("like", sort=False)]
    lines = []
    for rows in sets:
        cells = [tables.run_cell(rows[rows["blocks"] == blocks]) for blocks in columns]
        changes = tables.differences(rows.iloc[:1], tables.reference_runs(sets[0].iloc[:1]))
        marker = ""
        if changes[0][1]:
            notes.append(f"[{len(notes) + 1}] unlike the first line of {name} in {changes[0][1]}.")
            marker = f" [{len(notes)}]"
        lines.append(_line(name + marker, cells))
    return lines


def _without_blocks(protocol: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in protocol.items() if key != "model.blocks"}


def _run_lines(
    label: str,
    runs: pd.DataFrame,
    references: dict[str, pd.Series],
    notes: list[str],
    cells: Callable[[pd.DataFrame], list[str]],
) -> list[str]:
    """A line for each set of like runs, with a note for what differs from the table's reference run."""
    lines = []
    for rows in tables.rows_of_like_runs(runs):
        differs = [f"{size}: {change}" for size, change in tables.differences(rows, references) if change]
        marker = ""
        if differs:
            notes.append(f"[{len(notes) + 1}] unlike the protocol's reference run of its size in {'; '.join(differs)}.")
            marker = f" [{len(notes)}]"
        lines.append(_line(label + marker, cells(rows)))
    return lines


def _cells(rows: pd.DataFrame, columns: list[tuple[str, str]]) -> list[str]:
    return [tables.run_cell(rows[(rows["metric"] == metric) & (rows["size"] == size)]) for metric, size in columns]


def _sizes(runs: pd.DataFrame, quoted: pd.DataFrame) -> list[str]:
    def place(size: str) -> tuple[int, str]:
        letters = size.rstrip("0123456789")
        return (tables.SIZE_ORDER.index(letters) if letters in tables.SIZE_ORDER else 99, size)

    return sorted({*runs["size"], *quoted["size"]}, key=place)


def _inits(runs: pd.DataFrame, quoted: pd.DataFrame) -> list[str]:
    order = tables.INIT_ORDER
    return sorted({*runs["init"], *quoted["init"]}, key=lambda i: (order.index(i) if i in order else 99, i))


def _size_title(size: str) -> str:
    letters = size.rstrip("0123456789")
    if letters not in tables.SIZE_ORDER:  # such as 384x12, of a backbone that is no standard size
        return size
    name = letters.upper() if len(letters) == 1 else letters
    return f"{name} {size[len(letters) :]}".strip()


def _head(title: str, first: str, heads: list[str]) -> list[str]:
    return [title, "", f"| {first} | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]


def _line(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _text(lines: list[str], notes: list[str]) -> str:
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])
