"""examples/first_probe.ipynb runs from its first cell to its last."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from support.paths import ROOT

from mae_transfer.results.tables.frames import Tables

NOTEBOOK = ROOT / "examples" / "first_probe.ipynb"


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    names: dict[str, Any] = {}
    with matplotlib.rc_context({"backend": "agg"}):
        for number, cell in enumerate(cells):
            exec(compile(cell, f"{NOTEBOOK.name}, cell {number}", "exec"), names)
        plt = names["plt"]
        assert len(plt.get_fignums()) == 2
        plt.close("all")
    tables = names["tables"]
    assert isinstance(tables, Tables)
    title = next(title for title in tables if "knn, random (frozen)" in tables[title].index)
    probe = tables[title].filter(like="top-1").loc["knn, random (frozen)"]
    assert probe.between(100 / 3, 100, inclusive="neither").all()
    assert "knn, random (frozen)" in tables._repr_html_()
