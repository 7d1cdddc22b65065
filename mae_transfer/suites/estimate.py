"""Time and memory of a run: from steps it has made itself, from records of runs like it, or from steps of those."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_transfer.config.overrides import flatten
from mae_transfer.config.sections import RunConfig
from mae_transfer.errors import UserError
from mae_transfer.run_folder.metrics import read_metrics
from mae_transfer.run_folder.record import read_records
from mae_transfer.run_folder.schema import RunRecord
from mae_transfer.runs.resolve import backbone_spec
from mae_transfer.suites.plan import SuiteRun

ALIKE = (
    *("method", "protocol", "model.blocks", "data.shots", "data.fraction", "data.image_size"),
    *("train.global_batch", "train.precision"),
)
SKIPPED = 2
"""Of a run's own steps, the first ones that are not counted: they wait for loaders and compilers."""


@dataclass(frozen=True)
class Estimate:
    seconds: float
    """What is left of the run."""
    memory: float | None
    """Bytes at most."""


class Estimator:
    """Knows the records below some folders, and a suite's runs. Damaged records are left out: no input here."""

    def __init__(self, folders: Iterable[Path], runs: Sequence[SuiteRun] = ()) -> None:
        self._runs = runs
        self._records: dict[tuple[Any, ...], list[RunRecord]] = {}
        for folder in folders:
            for record in read_records(folder)[0]:
                self._records.setdefault(_of_record(record), []).append(record)

    def estimate(self, run: SuiteRun, steps: int | None) -> Estimate | None:
        """None if nothing like the run has been seen. steps: of the whole run, None if it takes none."""
        own = _own(run.place.path)
        if own is not None and steps:
            return Estimate(own.per_step * (steps - own.made), own.memory)
        like = [r for r in self._records.get(kind_of(run.config), []) if r.get("wall_seconds")]
        if not like:
            return self._from_steps_of_others(run, steps)
        scale = [steps / r.get("steps", 0) if steps and r.get("steps") else 1.0 for r in like]
        return Estimate(
            statistics.median((r.get("wall_seconds") or 0) * factor for r, factor in zip(like, scale, strict=True)),
            max(filter(None, (r.get("peak_memory_bytes") for r in like)), default=None),
        )

    def _from_steps_of_others(self, run: SuiteRun, steps: int | None) -> Estimate | None:
        kind = kind_of(run.config)
        for other in self._runs:
            if steps and other.place.begun and kind_of(other.config) == kind:
                made = _own(other.place.path)
                if made is not None:
                    return Estimate(made.per_step * steps, made.memory)
        return None


@dataclass(frozen=True)
class _Steps:
    made: int
    per_step: float
    memory: float


def _own(folder: Path) -> _Steps | None:
    """What the steps in a run folder took, None if they are too few."""
    lines = [line for line in read_metrics(folder) if "loss" in line]
    if len(lines) <= SKIPPED + 1:
        return None
    first, last = lines[SKIPPED], lines[-1]
    per_step = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    return _Steps(last["step"], per_step, max(line["memory"] for line in lines))


def kind_of(config: RunConfig) -> tuple[object, ...]:
    """What has to agree for one run to tell the time of another."""
    spec = backbone_spec(config.backbone.name)
    size = spec.size or f"{spec.embed_dim}x{spec.depth}"
    return (config.task, size, spec.patch_size, *_alike(flatten(config.model_dump(mode="json"))))


def _of_record(record: RunRecord) -> tuple[object, ...]:
    backbone = record["backbone"]
    try:
        patch = backbone_spec(backbone["name"]).patch_size
    except UserError:  # of a name that this version has not
        patch = 0
    return (record["task"], backbone["size"], patch, *_alike(record["settings"]))


def _alike(values: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(values.get(key)) for key in ALIKE)
