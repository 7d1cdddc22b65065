"""metrics.jsonl: lines whose values nothing can be computed from."""

import json

import pytest

from mae_transfer.errors import UserError
from mae_transfer.run_folder.metrics import check_reaches, lines_after, read_metrics

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


@pytest.mark.parametrize("step", range(7))
def test_lines_after_a_step_are_those_of_the_whole(tmp_path, step):
    assert lines_after(tmp_path, step) == (b"", [])
    lines = [LINE | {"step": number} for number in (1, 2, 3, 3, 5)]
    texts = [json.dumps(line).encode() + b"\n" for line in lines]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(texts) + b'{"step": 6, "lo')  # as a kill leaves it
    kept = sum(line["step"] <= step for line in lines)
    assert lines_after(tmp_path, step) == (b"".join(texts[:kept]), lines[kept:])


def test_a_damaged_line_that_is_read_from_the_end_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINE) + "\n{\n" + json.dumps(LINE | {"step": 3}) + "\n")
    assert len(lines_after(tmp_path, 3)[0].splitlines()) == 3
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2 is not JSON"):
        lines_after(tmp_path, 2)


def test_a_history_that_ends_before_the_checkpoint_is_refused(tmp_path):
    check_reaches(tmp_path, 4)  # there is none
    texts = [json.dumps(LINE | {"step": number}) + "\n" for number in range(1, 7)]
    path = tmp_path / "metrics.jsonl"
    for content in ("", "".join(texts[:4]), "".join(texts), "".join(texts[3:]), "".join(texts[4:])):
        path.write_text(content)
        check_reaches(tmp_path, 4)
    for content in ("".join(texts[:3]), "".join(texts[:4])[:-7]):
        path.write_text(content)
        with pytest.raises(UserError, match=r"ends at step 3, and the run's checkpoint is after step 4; restore or"):
            check_reaches(tmp_path, 4)
