"""What data sets are called in tables, plots and the report. Needs no torch.

Runs are compared where their data have the same fingerprint, whatever the set is called: a folder that was renamed is
the same set. Sets that share a name are told apart by the first digits of their fingerprints.
"""

from collections.abc import Iterable

from mae_transfer.run_folder.old_schemas import kind_of
from mae_transfer.run_folder.schema import RunRecord

DIGITS = 4
"""Of a fingerprint, at least; more where these agree."""


def data_names(records: Iterable[RunRecord]) -> dict[str, str]:
    """Run id -> the name of its data set: the one that the last run of the same data gave it.

    A run on its task's benchmark keeps the benchmark's title.
    """
    sets: dict[tuple[str, str], str] = {}
    ordered = sorted(records, key=lambda record: str(record["run_id"]))
    for record in ordered:
        if not on_benchmark(record):
            sets[_set(record)] = record["data"]["name"]
    same: dict[tuple[str, str], list[str]] = {}
    for (task, fingerprint), name in sets.items():
        same.setdefault((task, name), []).append(fingerprint)
    shown: dict[tuple[str, str], str] = {}
    for (task, name), fingerprints in same.items():
        digits = DIGITS
        while len({each[:digits] for each in fingerprints}) < len(fingerprints):
            digits += 1
        for each in fingerprints:
            shown[task, each] = f"{name} [{each[:digits]}]" if len(fingerprints) > 1 else name
    return {r["run_id"]: r["data"]["name"] if on_benchmark(r) else shown[_set(r)] for r in ordered}


def on_benchmark(record: RunRecord) -> bool:
    """Whether the data are the whole set that the task's published numbers are of."""
    return bool(record["benchmark"]) and record["data"]["name"] == record["benchmark"]


def task_heading(record: RunRecord) -> str:
    """The task before the data set's name in a title: "COCO" of COCO itself, "Detection" of any other set."""
    return str(record["title"] if on_benchmark(record) else kind_of(record))


def _set(record: RunRecord) -> tuple[str, str]:
    return record["task"], record["data"]["fingerprint"]
