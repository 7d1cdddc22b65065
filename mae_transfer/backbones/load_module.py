"""A module of a user's own, made and loaded as an encoder, with the report of it."""

from typing import Any

from torch import Tensor, nn

from mae_transfer.backbones.checkpoints import files
from mae_transfer.backbones.checkpoints.audit import NAMED, refusal, shown
from mae_transfer.backbones.checkpoints.report import LoadReport, fingerprint
from mae_transfer.backbones.checkpoints.state_dict import unwrap
from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.module_encoder import ModuleEncoder
from mae_transfer.backbones.own_module import make, spec_of_module
from mae_transfer.backbones.plugins import Plugin, find_plugin

LAYOUT = "a module of your own"


def load_module(
    name: str,
    *,
    checkpoint: Any = None,
    checkpoint_key: str | None = None,
    img_size: int | Grid | None,
    taps: tuple[int, ...] | None,
    **options: Any,
) -> ModuleEncoder:
    """The encoder of a name whose factory returns a module, on the CPU, with a checkpoint's weights if one is given.

    Raises UserError for options that the factory does not take, and unless the checkpoint fits tensor for tensor.
    """
    plugin = find_plugin(name)
    assert plugin is not None
    module = make(plugin, {"img_size": img_size, **options})
    assert isinstance(module, nn.Module)
    module.to("cpu")
    spec = spec_of_module(module, plugin.name, plugin.origin)
    ignored: dict[str, str] = {}
    source = plugin.origin
    if checkpoint is not None:
        path = files.find(checkpoint)
        source = str(path)
        state, ignored = unwrap(files.read(path), source, checkpoint_key)
        ignored |= _load_state(module, state, source, plugin)
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    report = LoadReport(spec.name, source, LAYOUT, fingerprint(state), sorted(state), ignored=ignored)
    return ModuleEncoder(module, spec, report, img_size=img_size, taps=taps)


def _load_state(module: nn.Module, state: dict[str, Tensor], source: str, plugin: Plugin) -> dict[str, str]:
    """Load a state dict, or the encoder's part of a run's; give what was left out, with the reason."""
    part = "encoder.module."
    ignored = {}
    if any(name.startswith(part) for name in state):
        ignored = {name: "another part of the task's model" for name in state if not name.startswith(part)}
        state = {name.removeprefix(part): x for name, x in state.items() if name.startswith(part)}
        state, _ = unwrap(state, source)
    wanted = module.state_dict()
    names = dict(zip(unwrap(wanted, plugin.origin)[0], wanted, strict=True))  # without the prefixes that unwrap takes
    problems = [f"missing {names[name]}" for name in names if name not in state]
    for name, x in state.items():
        if name not in names:
            problems.append(f"unexpected {shown(name)}")
        elif x.shape != wanted[names[name]].shape:
            problems.append(f"{names[name]} is {tuple(x.shape)}, not {tuple(wanted[names[name]].shape)}")
        elif x.is_floating_point() and not x.isfinite().all():
            problems.append(f"{names[name]} holds NaN or infinite values")
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise refusal(source, f"does not fit {plugin.name}, {plugin.origin} ({', '.join(problems[:NAMED])}{more})")
    module.load_state_dict({names[name]: x for name, x in state.items()})
    return ignored
