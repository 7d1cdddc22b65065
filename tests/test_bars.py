"""Progress of long work: lines where no terminal draws a bar, and none of work that is done at once."""

import io
import sys

import pytest

from mae_transfer import bars
from mae_transfer.bars import Bar, shown


def test_a_redirected_output_gets_a_whole_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(shown(range(5), title="read", unit="img")) == list(range(5))
    assert capsys.readouterr().err == "", "done at once"
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(bars.time, "monotonic", lambda: float(next(clock)))
    with Bar(8, title="read", unit="img") as bar:
        for done in range(1, 9):
            bar.to(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"read: {n} of 8 img, {t}, about {left} left" for n, t, left in LINES]
    with Bar(8, title="read", unit="img", show=False) as bar:
        bar.to(8)
    assert capsys.readouterr().err == ""


LINES = [(2, "00:40", "02:00"), (4, "01:20", "01:20"), (6, "02:00", "00:40"), (8, "02:40", "00:00")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(shown([1, 2], title="read", unit="img")) == [1, 2]
    assert "read: 100%" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()
