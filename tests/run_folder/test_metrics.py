"""metrics.jsonl: lines whose values nothing can be computed from."""

import json

import pytest

from mae_transfer.errors import UserError
from mae_transfer.run_folder.metrics import read_metrics

LINE = {"step": 1, "epoch": 0.5, "lr": 0.1, "loss": 2.5}


@pytest.mark.parametrize(
    ("name", "value"),
    [("epoch", None), ("epoch", {}), ("epoch", 10**400), ("epoch", float("inf")), ("epoch", True), ("lr", "x"),
     ("lr", []), ("loss", "x"), ("loss", {}), ("loss_a", [1]), ("loss", 10**30)],
)  # fmt: skip
def test_odd_values_are_named_with_their_line(tmp_path, name, value):
    text = json.dumps(LINE) + "\n" + json.dumps(LINE | {name: value}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=rf"metrics\.jsonl line 2: '{name}' is no number"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("step", [None, True, "1", 1.5])
def test_a_line_needs_a_step(tmp_path, step):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINE | {"step": step}) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl line 1 has no step"):
        read_metrics(tmp_path)


def test_a_loss_that_is_not_finite_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "lr": 0.1, "loss": NaN}\n')
    (line,) = read_metrics(tmp_path)
    assert line["loss"] != line["loss"]
