"""metrics.jsonl: lines whose values nothing can be computed from."""

import itertools
import json
import math

import pytest

from mae_transfer.errors import UserError
from mae_transfer.run_folder.metrics import (
    SAMPLED,
    WHOLE,
    history_of,
    lines_after,
    read_metrics,
    sampled_metrics,
    up_to,
)

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
    up_to(tmp_path, 4)  # there is none
    texts = [json.dumps(LINE | {"step": number}) + "\n" for number in range(1, 7)]
    path = tmp_path / "metrics.jsonl"
    for content in ("", "".join(texts[:4]), "".join(texts), "".join(texts[3:]), "".join(texts[4:])):
        path.write_text(content)
        up_to(tmp_path, 4)
    for content in ("".join(texts[:3]), "".join(texts[:4])[:-7]):
        path.write_text(content)
        with pytest.raises(UserError, match=r"ends at step 3, and the run's checkpoint is after step 4; restore or"):
            up_to(tmp_path, 4)
    path.write_text(texts[0][:-1])
    up_to(tmp_path, 0)
    with pytest.raises(UserError, match="has no whole line, and the run's checkpoint is after step 4; restore or"):
        up_to(tmp_path, 4)


def test_a_sample_of_a_large_file_is_even_and_has_both_ends(tmp_path):
    count = 20_000
    lines = [LINE | {"step": step, "epoch": step / count, "loss": 1 / step} for step in range(1, count + 1)]
    lines[count // 2]["eval"] = {f"IoU/{i}": float(i) for i in range(1000)}  # a long one
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert len(text) > 4 * WHOLE
    path = tmp_path / "metrics.jsonl"
    path.write_text(text + '{"step": 20001, "lo')  # as a kill leaves it
    found = sampled_metrics(tmp_path)
    assert SAMPLED - 20 < len(found) <= SAMPLED, "a few places lie in the long line"
    steps = [line["step"] for line in found]
    assert (steps[0], steps[-1]) == (1, count)
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    assert min(gaps) > 0
    assert max(gaps) < 2 * count / SAMPLED
    assert all(line == lines[line["step"] - 1] for line in found)

    path.write_text(text[: WHOLE - 1])
    whole = read_metrics(tmp_path)
    assert sampled_metrics(tmp_path) == whole
    assert len(whole) > SAMPLED
    path.write_text("{\n" + text)
    with pytest.raises(UserError, match=r"metrics\.jsonl at byte 0 is not JSON"):
        sampled_metrics(tmp_path)
    path.unlink()
    assert sampled_metrics(tmp_path) == []


def test_the_history_is_the_means_of_each_epoch_however_often_it_is_interrupted(tmp_path):
    lines = [
        {"step": step, "epoch": step / 10, "lr": step / 100, "loss": math.sin(step), "loss_a": math.cos(step)}
        for step in range(1, 36)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = history_of(tmp_path, None).entries()
    for epoch, entry in enumerate(whole, 1):
        steps = range(10 * epoch - 9, min(10 * epoch, 35) + 1)
        means = {
            "loss": math.fsum(map(math.sin, steps)) / len(steps),
            "loss_a": math.fsum(map(math.cos, steps)) / len(steps),
        }
        assert entry == pytest.approx({"epoch": epoch, "step": steps[-1], "lr": steps[-1] / 100} | means, rel=1e-12)
    assert len(whole) == 4
    history = history_of(tmp_path, ())
    for line in lines:
        history = history_of(tmp_path, json.loads(json.dumps(history.epochs)))
        history.add(line)
    assert history.entries() == whole, "bit for bit"
