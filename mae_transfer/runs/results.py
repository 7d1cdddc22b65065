"""The Python calls that read what runs left: records and tables. Needs no torch."""

import warnings
from collections.abc import Iterable
from pathlib import Path

from mae_transfer.errors import UserError
from mae_transfer.files import user_path
from mae_transfer.results.tables.build import build_tables
from mae_transfer.results.tables.frames import Tables
from mae_transfer.run_folder import record
from mae_transfer.run_folder.record import RUNS
from mae_transfer.run_folder.schema import RunRecord
from mae_transfer.runs.tasks import descriptions


def find_records(folder: str | Path = RUNS, *, summary: bool = False) -> list[RunRecord]:
    """The records of all runs below a folder, in the order of their starts.

    What is left out is a Python warning each: damaged files, and runs that are recorded twice.

    Args:
        folder: the runs' own or any above them; `~` is the home folder.
        summary: leave out the history, the load report and metrics of single classes: a tenth of the memory.

    Returns:
        Mappings as docs/records.md describes them: `record["metrics"]` is a flat map of name to number (accuracies, AP
        and IoU in percent), `record["folder"]` the run's folder.

    Raises:
        UserError: there is no such folder.
    """
    place = user_path(folder)
    if not place.is_dir():
        raise UserError(f"no folder {place}; name the folder of the runs")
    records, left_out = record.read_records(place, summary=summary)
    _warn(left_out)
    return records


def tables(runs: str | Path | Iterable[RunRecord] = RUNS, *, control: str | None = None) -> Tables:
    """The tables of `mae-transfer tables`, with the same numbers, as pandas data frames by title.

        tables = mt.tables("results/runs")
        tables                                   # in a notebook: all of them, as in the Markdown
        tables[title]["AP box B"]                # means as floats
        tables.cells()                           # a row per cell: mean, deviation, n, interval

    Args:
        runs: a folder of runs, or records (`find_records`, or what `run_transfer` returned).
        control: the initialisation that differences are taken to, such as `random`; None is supervised pre-training
            where a table has it, else random (on ImageNet-1K always random).

    Returns:
        `Tables` (`results/tables/frames.py`), which says what a frame holds.

    Raises:
        UserError: no such folder, or no record has the control's initialisation.
    """
    records = find_records(runs, summary=True) if isinstance(runs, str | Path) else runs
    lines: list[str] = []
    built = build_tables(records, control=control, descriptions=descriptions(), warnings=lines)
    _warn(lines)
    return Tables(built)


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        warnings.warn(line, stacklevel=3)
