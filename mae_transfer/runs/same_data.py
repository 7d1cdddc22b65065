"""Whether a run that goes on, or is evaluated again, has the data that it was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_transfer.engine.task import BaseTask
from mae_transfer.errors import UserError
from mae_transfer.run_folder.checkpoints import list_checkpoints, read_origin
from mae_transfer.run_folder.record import read_record

SPLITS = {"train": "training", "val": "val"}


def check_same_data(task: BaseTask, path: Path, *, eval_only: bool = False) -> list[str]:
    """Compare the data of a run folder, as its newest checkpoint or else its record knows them, with those at hand.

    Nothing is compared in a folder that has neither. A run of an earlier version knows its data by their names alone.

    Args:
        eval_only: the run is evaluated again. Sets beside the val images may then be others, as a corrected folder of
            ImageNet-A: their numbers are replaced, and a line says so.

    Raises:
        UserError: they differ. An evaluation on other data would replace the record of the run by that of another.
    """
    before, now = _data_of(path), task.data_summary
    if before is None:
        return []
    unlike = difference(before, now)
    if unlike:
        raise UserError(
            f"{path} is a run on other data: {unlike}; give it the data of its training, or train on these in another "
            "--output"
        )
    sets = _other_sets(path, now)
    if sets and not eval_only:
        raise UserError(
            f"{path} was evaluated on other images beside the val images: {sets}; replace these numbers by "
            "--eval-only, or give it the folders that it was evaluated on"
        )
    return [f"evaluated on other images than before: {sets}; these numbers of the record are replaced"] if sets else []


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between the data of two summaries; empty if nothing does.

    Two summaries with `parts` are compared by contents, others by the fingerprint of earlier versions.
    """
    parts, others = before.get("parts"), now.get("parts")
    if parts and others:
        one, other = before["fingerprint"], now["fingerprint"]
        unlike = [title for split, title in SPLITS.items() if parts.get(split) != others.get(split)]
    else:
        one, other = (data.get("names_fingerprint" if data.get("parts") else "fingerprint") for data in (before, now))
        unlike = []
    if not unlike and one == other:
        return ""
    what = f"the {' and '.join(unlike)} images, or what belongs to them, are not the same: " if unlike else ""
    return f"{what}they had the fingerprint {one}, now it is {other}"


def _other_sets(path: Path, now: Mapping[str, Any]) -> str:
    """Names a set beside the val images whose numbers are in the record already, and that is another one now."""
    record = path / "record.json"
    known = read_record(record)["data"].get("robustness", {}) if record.is_file() else {}
    sets = now.get("robustness", {})
    return ", ".join(
        f"{name} had the fingerprint {known[name]}, now it is {sets[name]}"
        for name in known
        if name in sets and known[name] != sets[name]
    )


def _data_of(path: Path) -> Mapping[str, object] | None:
    origin = read_origin(path / "checkpoints")
    if origin and "data_fingerprint" in origin:
        return {"fingerprint": origin["data_fingerprint"], "parts": origin.get("data_parts")}
    if not list_checkpoints(path / "checkpoints") and (path / "record.json").is_file():
        return read_record(path / "record.json")["data"]
    return None
