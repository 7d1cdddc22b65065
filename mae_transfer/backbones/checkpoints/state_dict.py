"""From a file's content to one state dict of plain tensors: containers and wrapper prefixes come off here, once.

A container is an entry of the file (`model`, `state_dict`, `teacher`, ...), a wrapper a prefix that all keys have (DDP
`module.`, torch.compile `_orig_mod.`, Lightning `model.`).
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mae_transfer.backbones.checkpoints.audit import refusal, shown
from mae_transfer.backbones.checkpoints.files import ZERO_REMEDY
from mae_transfer.backbones.checkpoints.layout import State

CONTAINERS = ("model", "state_dict", "module", "teacher", "student")
"""Where a file keeps its state dict, in the order in which they are looked for."""
_WRAPPERS = ("_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Names that wrappers of torch and Lightning put into keys, wherever a module is wrapped."""
PREFIXES = ("module.", "model.", "backbone.", "encoder.", "net.")

KEY = "--key {0} (backbone.checkpoint_key={0})"
"""How a user names an entry, or a prefix of keys, on a command line."""

_DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.complex128, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
_LARGE = 1 << 26
"""Bytes up to which a tensor may be a repetition of fewer stored values."""


def unwrap(raw: object, source: str, key: str | None = None) -> tuple[State, dict[str, str]]:
    """The state dict in a file's content, wrapper prefixes off, and the entries beside it with the reason.

    `key` is the entry to read, `a.b` for one inside another, or a prefix that some of the state dict's keys have.
    Raises UserError if there is no state dict of plain tensors, or several and no `key`.
    """
    if not isinstance(raw, Mapping):
        raise refusal(source, f"holds a {type(raw).__name__}, not a state dict; save model.state_dict().")
    _check_shard(raw, source)
    entries = dict(_entries(raw))
    container = key if key in entries else _container(raw)
    state: Mapping = raw if container is None else entries[container]
    ignored = {} if container is None else _beside(raw, container)
    if container == "ema":  # torch's AveragedModel, as the engine saves it
        state = {name: value for name, value in state.items() if name != "n_averaged"}
    state = _tensors(state, entries, source)
    if key is None or key in entries:
        return _bare(state), ignored
    start = f"{key.rstrip('.')}."
    for named in (state, _bare(state)):
        chosen = {name.removeprefix(start): tensor for name, tensor in named.items() if name.startswith(start)}
        if chosen:
            ignored |= {name: f"beside {key!r}, which is what is read" for name in named if not name.startswith(start)}
            return _bare(chosen), ignored
    have = ", ".join(shown(name) for name in entries) or "none"
    raise refusal(source, f"has no entry {key!r} and no keys {shown(start)}*; it has {have}.")


def _entries(raw: Mapping, depth: int = 2) -> Iterator[tuple[str, Mapping]]:
    """Name and content of each entry that is a mapping; those inside others as `outer.inner`."""
    for name, value in raw.items():
        if isinstance(name, str) and isinstance(value, Mapping):
            yield name, value
            if depth > 1:
                yield from ((f"{name}.{inner}", found) for inner, found in _entries(value, depth - 1))


def _container(raw: Mapping) -> str | None:
    if {"step", "model", "optimizer", "ema"} <= raw.keys() and isinstance(raw["ema"], Mapping):
        return "ema"  # of a run of this project: what it evaluates
    return next((name for name in CONTAINERS if isinstance(raw.get(name), Mapping)), None)


def _beside(raw: Mapping, container: str) -> dict[str, str]:
    """Why the other entries of a file are ignored."""
    outer = container.split(".")[0]
    others = [shown(name) for name in raw if name not in (outer, container)]
    ignored = dict.fromkeys(others, f"beside {container!r}: state of the training run")
    for other in ("student", "teacher", "ema", "state_dict_ema", "model_ema"):
        if other in ignored and raw[other] is not None:
            ignored[other] = f"beside {container!r}, which is what is read; checkpoint_key={other} reads this one"
    return ignored


def _tensors(state: Mapping, entries: Mapping[str, Mapping], source: str) -> State:
    """The state dict with its values as plain tensors; raises UserError if some are none."""
    other = [name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if not other and state:
        return {name: _plain(name, value, source) for name, value in state.items()}
    found = [name for name, value in entries.items() if _holds_weights(value)]
    if len(found) == 1:
        raise refusal(source, f"its weights are under {found[0]!r}; read them by {KEY.format(shown(found[0]))}.")
    if found:
        names = ", ".join(map(shown, found[:8]))
        raise refusal(source, f"has several state dicts, {names}; choose one by {KEY.format('<name>')}.")
    what = f"'{shown(other[0])}' is a {type(state[other[0]]).__name__}" if other else "it is empty"
    raise refusal(source, f"not a state dict of tensors, {what}; save model.state_dict().")


def _holds_weights(entry: Mapping) -> bool:
    named = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in entry.items())
    return named and any(name.endswith(".weight") for name in entry)


def _plain(name: str, tensor: Tensor, source: str) -> Tensor:
    """The tensor without autograd's marks; raises UserError for one whose values are not there as plain numbers."""
    kind = None
    if tensor.is_meta:
        kind = "a tensor of the meta device, which has no values"
    elif tensor.is_quantized:
        kind = f"quantised ({_type(tensor)})"
    elif tensor.layout != torch.strided:
        kind = f"sparse ({tensor.layout})".replace("torch.", "")
    elif tensor.is_nested:
        kind = "a nested tensor"
    elif tensor.dtype not in _DTYPES:
        kind = f"{_type(tensor)}, whose scale is not known"
    elif tensor.numel() * tensor.element_size() > max(tensor.untyped_storage().nbytes(), _LARGE):
        kind = f"{tuple(tensor.shape)} repeated from fewer values"
    if kind is not None:
        raise refusal(source, f"{shown(name)} is {kind}; save the weights dense, in float32, float16 or bfloat16.")
    return tensor.detach()


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _bare(state: State) -> State:
    """The state dict without the names of wrappers, and without the prefixes that all of its keys have."""
    for wrapper in _WRAPPERS:
        state = {name.replace(wrapper, ""): tensor for name, tensor in state.items()}
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _check_shard(raw: Mapping, source: str) -> None:
    """Raise UserError for one rank's part of a sharded training: its tensors are empty, or only the optimizer's."""
    of_optimizer = "ds_version" in raw and "module" not in raw
    states = [value for value in (raw, raw.get("module"), raw.get("state_dict")) if isinstance(value, Mapping)]
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    empty = [tensor for tensor in tensors if not tensor.numel()]
    if of_optimizer or (empty and len(empty) >= len(tensors) / 2):
        raise refusal(source, f"one rank's part of a checkpoint of DeepSpeed, without the weights; {ZERO_REMEDY}")
