"""What a run shows while it trains."""

import logging

import pytest

from mae_transfer.engine.progress import Progress, console

LINE = {
    "epoch": 0.5,
    "loss": 1.25,
    "lr": 1e-4,
    "images_per_second": 12.5,
    "data_wait": 0.1,
    "memory": 2 * 1024**3,
}


def test_lines_of_every_nth_step_and_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger("mae_transfer").handlers[:]
    with console(), Progress(start=2, total=7, log_every=3) as progress:
        for step in range(3, 8):
            progress.show(LINE | {"step": step}, 2.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["3/7", "6/7", "7/7"]
    assert lines[0].split("  ") == [
        *("step 3/7", "epoch 0.50", "loss 1.2500", "lr 0.0001"),
        *("img/s 12.5", "data 10%", "mem 2.00GiB", "eta 00:08"),
    ]
    assert logging.getLogger("mae_transfer").handlers == before


def test_one_line_if_steps_wait_long_for_data(caplog: pytest.LogCaptureFixture) -> None:
    for wait, said in ((0.1, 0), (0.5, 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING), Progress(start=0, total=300, log_every=1000) as progress:
            for step in range(1, 300):
                progress.show(LINE | {"step": step, "data_wait": 1.0 if step <= 20 else wait}, 2.0)
        assert caplog.text.count("waited for data 50 % of their time: raise data.workers=") == said
        assert len(caplog.records) == said
