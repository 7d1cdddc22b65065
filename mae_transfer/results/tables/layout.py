"""Blocks laid out as tables: the runs, their differences to a control, their costs."""

from mae_transfer.results.tables.block import Block
from mae_transfer.results.tables.costs import cost_table
from mae_transfer.results.tables.differences import Comparison, difference_table
from mae_transfer.results.tables.table import Table


def lay_out(block: Block, comparison: Comparison) -> list[Table]:
    """The table of a block, and those of its differences and costs where there is something to show."""
    lines = tuple(row.line(block.columns) for section in block.sections for row in section)
    own = any(map(block.runs_of, block.sections))
    head = (block.first, *(column.head for column in block.columns))
    found = [
        Table(block.title, block.note, head, lines, block.footnotes, published_only=not own),
        difference_table(block, comparison),
        cost_table(block) if block.costs else None,
    ]
    return [table for table in found if table is not None]
