"""What a suite will cost, before it is made: a plan for each kind of its runs, and their sum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_transfer.config.sections import RunConfig
from mae_transfer.errors import UserError
from mae_transfer.runs.costs import CARDS, GIB, Plan, plan_run
from mae_transfer.runs.tasks import task_card
from mae_transfer.suites.config import read_suite
from mae_transfer.suites.plan import PRETRAINING, SuiteRun, named_in_errors, plan_suite

SYNTHETIC = "synthetic"
"""Stands for data that are not named: a plan takes the benchmark's numbers for it."""


@dataclass(frozen=True)
class SuitePlan:
    """What the runs of a suite cost; those that differ in seed or draw alone are one kind."""

    kinds: tuple[tuple[str, int, Plan], ...]
    """Title, number of runs, and what one of them costs."""

    def hours(self, card: str) -> float:
        """Of all runs, one after the other."""
        return sum(count * plan.hours(CARDS[card]) for _, count, plan in self.kinds)

    def disk(self) -> int:
        """Bytes of the checkpoints that all runs keep."""
        return sum(count * plan.checkpoint_bytes for _, count, plan in self.kinds)

    def to_dict(self) -> dict[str, object]:
        """All values of all kinds, and the sums."""
        kinds = [plan.to_dict() | {"title": title, "runs": count} for title, count, plan in self.kinds]
        return {"kinds": kinds, "hours": {card: self.hours(card) for card in CARDS}, "checkpoint_bytes": self.disk()}

    def lines(self, cards: Sequence[str] = ("A100", "H100")) -> list[str]:
        """As `mae-transfer plan --suite` prints it."""
        width = max(len(title) for title, _, _ in self.kinds)
        heads = ["runs", "micro-batch", "largest", "GiB", *(f"h {card}" for card in cards), "disk GiB"]
        lines = ["  ".join(["run".ljust(width), *heads])]
        for title, count, plan in self.kinds:
            memory = plan.memory(plan.micro_batch) / GIB
            numbers = [plan.micro_batch, plan.largest, f"{memory:.1f}"]
            numbers += [f"{count * plan.hours(CARDS[card]):.1f}" for card in cards]
            numbers.append(f"{count * plan.checkpoint_bytes / GIB:.1f}")
            cells = [str(n).rjust(len(head)) for n, head in zip([count, *numbers], heads, strict=True)]
            lines.append("  ".join([title.ljust(width), *cells]))
        runs, gpus = sum(count for _, count, _ in self.kinds), self.kinds[0][2].gpus
        hours = ", ".join(f"{self.hours(card):,.1f} h on {card}" for card in cards)
        of = f"{gpus} GPU{'s' if gpus > 1 else ''}"
        lines.append(f"{runs} runs, one after the other on {of}: {hours}; {self.disk() / GIB:.1f} GiB of checkpoints")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


def plan_costs(
    suite: Path,
    *,
    data: Mapping[str, str] | None = None,
    preset: str | None = None,
    gpus: int = 1,
    gpu_memory: float = 80,
    overrides: Sequence[str] = (),
) -> SuitePlan:
    """What the runs of a suite cost. Without data a benchmark's own numbers of images and classes are taken.

    Args:
        data: name of a data set in the suite -> its folder.
        gpus: of each run.
        gpu_memory: GiB of each.

    Raises:
        UserError: a bad suite, or a run whose number of images cannot be known without data.
    """
    content = read_suite(suite)
    sets = {entry.data or entry.task for entry in content.tasks} | {e.data or PRETRAINING for e in content.pretrain}
    unknown = dict.fromkeys(sets - {*content.data}, SYNTHETIC)
    _, runs = plan_suite(suite, data={**unknown, **(data or {})}, preset=preset, overrides=overrides, weights=False)
    kinds: dict[str, list[SuiteRun]] = {}
    for run in runs:
        with named_in_errors(run.title):
            _check_known(run.config)
        kinds.setdefault(_kind(run.config), []).append(run)
    found = []
    for alike in kinds.values():
        run = alike[0]
        point = " ".join(f"{key}={value}" for key, value in run.point)
        title = " ".join(filter(None, (run.row, run.column, point)))
        with named_in_errors(title):
            found.append((title, len(alike), plan_run(run.config, gpus=gpus, gpu_memory=gpu_memory)))
    return SuitePlan(tuple(found))


def _kind(config: RunConfig) -> str:
    """All that a cost depends on."""
    backbone = config.backbone.model_copy(update={"checkpoint": None, "checkpoint_key": None})
    return str(config.model_copy(update={"seed": 0, "backbone": backbone}).model_dump(exclude={"data": {"draw"}}))


def _check_known(config: RunConfig) -> None:
    """UserError for a set without data and without a benchmark's numbers of images."""
    card = task_card(config.task)
    if config.data.root == SYNTHETIC and config.preset != "smoke" and card.benchmark is None and card.transfers:
        raise UserError(f"the number of images of {config.task} is unknown; give --data NAME=FOLDER")
