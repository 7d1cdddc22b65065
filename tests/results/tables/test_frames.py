"""Data frames say what the Markdown says: the same cells, the same numbers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from support.paths import ROOT

import mae_transfer as mt
from mae_transfer.errors import UserError
from mae_transfer.results.tables.frames import Tables
from mae_transfer.results.tables.table import Table, number

STUDY = ROOT / "results" / "evidence"


def test_the_frames_of_the_study_hold_the_cells_of_its_markdown() -> None:
    tables = mt.tables(STUDY, control="random")
    written = (STUDY / "tables.md").read_text()
    assert str(tables) == written
    sections = re.split("^## ", written, flags=re.MULTILINE)[1:]
    assert [section.partition("\n")[0] for section in sections] == list(tables)
    for section, title in zip(sections, tables, strict=True):
        lines = [line for line in section.splitlines() if line.startswith("| ")]
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        texts, frame = tables.texts(title), tables[title]
        assert rows[0] == [texts.index.name, *texts.columns]
        assert rows[1:] == [[label, *cells] for label, cells in zip(texts.index, texts.to_numpy(), strict=True)]
        for said, value in zip(texts.to_numpy().ravel(), frame.to_numpy().ravel(), strict=True):
            number = re.match(r"<?[+−]?\d+(\.\d+)?", said)
            assert (number is None) == pd.isna(value)
            if number is not None and "<" not in said:
                digits = len((number[1] or ".")[1:])
                assert f"{value:.{digits}f}".replace("-0.0", "0.0").lstrip("-") == number[0].lstrip("+−"), said
        assert frame.attrs["note"] in section.replace("\\", "")


def test_a_notebook_shows_every_cell_and_a_program_reads_each() -> None:
    tables = mt.tables(STUDY)
    page = tables._repr_html_()
    assert page.count("<table>") == len(tables)
    cells = tables.cells()
    assert {"value", "std", "n", "low", "high"} <= set(cells)
    assert set(cells["table"]) == {title for title in tables if not tables.texts(title).isin(["-"]).all(axis=None)}
    assert cells["n"].max() >= 3
    with pytest.raises(KeyError, match="did you mean Overview, mini"):
        tables[next(iter(tables)).lower()]


def test_tables_are_made_without_torch() -> None:
    code = f"import sys; sys.modules['torch'] = None; import mae_transfer as mt; print(len(mt.tables({str(STUDY)!r})))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert int(done.stdout) == len(mt.tables(STUDY))


def test_no_table_is_lost_to_another_of_its_title() -> None:
    one, other = (Table("T", "", ("a", "b"), (("r", (number(value),)),)) for value in (1.0, 2.0))
    tables = Tables([one, other])
    assert [frame.loc["r", "b"] for frame in tables.values()] == [1.0, 2.0]
    assert list(tables) == ["T", "T (2)"]


def test_records_are_found_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    records = mt.find_records(STUDY, summary=True)
    assert len(records) == 156
    assert "history" not in records[0]
    assert str(mt.tables(records)) == str(mt.tables(STUDY))
    (tmp_path / "record.json").write_text("{")
    with pytest.warns(UserWarning, match="no whole JSON"):
        assert mt.find_records(tmp_path) == []
    with pytest.raises(UserError, match="no folder"):
        mt.tables(tmp_path / "gone")
