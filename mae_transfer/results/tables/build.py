"""Tables from run records, next to the published numbers. Builds in seconds, without torch.

Rows are initialisations, columns are metrics by encoder size, cells are mean ± standard deviation over seeds with n.
Presets, data sets and recipes each have a table of their own. Within one, runs of unlike settings are never averaged:
they get a row each, with a footnote that names what differs. A table of runs is followed by one of differences to a
control and one of costs. An overview of all tasks comes first, with the rank agreement of its columns; tables of
published numbers alone come last.

What a task is, its records say. Blocks are described first (`dense.py`, `by_protocol.py`, `partial.py`), and laid out
in one place (`layout.py`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from mae_transfer.errors import UserError
from mae_transfer.results.layers import sweeps
from mae_transfer.results.long_table import long_table
from mae_transfer.results.published import read_published
from mae_transfer.results.tables.ablations import ablation_tables
from mae_transfer.results.tables.by_protocol import protocol_blocks
from mae_transfer.results.tables.claims import claim_tables
from mae_transfer.results.tables.dense import dense_blocks
from mae_transfer.results.tables.described import described_tasks
from mae_transfer.results.tables.differences import Comparison
from mae_transfer.results.tables.layers import layer_tables
from mae_transfer.results.tables.layout import lay_out
from mae_transfer.results.tables.other import other_runs
from mae_transfer.results.tables.overview import overviews
from mae_transfer.results.tables.render import FORMATS
from mae_transfer.results.tables.same_sets import same_sets
from mae_transfer.results.tables.sensitivity import sensitivity_tables
from mae_transfer.results.tables.table import Table
from mae_transfer.results.tables.variants import variant_tables
from mae_transfer.run_folder.schema import RunRecord


def make_tables(records: Iterable[RunRecord], *, style: str = "markdown", **options: Any) -> str:
    """All tables as one text; the same text whatever the order of the records.

    style: markdown, latex, csv or html.
    options: those of `build_tables`.
    """
    return FORMATS[style][0](build_tables(records, **options))


def build_tables(
    records: Iterable[RunRecord],
    *,
    control: str | None = None,
    descriptions: Iterable[Mapping[str, object]] = (),
    warnings: list[str] | None = None,
) -> list[Table]:
    """The tables of `make_tables`.

    Args:
        control: the initialisation to compare with; None is the first of the task's controls that has a run.
        descriptions: of known tasks (`TaskCard.describe`), for published numbers of tasks that have no run.
        warnings: gets a line for each run or metric that no table has room for, and each file that cannot be used.

    Raises:
        UserError: no record has the control's initialisation.
    """
    records = sorted(records, key=lambda record: str(record["run_id"]))
    warnings = [] if warnings is None else warnings
    records = same_sets(records, warnings)
    runs, published, variants = long_table(records), read_published(), read_published(variants=True)
    inits = sorted(runs["init"].unique())
    if control is not None and control not in inits:
        raise UserError(f"--control {control}: no record has this initialisation; there are: {', '.join(inits)}")
    comparison = Comparison(control, warnings)
    of_layers = layer_tables(described_tasks(runs, records, ()))
    runs = runs[sweeps(runs).isna()]
    tasks = described_tasks(runs, records, descriptions)
    tables: list[Table] = []
    for task in tasks:
        blocks = protocol_blocks if task.has_protocols else dense_blocks
        for block in blocks(task, published[published["task"] == task.name]):
            tables += lay_out(block, comparison)
        if task.on_benchmark(task.runs).any():
            tables += variant_tables(task, variants[variants["task"] == task.name])
    other = other_runs(records, tasks, warnings)
    top = [*overviews(tasks, comparison), *claim_tables(tasks, runs, comparison)]
    top += [*ablation_tables(tasks, runs, variants, comparison), *sensitivity_tables(tasks, comparison)]
    top += of_layers
    tables = [*top, *tables, *([other] if other else [])]
    return sorted(tables, key=lambda table: table.published_only)
