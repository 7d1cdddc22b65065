"""A run folder's metrics.jsonl: reading it, and its summary by epoch. Needs no torch."""

import math
from pathlib import Path
from typing import Any

from mae_transfer.errors import UserError
from mae_transfer.files import parse_json, reading


def read_metrics(folder: Path) -> list[dict[str, Any]]:
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
        metrics.append(_checked(path, number, line))
    return metrics


def lines_after(folder: Path, step: int) -> tuple[bytes, list[dict[str, Any]]]:
    """What a folder's metrics.jsonl holds up to a step, unread, and the lines of later steps."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return b"", []
    with reading(path):
        content = path.read_bytes()
    later: list[dict[str, Any]] = []
    end, number = content.rfind(b"\n") + 1, content.count(b"\n")
    while end:
        start = content.rfind(b"\n", 0, end - 1) + 1
        line = _checked(path, number, content[start:end])
        if line["step"] <= step:
            break
        later.append(line)
        end, number = start, number - 1
    return content[:end], later[::-1]


def check_reaches(folder: Path, step: int) -> None:
    """UserError if a folder's metrics.jsonl has lines, and none of the step that a checkpoint of the run is after.

    Lines are on the disk before their checkpoint. A file that was deleted, as errors advise, may begin anew.
    """
    kept, _ = lines_after(folder, step)
    if not kept:
        return
    path = folder / "metrics.jsonl"
    last = _checked(path, kept.count(b"\n"), kept[kept.rfind(b"\n", 0, -1) + 1 :])["step"]
    if last < step:
        raise UserError(
            f"{path} ends at step {last}, and the run's checkpoint is after step {step}; restore or delete the file"
        )


def _checked(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value: Any = parse_json(line)
    except ValueError as error:
        raise UserError(f"{path} line {number} is not JSON ({error}); restore or delete the file") from error
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        raise UserError(f"{path} line {number} has no step; restore or delete the file")
    odd = next((name for name in value if _is_odd(name, value[name])), None)
    if odd is not None:
        raise UserError(f"{path} line {number}: {odd!r} is no number; restore or delete the file")
    return value


def _is_odd(name: str, value: Any) -> bool:
    """Whether a value that plots and histories compute with is no finite number; a loss may be, in a run that fails."""
    if name == "epoch" or name == "lr":
        return not _is_number(value) or not math.isfinite(value)
    return name.startswith("loss") and value is not None and not _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def epoch_history(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One dict per epoch, oldest first: `epoch` (from 1), its last `step` and `lr`, the mean of each loss over its
    steps, and `eval` if an evaluation fell into it. A step that reaches into two epochs counts for the later one."""
    epochs: dict[int, list[dict[str, Any]]] = {}
    for line in metrics:
        epochs.setdefault(math.ceil(line["epoch"]), []).append(line)
    history = []
    for epoch, lines in epochs.items():
        steps = [line for line in lines if "loss" in line]
        entry: dict[str, Any] = {"epoch": epoch, "step": lines[-1]["step"]}
        if steps:
            entry["lr"] = steps[-1]["lr"]
            for name in (name for name in steps[-1] if name.startswith("loss")):
                entry[name] = sum(line[name] for line in steps) / len(steps)
        evaluations = [line["eval"] for line in lines if "eval" in line]
        if evaluations:
            entry["eval"] = evaluations[-1]
        history.append(entry)
    return history
