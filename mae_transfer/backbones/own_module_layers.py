"""The blocks of a module of a user's own, and from them the layer of each parameter."""

from torch import nn


def find_blocks(module: nn.Module, depth: int) -> nn.Module | None:
    """The one outermost ModuleList or Sequential of `depth` members, None if there is no such or several."""
    found = _named_blocks(module, depth)
    return None if found is None else found[1]


def layer_ids(module: nn.Module, depth: int) -> dict[str, int] | None:
    """Parameter name -> 0 before the blocks (in the order in which they stand in the module), i + 1 in block i,
    depth + 1 behind them; None if the blocks are not found."""
    found = _named_blocks(module, depth)
    if found is None:
        return None
    prefix, blocks = found
    numbers = {name: i for i, (name, _) in enumerate(blocks.named_children())}
    ids, last = {}, 0
    for name, _ in module.named_parameters():
        if name.startswith(prefix):
            ids[name] = numbers[name.removeprefix(prefix).split(".")[0]] + 1
            last = depth + 1
        else:
            ids[name] = last
    return ids


def _named_blocks(module: nn.Module, depth: int) -> tuple[str, nn.Module] | None:
    lists = {
        f"{name}.": part
        for name, part in module.named_modules()
        if name and isinstance(part, (nn.ModuleList, nn.Sequential)) and len(part) == depth
    }
    outer = [name for name in lists if not any(name != other and name.startswith(other) for other in lists)]
    return (outer[0], lists[outer[0]]) if len(outer) == 1 else None
