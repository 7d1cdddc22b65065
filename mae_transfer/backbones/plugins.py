"""Backbones that users add: by `register_backbone`, or by an entry point of a package in `mae_transfer.backbones`.

Both give a name to a factory, a callable that returns an `nn.Module` as `own_module.EncoderModule` describes, or a
`Spec` of a plain ViT. Importing this loads neither torch nor the packages; a factory is loaded when its name is asked
for.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from mae_transfer.backbones import registry
from mae_transfer.errors import UserError

if TYPE_CHECKING:
    from torch import nn

GROUP = "mae_transfer.backbones"

Factory = Callable[..., Any]
"""-> nn.Module or Spec. It is given those options of `load_backbone` that it has parameters for."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Plugin:
    """A name that a user has added. `origin` tells in messages and records where its factory is from."""

    name: str
    origin: str
    load: Callable[[], Factory]


_registered: dict[str, Plugin] = {}


def register_backbone(name: str, factory: Factory) -> None:
    """Give a name to a backbone of one's own, for this process.

    Args:
        name: for `load_backbone`, `run_transfer` and records: letters, digits, `_`, `.` and `-`.
        factory: called without arguments, but for those of img_size, window_size, num_global_blocks, rel_pos,
            drop_path, grad_checkpointing and layer_scale that it has parameters for; returns an `nn.Module` (see
            docs/extending/encoder.md) or a `Spec`.

    Raises:
        UserError: the name is taken. Defining the same function or class again, as a notebook does, replaces it.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"backbone name {name!r}: use letters, digits, '_', '.' and '-'")
    plugin = Plugin(name, _origin(factory), lambda: factory)
    others = [other.origin for other in _candidates(name) if other.origin != plugin.origin]
    _check_single(name, [*others, plugin.origin])
    _registered[name] = plugin


def register_module(module: "nn.Module") -> str:
    """Register a module that was passed in place of a name, and give its name: its class's, or its attribute `name`.

    Each load copies the module, so that what a run trains is not the user's own.
    """
    kind = type(module)
    own = getattr(module, "name", None)
    name = own if isinstance(own, str) else kind.__name__

    def factory() -> "nn.Module":
        return copy.deepcopy(module)

    factory.__module__, factory.__qualname__ = kind.__module__, kind.__qualname__
    register_backbone(name, factory)
    return name


def find_plugin(name: str) -> Plugin | None:
    """What was added under a name, if anything; UserError if that name is taken twice."""
    found = _candidates(name)
    if found:
        _check_single(name, [plugin.origin for plugin in found])
    return found[0] if found else None


def plugin_names() -> list[str]:
    """All names that were added, sorted."""
    return sorted({*_registered, *(point.name for point in metadata.entry_points(group=GROUP))})


def _candidates(name: str) -> list[Plugin]:
    points = metadata.entry_points(group=GROUP, name=name)
    installed = {point.value: Plugin(name, f"{_package(point)} ({point.value})", _loader(point)) for point in points}
    return [*installed.values(), *(plugin for plugin in (_registered.get(name),) if plugin)]


@lru_cache  # one function for one entry point, so that two look-ups give equal plugins
def _loader(point: metadata.EntryPoint) -> Callable[[], Factory]:
    def load() -> Factory:
        try:
            factory: Factory = point.load()
        except (ImportError, AttributeError) as error:
            reason = str(error).split("\n")[0]
            raise UserError(
                f"backbone {point.name!r} of {_package(point)}: {point.value} cannot be imported ({reason})"
            ) from error
        return factory

    return load


def _package(point: metadata.EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist else "a package"


def _origin(factory: Factory) -> str:
    """Never with a memory address: it tells the same thing in every process."""
    named = factory if hasattr(factory, "__qualname__") else type(factory)
    return f"{named.__module__}.{named.__qualname__}"


def _check_single(name: str, origins: list[str]) -> None:
    if registry.knows(name):
        origins = ["mae_transfer itself", *origins]
    if len(origins) > 1:
        raise UserError(f"backbone {name!r} is named by {' and by '.join(origins)}; give yours another name")
