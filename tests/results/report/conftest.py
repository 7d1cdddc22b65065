"""The run folders of the report's tests and their page, made once."""

from pathlib import Path

import pytest
from support.report_records import write_runs

from mae_transfer.results.report.page import make_page
from mae_transfer.run_folder.record import read_records
from mae_transfer.runs.tasks import descriptions


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("report") / "runs")


@pytest.fixture(scope="session")
def page(runs: Path) -> str:
    return make_page(*read_records(runs), picture_bytes=10**7, descriptions=descriptions())
