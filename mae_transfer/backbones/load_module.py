"""A module of a user's own, made and loaded as an encoder, with the report of it."""

from typing import Any

from torch import Tensor, nn

from mae_transfer.backbones.check import check_encoder
from mae_transfer.backbones.checkpoints import files
from mae_transfer.backbones.checkpoints.exact import load_exactly, part_of_run
from mae_transfer.backbones.checkpoints.report import LoadReport, fingerprint
from mae_transfer.backbones.checkpoints.state_dict import unwrap
from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.module_encoder import ModuleEncoder
from mae_transfer.backbones.own_module import make, spec_of_module
from mae_transfer.backbones.plugins import find_plugin

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
        state, beside = part_of_run(state, "encoder.module.", source)
        load_exactly(module, state, source, f"{plugin.name}, {plugin.origin}")
        ignored |= beside
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    report = LoadReport(spec.name, source, LAYOUT, fingerprint(state), sorted(state), ignored=ignored)
    report.warnings += _faults(module)
    return ModuleEncoder(module, spec, report, img_size=img_size, taps=taps)


def _faults(module: nn.Module) -> list[str]:
    """What `check_encoder` finds. A run goes on, since its small images may be none that the module is for."""
    try:
        return check_encoder(module, gradients=False)
    except Exception as error:  # noqa: BLE001 - whatever the module raises
        return [f"check_encoder could not run it: {type(error).__name__}: {' '.join(str(error).split())[:200]}"]
