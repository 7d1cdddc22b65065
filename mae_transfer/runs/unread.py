"""Overrides without effect are refused: `probe.k=5` in fine-tuning, `optim.momentum=0.95` with AdamW.

Only what a user names is checked. Recipes may carry values that a protocol does not read.
"""

import difflib
from collections.abc import Iterable, Mapping

from mae_transfer.config.overrides import leaf_keys
from mae_transfer.config.roles import Role, keys
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.contract import Contract
from mae_transfer.errors import UserError
from mae_transfer.runs.tasks import task_card
from mae_transfer.tasks.card import TaskCard, load_object

Readers = Mapping[str, tuple[str, ...]]
"""Name of an alternative -> keys (`probe.k`) and whole sections (`schedule`) that it reads and others may not."""

KINDS: Mapping[str, Readers] = {
    "optim.kind": {"adamw": ("optim.betas",), "sgd": ("optim.momentum",), "lars": ("optim.momentum",)},
    "schedule.kind": {
        "cosine": ("schedule.min_lr_ratio",),
        "poly": ("schedule.min_lr_ratio", "schedule.power"),
        "step": ("schedule.milestones", "schedule.gamma"),
        "one_cycle": (),
    },
    "data.crop": {"random": ("data.scale_min",), "single": ("data.scale_min",), "fixed": (), "center": ()},
}
"""Alternatives of every task that has the key which chooses between them."""


def refuse_unread(runs: Iterable[tuple[RunConfig, Iterable[str]]]) -> None:
    """Check the overrides of runs that are planned together.

    Args:
        runs: configuration and overridden keys of each. It is enough that one of the runs of a key reads it.

    Raises:
        UserError: no run reads a key. Names the nearest one that is read.
    """
    found: dict[str, list[str]] = {}
    for config, given in runs:
        for key in given:
            found.setdefault(key, []).append(why_unread(config, key))
    for reasons in found.values():
        if all(reasons):
            raise UserError(reasons[0])


def why_unread(config: RunConfig, key: str) -> str:
    """Why an override of the key does nothing; empty if the run reads it, or if the key cannot change a result."""
    if key in keys(type(config), Role.OPERATIONAL):
        return ""
    card, values = task_card(config.task), config.model_dump()
    if card.protocols:
        values.setdefault(card.option, card.protocols[0].name)
    choices = [(card.option, _readers(card)), *KINDS.items()]
    for option, readers in choices:
        section, _, leaf = option.rpartition(".")
        chosen = str((values[section] if section else values).get(leaf))
        others = [name for name, reads in readers.items() if _names(reads, key)]
        if others and chosen in readers and chosen not in others:
            return (
                f"{key}: {option}={chosen} never reads it ({_listed(others)}); {_nearest(config, key, readers, chosen)}"
            )
    return ""


def _readers(card: TaskCard) -> Readers:
    kinds = {protocol.name: load_object(protocol.code) for protocol in card.protocols}
    return {name: kind.reads for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Contract)}


def _names(reads: Iterable[str], key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in reads)


def _listed(names: list[str]) -> str:
    return f"{names[0]} does" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} do"


def _nearest(config: RunConfig, key: str, readers: Readers, chosen: str) -> str:
    """The nearest key of the same section that is read: one of its own before one that all read."""
    section, _, leaf = key.rpartition(".")
    no_setting = keys(type(config), Role.OPERATIONAL, Role.PLACE)
    of_section = [k for k in leaf_keys(type(config)) if k.rpartition(".")[0] == section and k not in no_setting]
    own = [k for k in of_section if _names(readers[chosen], k)]
    shared = [k for k in of_section if not any(_names(reads, k) for reads in readers.values())]
    leaves = {k.rpartition(".")[2]: k for k in own or shared}
    found = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0)
    return f"the nearest that it reads is {leaves[found[0]]}" if found else f"it reads nothing of {section}"
