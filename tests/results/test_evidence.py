"""The committed studies: their tables are those that their records give, and pages quote nothing else."""

import re
from pathlib import Path

import pytest
from scipy.stats import ttest_1samp
from support.paths import ROOT
from support.tables import make_tables

from mae_transfer.run_folder.record import read_records

STUDIES = {"evidence": 156, "dense_protocols": 93, "many_classes": 23, "real_weights": 26}
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
    tables += more_by_standardising("MAE (this project)", "supervised (this project)")
    text, _, _ = (ROOT / page).read_text().partition("## The demo")
    quoted = NUMBERS.findall(text)
    assert len(quoted) > 12
    assert not [number for number in quoted if number not in tables]


def test_no_record_names_a_place_of_the_machine_that_made_it() -> None:
    for study in STUDIES:
        for path in sorted(Path(ROOT / "results" / study).glob("*/record.json")):
            assert not re.search(r'"(/|[^"]*=/)', path.read_text()), path


def test_what_standardising_adds_to_one_encoder_more_than_to_another_is_quoted() -> None:
    page = (ROOT / "docs/evidence.md").read_text()
    assert more_by_standardising("MAE (this project)", "supervised (this project)") in page


def more_by_standardising(one: str, other: str) -> str:
    """Mean over seeds of what it adds to the mIoU of nearest neighbours of `one` less what it adds to that of `other`,
    and Student's interval: no table has a difference of differences."""
    records, _ = read_records(ROOT / "results/dense_protocols")
    found = {
        (each["backbone"]["init"], each["seed"], each["settings"]["probe.standardise"]): each["metrics"]["mIoU"]
        for each in records
        if each["recipe"] == "knn"
    }
    added = {init: [found[init, seed, True] - found[init, seed, False] for seed in range(3)] for init in (one, other)}
    differences = [a - b for a, b in zip(added[one], added[other], strict=True)]
    low, high = ttest_1samp(differences, 0).confidence_interval(0.95)
    mean = sum(differences) / len(differences)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")
