"""The committed studies: their tables are those that their records give, and pages quote nothing else."""

import re
from pathlib import Path

import pytest
from support.paths import ROOT
from support.tables import make_tables

from mae_transfer.run_folder.record import read_records

STUDIES = {"evidence": 156, "real_weights": 10}
NUMBERS = re.compile(r"[0-9.]+ ± [0-9.]+|[+−][0-9.]+ \[[^\]]+\]")


@pytest.mark.parametrize("study", STUDIES)
def test_the_tables_are_rebuilt_from_the_records(study: str) -> None:
    folder = ROOT / "results" / study
    records, left_out = read_records(folder)
    assert not left_out
    assert len(records) == STUDIES[study]
    assert make_tables(records, control="random") == (folder / "tables.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/evidence.md"])
def test_a_page_quotes_the_tables(page: str) -> None:
    tables = "".join((ROOT / "results" / study / "tables.md").read_text() for study in STUDIES)
    text, _, _ = (ROOT / page).read_text().partition("## The demo")
    quoted = NUMBERS.findall(text)
    assert len(quoted) > 12
    assert not [number for number in quoted if number not in tables]


def test_no_record_names_a_place_of_the_machine_that_made_it() -> None:
    for study in STUDIES:
        for path in sorted(Path(ROOT / "results" / study).glob("*/record.json")):
            assert not re.search(r'"(/|[^"]*=/)', path.read_text()), path
