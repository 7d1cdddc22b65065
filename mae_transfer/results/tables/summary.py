"""One small table of several tasks: a row for each main metric, the control, the others, and their differences."""

from collections.abc import Iterable

from mae_transfer.results.comparable_runs import comparable_runs
from mae_transfer.results.long_table import long_table
from mae_transfer.results.names import init_title
from mae_transfer.results.tables.differences import NOTE, Comparison, difference
from mae_transfer.results.tables.table import MISSING, Cell, Table
from mae_transfer.run_folder.schema import RunRecord


def summary_table(records: Iterable[RunRecord], control: str) -> Table:
    """The main metrics of transfers, by data set and protocol, each initialisation beside the control.

    It is for runs of one study, such as those of a suite: where an initialisation has several sets of comparable runs
    on the same data by the same protocol, the first is shown.
    """
    table = long_table(records)
    table = table[table["transfers"].astype(bool) & table["main"].eq(True)]
    others = [init for init in dict.fromkeys(table["init"]) if init != control]
    head = ["", init_title(control)]
    for init in others:
        head += [init_title(init), f"{init_title(init)} − {init_title(control)}"]
    rows = []
    comparison = Comparison(control)
    keys = ["task", "heading", "data", "data_fingerprint", "protocol", "recipe"]
    for (_, heading, data, _, protocol, _), of_task in table.groupby(keys, sort=True):
        for metric, metric_title in dict(zip(of_task["metric"], of_task["metric_title"], strict=True)).items():
            groups = {group.init: group for group in reversed(comparable_runs(of_task[of_task["metric"] == metric]))}
            against = groups.get(control)
            cells: list[Cell] = [against.cell(metric) if against else MISSING]
            for init in others:
                group = groups.get(init)
                cells.append(group.cell(metric) if group else MISSING)
                cells.append(difference(group, against, metric, comparison) if group and against else MISSING)
            name = heading if data.lower() == heading.lower() else f"{heading}: {data}"
            rows.append((f"{name}{f', {protocol}' if protocol else ''}: {metric_title}", tuple(cells)))
    return Table("Transfer", NOTE, tuple(head), tuple(rows))
