"""The lowest versions that `make test-lowest` installs are the lower bounds that the package declares."""

import re

from support.paths import ROOT


def test_constraints_are_the_lower_bounds() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("\ndependencies = [")[1].split("\n]")[0]
    bounds = dict(re.findall(r'"([\w-]+)>=([\w.]+)', declared))
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "constraints-lowest.txt").read_text(), re.MULTILINE))
    assert len(bounds) == declared.count('"') // 2, "every dependency has a lower bound"
    assert pinned == bounds
