"""Published numbers of variants (ablations, other schedules, other code): tables of their own, beside no run."""

import pandas as pd

from mae_transfer.results.names import INIT_ORDER, init_title, metric_title, size_title, sizes_in_order
from mae_transfer.results.tables.described import TaskTables
from mae_transfer.results.tables.table import MISSING, Table, number

NOTE = (
    "Published numbers that are unlike the recipe or the released weights in what their row says: they are comparable "
    "with each other where one source has them, and with no run of another table."
)


def variant_tables(task: TaskTables, published: pd.DataFrame) -> list[Table]:
    """A table for each protocol and recipe of the task.

    Args:
        published: `read_published(variants=True)` of the task.
    """
    titles = {key: title for group in ("", *task.groups()) for key, title in task.metrics(group).items()}
    found = []
    for (protocol, recipe), part in published.groupby(["protocol", "recipe"], sort=True):
        metrics = [metric for metric in titles if metric in set(part["metric"])]
        columns = [
            (metric, size) for metric in metrics for size in sizes_in_order(set(part["size"][part["metric"] == metric]))
        ]
        rows = []
        for (init, variant, source), of_row in part.groupby(["init", "variant", "source"], sort=False):
            values = dict(zip(zip(of_row["metric"], of_row["size"], strict=True), of_row["value"], strict=True))
            cells = tuple(number(values[column]) if column in values else MISSING for column in columns)
            rows.append((str(init), (f"{init_title(str(init))}: {variant}, published ({source})", cells)))
        rows.sort(key=lambda row: INIT_ORDER.index(row[0]) if row[0] in INIT_ORDER else len(INIT_ORDER))
        heads = (metric_title(f"{titles[metric][0]} {size_title(size)}", titles[metric][1]) for metric, size in columns)
        what = ", ".join(filter(None, (task.benchmark, str(protocol), f"recipe {recipe}" if recipe else "")))
        title = f"Published variants: {what}"
        found.append(Table(title, NOTE, ("variant", *heads), tuple(row for _, row in rows), published_only=True))
    return found
