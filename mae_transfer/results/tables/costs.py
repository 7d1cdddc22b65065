"""What the runs of a table cost."""

from collections.abc import Sequence

import numpy as np

from mae_transfer.results.tables.block import Block
from mae_transfer.results.tables.table import MISSING, Cell, Table

NOTE = (
    "A run's wall time, evaluation during training included, times its GPUs or (CPU) its threads; peak memory of the "
    "largest process; parameters of the whole model; one forward pass of the encoder on one image, a multiplication "
    "and an addition being two operations. Means over the runs."
)
HEAD = ("runs", "GPU-hours", "CPU-hours", "peak memory (GiB)", "parameters (M)", "encoder GFLOPs")


def cost_table(block: Block) -> Table | None:
    """A row for each set of comparable runs; None where there are no runs."""
    rows = []
    for row in (row for section in block.sections for row in block.runs_of(section)):
        for where, group in row.places.items():
            runs = [run for _, run in sorted(group.runs.items())]
            hours = {
                kind: [run["hours"] for run in runs if run["processor"] == kind and run["hours"] == run["hours"]]
                for kind in ("GPU", "CPU")
            }
            cells = (
                Cell(str(len(runs)), float(len(runs))),
                _mean(hours["GPU"], 1),
                _mean(hours["CPU"], 1),
                _mean([run["peak_memory_bytes"] for run in runs], 2**30),
                _mean([run["parameters"] for run in runs], 1e6),
                _mean([run["encoder_flops"] for run in runs], 1e9),
            )
            rows.append((f"{row.label}, {block.place_title(where)}", cells))
    return Table(f"{block.title}: costs", NOTE, (block.first, *HEAD), tuple(rows)) if rows else None


def _mean(values: Sequence[float], unit: float) -> Cell:
    """The mean of those that are there, with three significant digits."""
    there = [value for value in values if value == value]
    if not there:
        return MISSING
    mean = float(np.mean(there)) / unit
    digits = 0 if mean >= 100 else 1 if mean >= 10 else 2
    return Cell(f"{mean:.{digits}f}" if mean >= 0.005 or mean == 0 else "<0.01", mean, n=len(there))
