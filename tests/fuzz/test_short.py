"""A share of the mutation campaign (`make fuzz` runs all of it): no traceback, death, hang or wrong value."""

import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).with_name("campaign.py")


@pytest.mark.process
def test_a_share_of_the_campaign_finds_no_fault():
    result = subprocess.run(
        [sys.executable, str(CAMPAIGN), "--share", "0.05"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    total = next(line for line in result.stdout.splitlines() if line.startswith("| all |"))
    assert int(total.split("|")[2]) > 250
