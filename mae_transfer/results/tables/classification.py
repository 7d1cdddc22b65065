"""The tables of image classification: the protocols of a data set in one table, partial fine-tuning, robustness.

A row is a protocol and an initialisation, a column a metric and an encoder's size (with the image size where it is not
224 pixels). Rows of published numbers stand in the tables of full runs on the whole benchmark; the blind row is
the accuracy of always naming the commonest class of the training set, or of chance where a record does not hold that.
"""

from collections.abc import Sequence

import pandas as pd

from mae_transfer.results.comparable_runs import LikeRuns, changes, like_runs
from mae_transfer.results.tables import build as tables
from mae_transfer.results.tables.differences import Column, Comparison, Row
from mae_transfer.results.tables.table import MISSING, Cell, Table, number
from mae_transfer.run_folder.settings import settings_id as protocol_id

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
"""In the order of the tables; protocols that others have added follow by name."""
PROBES = ("linear", "attentive", "logreg", "knn")
"""Protocols of a frozen encoder; of added ones their records tell."""
BLIND = "blind (the commonest class)"
CHANCE = "chance (one of the classes)"
FIRST = "protocol, initialisation"


def classification_tables(runs: pd.DataFrame, published: pd.DataFrame, comparison: Comparison) -> list[Table]:
    """The tables of every classification task that has a run in the long table."""
    runs = runs[(runs["task"] != "pretrain") & (runs["kind"] != "")]
    runs = runs[runs["metric"].isin(ACCURACY | ROBUSTNESS)]
    parts: list[Table] = []
    for task in sorted(runs["task"].unique()):
        of_task, quoted = runs[runs["task"] == task], published[published["task"] == task]
        benchmark = (of_task["preset"] == "full") & (of_task["data"] == TITLES.get(task))
        if benchmark.any():
            parts += tables_of(TITLES[task], of_task[benchmark], quoted, task, comparison)
        elif task in TITLES:
            title = f"{TITLES[task]} (no full run recorded yet)"
            parts += tables_of(title, of_task.iloc[:0], quoted, task, comparison)
        for preset in ("full", "mini", "smoke"):
            others = of_task[(of_task["preset"] == preset) & ~benchmark]
            for (data, _), group in others.groupby(["data", "data_fingerprint"], sort=True):
                note = tables.PRESET_NOTES[preset]
                parts += tables_of(f"{task}, {preset}: {data}", group, quoted.iloc[:0], task, comparison, note)
    return parts


def tables_of(
    title: str, runs: pd.DataFrame, quoted: pd.DataFrame, task: str, comparison: Comparison, note: str = ""
) -> list[Table]:
    """The tables of one data set: accuracy, then partial fine-tuning and robustness if there is something to show."""
    partial, quoted_partial = runs["kind"] == "partial", quoted["protocol"] == "partial"
    metrics = ACCURACY if len(runs) else {"top1": ACCURACY["top1"]}
    accuracy = sections(runs[~partial & runs["metric"].isin(metrics)], quoted[~quoted_partial], metrics)
    parts = tables.task_tables(
        title, note, accuracy, metrics, task, comparison, first=FIRST, lead=blind_row(runs) if accuracy else ()
    )
    if partial.any() or quoted_partial.any():
        parts += partial_tables(f"{title}, partial fine-tuning", note, runs, quoted[quoted_partial], task, comparison)
    robust = runs[runs["metric"].isin(ROBUSTNESS) & runs["value"].notna()]
    if len(robust) or quoted["metric"].isin(ROBUSTNESS).any():
        parts += tables.task_tables(
            f"{title}, robustness",
            note,
            sections(robust, quoted, ROBUSTNESS),
            ROBUSTNESS,
            task,
            comparison,
            first=FIRST,
            costs=False,
        )
    return parts


def sections(runs: pd.DataFrame, quoted: pd.DataFrame, metrics: dict[str, str]) -> list[tables.Section]:
    """A section for each protocol and recipe; published numbers stand in the first of their protocol."""
    quoted, found = quoted[quoted["metric"].isin(metrics)], []
    for kind in (*PROTOCOLS, *sorted({*runs["kind"]} - {*PROTOCOLS})):
        of_kind, quoted_kind = runs[runs["kind"] == kind], quoted[quoted["protocol"] == kind]
        recipes = sorted(of_kind["recipe"].unique())
        for number_of, recipe in enumerate(recipes or [""] * (len(quoted_kind) > 0)):
            found.append(
                tables.Section(
                    f"{kind}, ",
                    of_kind[of_kind["recipe"] == recipe],
                    quoted_kind.iloc[: None if number_of == 0 else 0],
                    f" ({recipe})" if len(recipes) > 1 else "",
                    frozen=kind in PROBES or bool(of_kind["frozen"].any()),
                )
            )
    return found


