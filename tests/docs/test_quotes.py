"""Blocks of pages that quote a file of the repository are that file's own text, one part of it.

`tests/examples` runs the first page's task, `tests/backbones/checkpoints/test_layouts.py` the second's reader.
"""

import re

import pytest
from support.paths import ROOT

QUOTED = {
    "task.md": ROOT / "examples" / "depth_task",
    "checkpoint_layout.md": ROOT / "mae_transfer" / "backbones" / "checkpoints",
}


@pytest.mark.parametrize("page", QUOTED)
def test_blocks_are_those_of_the_files(page: str) -> None:
    text = (ROOT / "docs" / "extending" / page).read_text()
    blocks = re.findall(r"`([\w./]+)`:\n\n```\w+\n(.*?)```\n", text, re.DOTALL)
    assert len(blocks) == text.count("```") // 2 > 0, "each block has its file's name before it"
    for name, block in blocks:
        assert block in (QUOTED[page] / name).read_text(), f"a block of {name} is not in the file"
