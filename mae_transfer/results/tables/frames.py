"""Tables as pandas data frames. A notebook shows what the Markdown says, a program reads the numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd

from mae_transfer.errors import nearest
from mae_transfer.results.tables.render import CSV_COLUMNS, csv_rows, html_table, markdown
from mae_transfer.results.tables.table import Cell, Table


class Tables(Mapping[str, pd.DataFrame]):
    """Title -> data frame, in the order of the Markdown tables. Print it for the Markdown; a notebook shows it whole.

    A frame has the rows' labels as index and the heads as columns. Its values are floats: a cell's mean over seeds in
    the unit of its column (percent, hours, GiB, ...), NaN where the Markdown has a dash or words. `frame.attrs` holds
    the table's `note` and `footnotes`.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables: dict[str, Table] = {}
        for table in tables:  # tasks of two packages may share a title
            same = sum(other.title == table.title for other in self._tables.values())
            self._tables[f"{table.title} ({same + 1})" if same else table.title] = table

    def __getitem__(self, title: str) -> pd.DataFrame:
        return self._frame(title, lambda cell: float("nan") if cell.value is None else cell.value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def texts(self, title: str) -> pd.DataFrame:
        """The same frame with what each cell says, such as "50.3 ± 0.1 (n=3)"."""
        return self._frame(title, lambda cell: cell.text)

    def cells(self) -> pd.DataFrame:
        """All cells of all tables, a row each: table, row, column, text, value, std (of the sample), n (runs), low and
        high (ends of the 95 % interval of a difference), footnotes. Missing cells have no row."""
        return pd.DataFrame(csv_rows(self._known), columns=list(CSV_COLUMNS))

    def __str__(self) -> str:
        return markdown(self._known)

    def __repr__(self) -> str:
        return "\n".join([f"{len(self)} tables:", *(f"  {title}" for title in self)])

    def _repr_html_(self) -> str:
        return "\n".join(f'<div style="overflow-x: auto">{html_table(table)}</div>' for table in self._known)

    @property
    def _known(self) -> list[Table]:
        return list(self._tables.values())

    def _frame(self, title: str, value: Callable[[Cell], object]) -> pd.DataFrame:
        if title not in self._tables:
            raise KeyError(f"no table {title!r}{nearest(title, self)}")
        table = self._tables[title]
        first, *heads = table.head
        index = pd.Index([label for label, _ in table.rows], name=first, dtype=object)
        frame = pd.DataFrame([[value(cell) for cell in cells] for _, cells in table.rows], index=index, columns=heads)
        frame.attrs = {"note": table.note, "footnotes": table.footnotes}
        return frame