def blind_row(runs: pd.DataFrame) -> list[tuple[str, Cell]]:
    """The commonest class, or chance; a range where the shots of the draws differ."""
    for label, values in ((BLIND, runs["blind"]), (CHANCE, 100 / runs["classes"])):
        found = sorted(values.dropna().unique())
        if len(found) == 1:
            return [(label, number(found[0]))]
        if found:
            return [(label, Cell(f"{found[0]:.1f} to {found[-1]:.1f}"))]
    return []


def partial_tables(
    title: str, note: str, runs: pd.DataFrame, quoted: pd.DataFrame, task: str, comparison: Comparison
) -> list[Table]:
    """Top-1 by the number of blocks; the linear probe of the same data stands at 0."""
    linear = runs[(runs["kind"] == "linear") & (runs["recipe"] == "linear_mae")].assign(blocks=0.0)
    own = pd.concat([runs[runs["kind"] == "partial"], linear])
    own = own[own["metric"] == "top1"].sort_values("run_id", kind="stable")
    columns = [Column(f"{b:g}", "top1", float(b)) for b in sorted({*own["blocks"].dropna(), *quoted["blocks"]})]
    lines, notes, compared = list[tuple[str, tuple[Cell, ...]]](), list[str](), list[list[Row]]()
    sizes = tables.in_order({*own["size"], *quoted["size"]}, tables.SIZE_ORDER, lambda s: s.rstrip("0123456789"))
    for size in sizes:
        groups = like_runs(own[own["size"] == size])
        quoted_size = quoted[quoted["size"] == size]
        inits = {*(g.init for g in groups), *quoted_size["init"], *tables.CONTROLS}
        rows: list[Row] = []
        for init in tables.in_order(inits, tables.INIT_ORDER):
            name = f"{tables.INIT_TITLES.get(init, init)} {tables.size_title(size)}"
            for source, group in quoted_size[quoted_size["init"] == init].groupby("source", sort=False):
                found = dict(zip(group["blocks"].astype(float), group["value"], strict=True))
                cells = (number(found[c.place]) if c.place in found else MISSING for c in columns)
                lines.append((f"{name}, published ({source})", tuple(cells)))
            of_init = _partial_rows(name, [g for g in groups if g.init == init], notes)
            lines += [tables.run_line(row, columns) for row in of_init]
            if not of_init and init in tables.CONTROLS:
                lines.append((name, (MISSING,) * len(columns)))
            rows += of_init
        compared.append(rows)
    first = "initialisation, size"
    table = Table(title, note, (first, *(column.head for column in columns)), tuple(lines), tuple(notes))
    return [table, *tables.after(title, first, compared, columns, task, comparison, name=lambda b: f"{b:g} blocks")]


def _partial_rows(name: str, groups: Sequence[LikeRuns], notes: list[str]) -> list[Row]:
    """A row for the runs that differ in the number of blocks alone, in the order of their first runs.

    The linear probe of the same weights stands at 0 blocks in each row, unless there are unlike ones: then those have
    rows of their own. Every row but the first has a note that names what differs from the first.
    """
    sets: dict[tuple[str, ...], list[LikeRuns]] = {}
    probes: dict[tuple[str, str], list[LikeRuns]] = {}
    for group in sorted(groups, key=lambda g: g.first):
        if group.kind == "linear":
            probes.setdefault((group.backbone, group.weights), []).append(group)
        else:
            like = protocol_id({key: value for key, value in group.protocol.items() if key != "model.blocks"})
            sets.setdefault((group.backbone, group.weights, like), []).append(group)
    rows = [{group.blocks: group for group in of_set} for of_set in sets.values()]
    for weights, of_weights in probes.items():
        same = [row for key, row in zip(sets, rows, strict=False) if key[:2] == weights]
        if same and len(of_weights) == 1:
            for row in same:
                row[0.0] = of_weights[0]
        else:
            rows += [{0.0: probe} for probe in of_weights]
    found: list[Row] = []
    for row in rows:
        unlike = changes(_first(row), _first(rows[0]), ignore=("model.blocks",))
        if unlike:
            notes.append(f"[{len(notes) + 1}] unlike the first line of {name} in {unlike}.")
        found.append(Row(f"{name} [{len(notes)}]" if unlike else name, dict(sorted(row.items()))))
    return found


def _first(row: dict[float, LikeRuns]) -> LikeRuns:
    """Of partial fine-tuning where there is any."""
    return min(row.values(), key=lambda group: (group.kind == "linear", group.first))
