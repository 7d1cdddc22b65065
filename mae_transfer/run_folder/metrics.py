"""A run folder's metrics.jsonl: reading it, and its summary by epoch. Needs no torch."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from mae_transfer.errors import UserError
from mae_transfer.files import parse_json, reading

Line: TypeAlias = dict[str, Any]
"""A line: `step`, `epoch`, and `lr`, losses and more of a step, or `eval` of an evaluation."""
Epoch: TypeAlias = dict[str, Any]
"""What is known of an epoch, as plain values."""
WHOLE = 2**18
"""Bytes of a metrics.jsonl, about 2,000 lines, that a report reads whole."""
SAMPLED = 1000
"""Lines that it reads of a larger one, at most."""


def read_metrics(folder: Path) -> list[Line]:
    """The lines of a folder's metrics.jsonl. A last line that a kill cut off is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    with reading(path):
        lines = path.read_bytes().splitlines(keepends=True)
    metrics = []
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith(b"\n"):
            break
        metrics.append(_checked(path, f"line {number}", line))
    return metrics


def sampled_metrics(folder: Path) -> list[Line]:
    """`read_metrics` of a file of up to `WHOLE` bytes; of a larger one `SAMPLED` lines at most, the first and the last
    among them and the others evenly spread over its bytes."""
    path = folder / "metrics.jsonl"
    if not path.exists() or path.stat().st_size <= WHOLE:
        return read_metrics(folder)
    found: dict[int, bytes] = {}
    with reading(path), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        for i in range(SAMPLED - 1):
            file.seek(i * size // (SAMPLED - 1))
            if i:
                file.readline()  # it lands within a line
            place = file.tell()
            found[place] = file.readline()
        file.seek(size - WHOLE)
        tail = file.read(WHOLE)
    end = tail.rfind(b"\n")
    start = tail.rfind(b"\n", 0, end) + 1
    found[size - WHOLE + start] = tail[start : end + 1]
    whole = {place: line for place, line in sorted(found.items()) if line.endswith(b"\n")}
    return [_checked(path, f"at byte {place}", line) for place, line in whole.items()]


def lines_after(folder: Path, step: int) -> tuple[bytes, list[Line]]:
    """What a folder's metrics.jsonl holds up to a step, unread, and the lines of later steps."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return b"", []
    with reading(path):
        content = path.read_bytes()
    later: list[Line] = []
    end, number = content.rfind(b"\n") + 1, content.count(b"\n")
    while end:
        start = content.rfind(b"\n", 0, end - 1) + 1
        line = _checked(path, f"line {number}", content[start:end])
        if line["step"] <= step:
            break
        later.append(line)
        end, number = start, number - 1
    return content[:end], later[::-1]


def up_to(folder: Path, step: int) -> bytes:
    """What a folder's metrics.jsonl holds up to the step that a checkpoint of the run is after.

    UserError if it has lines, and none of that step: lines are on the disk before their checkpoint. A file that was
    deleted, as errors advise, may begin anew.
    """
    path = folder / "metrics.jsonl"
    kept, later = lines_after(folder, step)
    if not kept and not later and step and path.exists() and path.stat().st_size:
        raise UserError(
            f"{path} has no whole line, and the run's checkpoint is after step {step}; restore or delete it"
        )
    if not kept:
        return kept
    number = kept.count(b"\n")
    last = _checked(path, f"line {number}", kept[kept.rfind(b"\n", 0, -1) + 1 :])["step"]
    if last < step:
        raise UserError(
            f"{path} ends at step {last}, and the run's checkpoint is after step {step}; restore or delete the file"
        )
    return kept


def _checked(path: Path, where: str, line: bytes) -> Line:
    try:
        value: Any = parse_json(line)
    except ValueError as error:
        raise UserError(f"{path} {where} is not JSON ({error}); restore or delete the file") from error
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        raise UserError(f"{path} {where} has no step; restore or delete the file")
    odd = next((name for name in value if _is_odd(name, value[name])), None)
    if odd is not None:
        raise UserError(f"{path} {where}: {odd!r} is no number; restore or delete the file")
    return value


def _is_odd(name: str, value: Any) -> bool:
    """Whether a value that plots and histories compute with is no finite number; a loss may be, in a run that fails."""
    if name == "epoch" or name == "lr":
        return not _is_number(value) or not math.isfinite(value)
    return name.startswith("loss") and value is not None and not _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


class EpochHistory:
    """The summary by epoch of lines of metrics.jsonl, which come one by one.

    Args:
        epochs: `epochs` of the summary that this one goes on with.
    """

    def __init__(self, epochs: Iterable[Epoch] = ()) -> None:
        self.epochs = list(epochs)
        """Plain values: `epoch` (from 1), `step` and `lr` of its last line and step, `steps`, `sums` of their losses
        and, if it was evaluated, `eval`."""

    def add(self, line: Line) -> None:
        """A line of the newest epoch, or of the next one. A step that reaches into two epochs counts for the later."""
        number = math.ceil(line["epoch"])
        if not self.epochs or self.epochs[-1]["epoch"] != number:
            self.epochs.append({"epoch": number, "steps": 0, "sums": {}})
        epoch = self.epochs[-1]
        epoch["step"] = line["step"]
        if "loss" in line:
            epoch["steps"] += 1
            epoch["lr"] = line["lr"]
            for name in (name for name in line if name.startswith("loss")):
                value = math.nan if line[name] is None else line[name]
                epoch["sums"][name] = epoch["sums"].get(name, 0) + value
        if "eval" in line:
            epoch["eval"] = line["eval"]

    def entries(self) -> list[Epoch]:
        """One dict per epoch, oldest first: `epoch` (from 1), its last `step` and `lr`, the mean of each loss over its
        steps (None if one is not finite), and `eval` if an evaluation fell into it."""
        return [self._entry(epoch) for epoch in self.epochs]

    def _entry(self, epoch: Epoch) -> Epoch:
        means = {name: total / epoch["steps"] for name, total in epoch["sums"].items()}
        means = {name: mean if math.isfinite(mean) else None for name, mean in means.items()}
        return (
            {key: epoch[key] for key in ("epoch", "step", "lr") if key in epoch}
            | means
            | ({"eval": epoch["eval"]} if "eval" in epoch else {})
        )


def history_of(folder: Path, epochs: Iterable[Epoch] | None) -> EpochHistory:
    """The summary that goes on with the `epochs` of a checkpoint; of the folder's whole metrics.jsonl where they are
    None, as in the checkpoints of earlier versions."""
    history = EpochHistory(epochs or ())
    for line in read_metrics(folder) if epochs is None else ():
        history.add(line)
    return history
