"""The committed study: its records are whole, and its tables are those that its records give."""

from support.paths import ROOT
from support.tables import make_tables

from mae_transfer.run_folder.record import read_records

STUDY = ROOT / "results" / "evidence"


def test_the_tables_are_rebuilt_from_the_records() -> None:
    records, left_out = read_records(STUDY)
    assert not left_out
    assert len(records) == 57
    assert make_tables(records, control="random") == (STUDY / "tables.md").read_text()


def test_the_page_quotes_them() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text()
    tables = (STUDY / "tables.md").read_text()
    for quoted in ("10.8 ± 0.4", "+4.8 [+4.3, +5.4]*", "7.0 ± 0.3", "+1.9 [+1.3, +2.5]*", "+0.2 [−0.1, +0.6]"):
        assert quoted in page, quoted
        assert quoted in tables, quoted
