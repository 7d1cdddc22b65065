"""The list of tasks: those of this package, and those that other packages or notebooks add.

Another package names its cards by the entry-point group `mae_transfer.tasks`; the entry is a `TaskCard`, or several.
`register_task` does the same for this process alone. A protocol of another package for tasks that are there already is
named by the group `mae_transfer.protocols`; the entry is a mapping from names of tasks to the `Protocol`, and
`register_protocols` does the same for this process.
"""

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from mae_transfer.commands import command
from mae_transfer.errors import UserError, nearest
from mae_transfer.tasks.card import Protocol, TaskCard, load_object

if TYPE_CHECKING:
    from mae_transfer.config.sections import RunConfig
    from mae_transfer.engine.task import BaseTask

GROUP = "mae_transfer.tasks"
PROTOCOLS_GROUP = "mae_transfer.protocols"
MODULES = (
    "mae_transfer.tasks.coco.card",
    "mae_transfer.tasks.ade20k.card",
    "mae_transfer.tasks.classification.card",
    "mae_transfer.pretrain.card",
)
"""Modules with the CARDS of this package."""

_registered: dict[str, tuple[TaskCard, str]] = {}


def register_task(card: TaskCard, *, replace: bool = False) -> None:
    """Add a task to those of this process.

    Raises:
        UserError: the name is taken, unless `replace` is set.
    """
    if not replace and card.name in _all():
        raise UserError(f"the task '{card.name}' is there already, from {_all()[card.name][1]}; give it another name")
    _registered[card.name] = (card, "register_task")


def register_protocols(protocols: Mapping[str, Protocol]) -> None:
    """Add protocols to tasks of this process; the names of tasks map to them. One that is there as it is stays.

    Raises:
        UserError: an unknown task, or a task that has another protocol of the name.
    """
    for name, protocol in protocols.items():
        register_task(_with_protocol(task_card(name), protocol, "register_protocols"), replace=True)


def task_cards(*, transfers: bool | None = None) -> list[TaskCard]:
    """The cards of all tasks; only those that transfer an encoder, or only those that do not."""
    return [card for card, _ in _all().values() if transfers in (None, card.transfers)]


def task_card(name: str) -> TaskCard:
    """The card of a task; UserError for an unknown one, with the nearest name."""
    cards = _all()
    if name not in cards:
        known = [card.name for card in task_cards(transfers=True)]
        raise UserError(f"unknown task '{name}'{nearest(name.lower(), known)}; tasks: {', '.join(known)}")
    return cards[name][0]


def descriptions() -> list[dict[str, object]]:
    """What tables are told of the tasks, for published numbers and protocols that no record has."""
    return [card.describe() | {"rows": card.rows()} for card in task_cards()]


def check_transfers(name: str) -> None:
    """UserError for a task that makes encoders instead of transferring one."""
    if not task_card(name).transfers:
        raise UserError(f"{name} is no task to transfer to; run {command('pretrain')}")


def protocol_of(card: TaskCard, name: str | None) -> Protocol | None:
    """A protocol of a task, the default one for None; None if the task has no protocols.

    Raises:
        UserError: the task has no protocol of that name.
    """
    try:
        return card.protocol(name)
    except KeyError:
        pass
    if not card.protocols:
        some = ", ".join(other.name for other in task_cards(transfers=True) if other.protocols)
        raise UserError(f"--protocol {name}: the task {card.name} has no protocols; these have some: {some}")
    known = [protocol.name for protocol in card.protocols]
    raise UserError(
        f"unknown {card.option} '{name}'{nearest(name or '', known)}; {card.option}s of {card.name}: {', '.join(known)}"
    )


def make_task(config: "RunConfig", like: "BaseTask | None" = None) -> "BaseTask":
    """The task of a configuration, with its data read and checked; UserError for anything wrong with them.

    like: the task of another run of the same series, whose list of images need not be read again.
    """
    card = task_card(config.task)
    kind: type[BaseTask] = load_object(card.task)
    protocol = protocol_of(card, getattr(config, card.option, None))
    return kind.make(config, None if protocol is None else load_object(protocol.code), like)


def config_class(card: TaskCard, protocol: Protocol | None) -> "type[RunConfig]":
    """The configuration class of a task, or of its protocol if that has its own."""
    found: type[RunConfig] = load_object(protocol.config if protocol is not None and protocol.config else card.config)
    return found


def _all() -> dict[str, tuple[TaskCard, str]]:
    """Name -> card and where it comes from."""
    return _installed() | _registered


@cache
def _installed() -> dict[str, tuple[TaskCard, str]]:
    found: dict[str, tuple[TaskCard, str]] = {}
    for module in MODULES:
        _add(found, importlib.import_module(module).CARDS, "mae_transfer")
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        origin = f"{entry.value} (package {entry.dist.name if entry.dist else 'unknown'})"
        try:
            cards = entry.load()
        except Exception as error:
            raise UserError(f"task {entry.name} of {origin} cannot be loaded: {error}; mend or remove it") from error
        _add(found, (cards,) if isinstance(cards, TaskCard) else cards, origin)
    for entry in sorted(entry_points(group=PROTOCOLS_GROUP), key=lambda entry: entry.name):
        origin = f"{entry.value} (package {entry.dist.name if entry.dist else 'unknown'})"
        try:
            protocols: Mapping[str, Protocol] = entry.load()
            pairs = list(protocols.items())
        except Exception as error:
            raise UserError(
                f"protocol {entry.name} of {origin} cannot be loaded: {error}; mend or remove it"
            ) from error
        for name, protocol in pairs:
            if name not in found:
                raise UserError(f"protocol {entry.name} of {origin}: there is no task '{name}'; mend or remove it")
            card, of = found[name]
            found[name] = (_with_protocol(card, protocol, origin), of)
    return found


def _with_protocol(card: TaskCard, protocol: Protocol, origin: str) -> TaskCard:
    if protocol in card.protocols:
        return card
    if not card.protocols or protocol.name in {other.name for other in card.protocols}:
        why = f"has a protocol '{protocol.name}' already" if card.protocols else "has no protocols"
        raise UserError(
            f"protocol {protocol.name} of {origin}: the task {card.name} {why}; give it another name or task"
        )
    return dataclasses.replace(card, protocols=(*card.protocols, protocol))


def _add(found: dict[str, tuple[TaskCard, str]], cards: Iterable[TaskCard], origin: str) -> None:
    for card in cards:
        if card.name in found:
            raise UserError(f"two tasks have the name '{card.name}': of {found[card.name][1]} and of {origin}")
        found[card.name] = (card, origin)
