"""Names in pictures."""

import pytest
from PIL import Image

from mae_transfer.data.drawing import cut, headed, one_line


@pytest.mark.parametrize("name", ["new\nline", "dog\r", "a\x85b", "\u2028", "tab\t", "ok"])
def test_any_name_is_drawn_on_one_line(name: str) -> None:
    """Pillow refuses some of these."""
    assert headed(Image.new("RGB", (80, 40)), name).size == (80, 62)
    assert cut(name, 200) == one_line(name)
    assert len(one_line(name)) == len(name)
    assert one_line(name).isprintable()
