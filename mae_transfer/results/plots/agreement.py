"""A plot of rank agreement: Kendall's tau-b of each pair of columns of the overview, with its interval."""

from collections.abc import Sequence

from mae_transfer.results.names import PRESETS
from mae_transfer.results.plots.figure import Plot, Series
from mae_transfer.results.tables.agreement import agreements
from mae_transfer.results.tables.described import TaskTables
from mae_transfer.results.tables.scores import main_columns


def agreement_plots(tasks: Sequence[TaskTables]) -> list[Plot]:
    """One for each preset that has a pair of columns with enough common encoders."""
    plots = []
    for preset in PRESETS:
        columns, _ = main_columns(tasks, preset)
        found = agreements(columns)
        shown = sorted({number for pair in found for number in pair})
        series = []
        for first in shown:  # a column that is never the first has its name in the legend all the same
            pairs = {second: found[first, second] for second in shown if (first, second) in found}
            series.append(
                Series(
                    f"({first + 1}) {columns[first].head}",
                    tuple(f"{first + 1}–{second + 1}" for second in pairs),
                    tuple(of.tau for of in pairs.values()),
                    n=tuple(of.encoders for of in pairs.values()),
                    ends=tuple((of.interval.low, of.interval.high) for of in pairs.values()),
                    line=False,
                )
            )
        if found:
            plots.append(
                Plot(
                    f"agreement-{preset}",
                    f"Rank agreement of tasks and protocols, {preset} (95 % intervals over encoders)",
                    "pair of columns",
                    "Kendall's tau-b",
                    tuple(series),
                    ("pair", "tau"),
                    tuple(x for of in series for x in of.x),
                )
            )
    return plots
