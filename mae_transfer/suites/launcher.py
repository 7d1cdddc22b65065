"""Launchers: where the runs of a suite are made. The contract, and the list of them.

A launcher is a file beside this one with a function `Options -> Launcher`, and a line in LAUNCHERS
(docs/extending/launcher.md). Imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mae_transfer.errors import UserError, nearest
from mae_transfer.tasks.card import load_object

if TYPE_CHECKING:
    from mae_transfer.suites.plan import SuiteRun


class Job(Protocol):
    """A run that a launcher has taken on."""

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        ...

    def reason(self) -> str:
        """Why it failed: the last line of its log, or what the launcher knows."""
        ...

    def stop(self) -> None:
        """Ask it to save and end."""
        ...

    def kill(self) -> None: ...


class Launcher(Protocol):
    """Where runs are made."""

    requeues: bool
    """Whether a run that ended with exit code 3 unasked is started again."""

    def room(self) -> int:
        """How many runs can be started now."""
        ...

    def start(self, runs: "Sequence[tuple[SuiteRun, int]]") -> list[Job]:
        """Start runs; with each the descriptor of its claim, to be inherited where that is possible."""
        ...


@dataclass(frozen=True)
class Options:
    """What the command line says to a launcher."""

    name: str
    """Of the suite's file."""
    folder: Path
    """Where the suite keeps its own files; the launcher may put some there."""
    jobs: int | None
    """Runs at a time; None is the launcher's own choice."""
    gpus: int
    """GPUs of each run, on each node; 0 is the CPU."""
    nodes: int = 1
    minutes: int = 1440
    """Time limit of a job."""
    partition: str | None = None
    visible: Sequence[str] = ()
    """Ids of the GPUs of this machine that runs may use; only for a launcher that is `here`."""
    slurm: Mapping[str, Any] | None = None
    """Further options of submitit."""


@dataclass(frozen=True)
class LauncherCard:
    """A launcher, before its module is imported."""

    name: str
    """As in `--launcher`."""
    about: str
    """For --help."""
    code: str
    """module:function that makes it of `Options`. UserError if it cannot be had."""
    here: bool = False
    """Whether it starts the processes of a run itself, on this machine's GPUs."""
    gpus: int = 1
    """GPUs of each run where neither --gpus nor this machine says it."""

    def make(self, options: Options) -> Launcher:
        launcher: Launcher = load_object(self.code)(options)
        return launcher


LAUNCHERS = [
    LauncherCard("local", "this machine (default)", "mae_transfer.suites.local:local_launcher", here=True, gpus=0),
    LauncherCard("slurm", "SLURM through submitit", "mae_transfer.suites.cluster:slurm_launcher"),
    LauncherCard(
        "submitit-local",
        "submitit's stand-in for SLURM on this machine",
        "mae_transfer.suites.cluster:stand_in_launcher",
        gpus=0,
    ),
]
"""The first is the default."""


def launcher_card(name: str) -> LauncherCard:
    """The card of a launcher; UserError for one that is not in the list."""
    known = {card.name: card for card in LAUNCHERS}
    if name not in known:
        raise UserError(f"unknown launcher '{name}'{nearest(name, known)}; launchers: {', '.join(known)}")
    return known[name]


def check_counts(*, gpus: int | None, **counts: int | None) -> None:
    """UserError for a number of GPUs below 0, or another count below 1."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"--{name.replace('_', '-')} is 1 or more")
    if gpus is not None and gpus < 0:
        raise UserError("--gpus is 0 or more")


def gpus_of(card: LauncherCard, runs: "Sequence[SuiteRun]", asked: int | None) -> tuple[int, list[str]]:
    """How many GPUs each run takes on a node, and the ids of those of this machine that runs may use."""
    visible = _visible_gpus(runs) if card.here else []
    return (asked if asked is not None else 1 if visible else card.gpus), visible


def _visible_gpus(runs: "Sequence[SuiteRun]") -> list[str]:
    """None if no run is to use one."""
    import os

    import torch

    if all(run.config.device == "cpu" for run in runs):
        return []
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def register_launcher(card: LauncherCard) -> None:
    """Add a launcher to those of this process; UserError if the name is taken."""
    if card.name in {other.name for other in LAUNCHERS}:
        raise UserError(f"the launcher '{card.name}' is there already; give yours another name")
    LAUNCHERS.append(card)
