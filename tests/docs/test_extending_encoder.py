"""The Python of docs/extending/encoder.md runs as it stands there, block after block."""

import re
import sys
import types
from pathlib import Path

import pytest

from mae_transfer.backbones import plugins

PAGE = Path(__file__).parents[2] / "docs" / "extending" / "encoder.md"


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(plugins, "_registered", {})
    module = types.ModuleType("of_a_user")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    assert blocks
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), module.__dict__)
