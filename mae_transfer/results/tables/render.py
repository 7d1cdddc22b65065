"""Tables written down as Markdown, LaTeX, HTML or CSV. Whatever a name holds, it cannot break out of its cell."""

import csv
import html
import io
import re
from collections.abc import Callable, Iterator, Sequence

from mae_transfer.results.tables.table import Table

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "Δ": r"$\Delta$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def markdown(tables: Sequence[Table]) -> str:
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [f"## {_escape_markdown(table.title)}", ""]
    lines += [table.note, ""] if table.note else []
    lines += [line([_escape_markdown(head) for head in table.head]), "|---|" + "---:|" * (len(table.head) - 1)]
    for label, cells in table.rows:  # a cell with a value is a number of our own writing, such as <0.01
        texts = [cell.text if cell.value is not None else _escape_markdown(cell.text) for cell in cells]
        lines.append(line([_escape_markdown(label), *texts]))
    lines += ["", *map(_escape_markdown, table.footnotes)] if table.footnotes else []
    return "\n".join([*lines, ""])


def _escape_markdown(text: str) -> str:
    """A name of somebody else's must not open a cell, a link, code or HTML."""
    return re.sub(r"([|`<\\])", r"\\\1", _one_line(text))


def latex(tables: Sequence[Table]) -> str:
    """Floats in booktabs' style, to be \\input: the document needs \\usepackage{booktabs}."""
    return "\n".join(["% needs \\usepackage{booktabs}", *(_latex(table) for table in tables)])


def _latex(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(_escape_latex(cell) for cell in cells) + r" \\"

    note = " ".join(filter(None, [table.title + ".", table.note, *table.footnotes]))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape_latex(note)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"\toprule",
            line(table.head),
            r"\midrule",
            *(line([label, *(cell.text for cell in cells)]) for label, cells in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _escape_latex(text: str) -> str:
    return re.sub(r"[&%$#_{}\\~^±−Δ<>|]", lambda match: _LATEX[match[0]], _one_line(text))


def html_page(tables: Sequence[Table]) -> str:
    """One plain page, without script or style; the report is the one to read."""
    parts = ['<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>mae_transfer: results</title>']
    parts += [html_table(table) for table in tables]
    return "\n".join([*parts, "</html>", ""])


def html_table(table: Table) -> str:
    """A table with its title, note and footnotes."""
    heads = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in table.head)
    rows = "\n".join(
        f'<tr><th scope="row">{html.escape(label)}</th>'
        + "".join(f"<td>{html.escape(cell.text)}</td>" for cell in cells)
        + "</tr>"
        for label, cells in table.rows
    )
    parts = [f"<h2>{html.escape(table.title)}</h2>", *(f"<p>{html.escape(note)}</p>" for note in [table.note] if note)]
    parts.append(f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>")
    return "\n".join([*parts, *(f"<p>{html.escape(note)}</p>" for note in table.footnotes)])


CSV_COLUMNS = ("table", "row", "column", "text", "value", "std", "n", "low", "high", "footnotes")


def csv_text(tables: Sequence[Table]) -> str:
    """A line per cell that is not missing, with its numbers unrounded; the footnotes that the row's label names."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([CSV_COLUMNS, *csv_rows(tables)])
    return buffer.getvalue()


def csv_rows(tables: Sequence[Table]) -> Iterator[list[object]]:
    """The lines of `csv_text`, as values of `CSV_COLUMNS`."""
    for table in tables:
        for label, cells in table.rows:
            notes = " ".join(note for note in table.footnotes if note.split(" ", 1)[0] in label)
            for head, cell in zip(table.head[1:], cells, strict=True):
                if cell.text != "-":
                    numbers = [cell.value, cell.std, cell.n, cell.low, cell.high]
                    yield [table.title, label, head, cell.text, *numbers, notes]


def _one_line(text: str) -> str:
    return " ".join(text.split())


FORMATS: dict[str, tuple[Callable[[Sequence[Table]], str], str]] = {
    "markdown": (markdown, "md"),
    "latex": (latex, "tex"),
    "csv": (csv_text, "csv"),
    "html": (html_page, "html"),
}
"""Format -> what writes it, and a file's suffix."""
