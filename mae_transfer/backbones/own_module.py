"""A module of a user's own: what it has to offer to be an encoder, and the factory that makes it."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mae_transfer.backbones import registry
from mae_transfer.backbones.plugins import Plugin
from mae_transfer.backbones.registry import Spec
from mae_transfer.errors import UserError


class EncoderModule(Protocol):
    """What a module has to offer: five attributes and one method. `mae_transfer.check_encoder` says what it lacks.

    It may offer more:
        tokens(images, blocks) -> list of (B, num_prefix_tokens + h * w, C), class token first, for probes: after the
            module's final norm. Without it probes read the maps, and there is no class token.
        num_prefix_tokens: of `tokens`, default 1.
        layer_id(name): for layer-wise lr decay, see `Encoder.layer_id`. Without it the one list of `depth` blocks in
            the module decides.
        num_heads: of attentive probes, default one for each 64 channels.
        name, init: of the record, default the class's name and `own`.
    """

    embed_dim: int
    """C, the channels of the maps."""
    depth: int
    """Number of blocks."""
    patch_size: int
    """p, pixels of a patch's side."""
    mean: tuple[float, float, float]
    """Of the RGB images that the weights were trained on, in 0..1 units; so `std`."""
    std: tuple[float, float, float]

    def feature_maps(self, images: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
        """Normalised images float (B, 3, H, W), H and W any multiples of p -> one map (B, C, H/p, W/p) after each of
        the blocks (0-based, ascending)."""
        ...


def attribute_problems(module: nn.Module) -> list[str]:
    """What of `EncoderModule` a module lacks, in one line each; nothing is run."""
    problems = []
    for name in ("embed_dim", "depth", "patch_size"):
        value = getattr(module, name, None)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(f"{name}: {_shown(value)}, must be a positive whole number")
    for name in ("mean", "std"):
        value = getattr(module, name, None)
        numbers = list(value) if isinstance(value, (tuple, list)) else []
        if len(numbers) != 3 or not all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in numbers):
            problems.append(f"{name}: {_shown(value)}, must be three numbers for R, G and B in 0..1 units")
        elif name == "std" and not all(numbers):
            problems.append(f"std: {_shown(value)}, must not be zero")
    if not callable(getattr(module, "feature_maps", None)):
        problems.append("feature_maps: missing, must be a method (images, blocks) -> list of maps (B, C, H/p, W/p)")
    return problems


def _shown(value: object) -> str:
    if value is None:
        return "missing"
    plain = isinstance(value, (int, float, str)) or (
        isinstance(value, (tuple, list)) and all(isinstance(v, (int, float)) for v in value)
    )
    return repr(value) if plain else f"is a {type(value).__name__}"


def spec_of_module(module: nn.Module, name: str, origin: str) -> Spec:
    """The spec of a user's module; UserError with the first thing that it lacks."""
    problems = attribute_problems(module)
    if problems:
        more = f" (and {len(problems) - 1} more, see mae_transfer.check_encoder)" if len(problems) > 1 else ""
        raise UserError(f"backbone {name!r}, {origin}: {problems[0]}{more}")
    own: Any = module
    init = getattr(module, "init", "own")
    return Spec(
        name=name,
        init=init if isinstance(init, str) else "own",
        size=registry.size_of(own.embed_dim, own.depth),
        embed_dim=own.embed_dim,
        depth=own.depth,
        num_heads=int(getattr(module, "num_heads", max(own.embed_dim // 64, 1))),
        patch_size=own.patch_size,
        mean=tuple(own.mean),
        std=tuple(own.std),
        origin=origin,
    )


def make(plugin: Plugin, options: Mapping[str, object] | None = None) -> nn.Module | Spec:
    """What the factory of a plugin returns; options that are not set, or that it has no parameter for, are left out.

    Raises UserError for options that are set and that it has no parameter for, and for another kind of result.
    """
    factory = plugin.load()
    takes = inspect.signature(factory).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    given = {name: value for name, value in (options or {}).items() if every or name in takes}
    made = factory(**given)
    if not isinstance(made, (nn.Module, Spec)):
        raise UserError(
            f"backbone {plugin.name!r}: {plugin.origin} returns a {type(made).__name__}, not an nn.Module or a Spec"
        )
    if isinstance(made, nn.Module):
        _check_options(plugin, {name: value for name, value in (options or {}).items() if name not in given})
    return made


def _check_options(plugin: Plugin, left: Mapping[str, object]) -> None:
    unset = {"window_size": 0, "rel_pos": False, "drop_path": 0.0, "grad_checkpointing": False, "layer_scale": None}
    section = {"layer_scale": "model"}
    asked = [
        f"{section.get(name, 'backbone')}.{name}={'null' if value is None else str(value).lower()}"
        for name, value in unset.items()
        if name in left and left[name] != value
    ]
    if asked:
        raise UserError(
            f"backbone {plugin.name!r}: windows, relative positions, drop path, checkpointing and LayerScale are not "
            f"put into a module of your own; set {' '.join(asked)}, or register a factory with parameters of these "
            "names"
        )


@lru_cache(maxsize=32)
def spec_of_plugin(plugin: Plugin) -> Spec:
    """The spec of a name that a user has added. A module is made to be asked and is then let go; the state of torch's
    global generator is left as it was."""
    with torch.random.fork_rng():
        made = make(plugin)
    if isinstance(made, Spec):
        return replace(made, name=plugin.name)
    return spec_of_module(made, plugin.name, plugin.origin)
