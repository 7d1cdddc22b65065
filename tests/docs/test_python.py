"""The Python of docs/python.md runs as it stands there, block after block; every public name is described there."""

import re
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

import mae_transfer as mt

PAGE = ROOT / "docs" / "python.md"


@pytest.mark.process
def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    maps, record, records, tables = (names[name] for name in ("maps", "record", "records", "tables"))
    assert [tuple(each.shape) for each in maps] == [(1, 64, 4, 4)] * 4
    assert tuple(names["tokens"].shape) == (1, 17, 64)
    assert records[0]["metrics"] == record["metrics"]
    assert "(n=1)" in str(tables)


def test_every_public_name_is_described() -> None:
    page = PAGE.read_text()
    for name in mt.__all__:
        assert f"`mt.{name}(" in page, name
        assert len(getattr(mt, name).__doc__.split()) > 8, name
    assert set(mt.__all__) <= set(dir(mt))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mt.nothing
