"""`check_encoder`: what a module of a user's own lacks to be an encoder, found by running it on small images."""

from typing import Any

import torch
from torch import Tensor, nn

from mae_transfer.backbones.own_module import attribute_problems

NAMED = 3
"""Parameters named in a line; the rest are counted."""


def check_encoder(
    module: nn.Module, sizes: tuple[tuple[int, int], ...] | None = None, *, gradients: bool = True
) -> list[str]:
    """What is wrong with a module as an encoder, one line each; an empty list if nothing is.

    Looks for the attributes and the method of `own_module.EncoderModule`, then runs the module: shapes, blocks that
    are told apart, the same result for the same image alone and in a batch (in eval mode), and a gradient for every
    parameter that wants one. A sound module is run three times: on two images, on one, and for the gradients; a fourth
    time if it has `tokens`. A fault may take one or two more to be named. An exception of the module itself comes
    through. The mode, the gradients and the state of torch's global generator are left as they were.

    Args:
        sizes: heights and widths in pixels to run it at, default about 112 x 168: a map of another height than width
            tells the two apart.
        gradients: look at these too.
    """
    problems = attribute_problems(module)
    if problems:
        return problems
    training = module.training
    kept = {parameter: parameter.grad for parameter in module.parameters()}
    devices = {parameter.device for parameter in kept if parameter.device.type == "cuda"}  # not all that there are
    try:
        with torch.random.fork_rng(devices):
            module.eval()
            for number, size in enumerate(sizes or (_default_size(module),)):
                images = _images(module, size)
                with torch.no_grad():
                    maps, found = _run(module, images)
                    problems += found or ([] if number else _value_problems(module, images, maps))
            if gradients and not problems:
                problems = _gradient_problems(module.train())
    finally:
        for parameter, gradient in kept.items():
            parameter.grad = gradient
        module.train(training)
    return problems


def _default_size(module: Any) -> tuple[int, int]:
    patches = max(112 // module.patch_size, 2)
    return patches * module.patch_size, (patches + patches // 2) * module.patch_size


def _images(module: Any, size: tuple[int, int]) -> Tensor:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)


def _run(module: Any, images: Tensor) -> tuple[list[Tensor], list[str]]:
    """The maps of the first and the last block, and what is wrong with their shapes and with those of the tokens."""
    problems, found, blocks = [], [], tuple(sorted({0, module.depth - 1}))
    grid = tuple(side // module.patch_size for side in images.shape[2:])
    wanted: dict[str, tuple[int, ...]] = {"feature_maps": (2, module.embed_dim, *grid)}
    if callable(getattr(module, "tokens", None)):
        prefix = int(getattr(module, "num_prefix_tokens", 1))
        wanted = {"tokens": (2, prefix + grid[0] * grid[1], module.embed_dim), **wanted}
    for method, shape in wanted.items():
        found = getattr(module, method)(images, blocks)
        where = f"{method} of images {tuple(images.shape)}"
        if not isinstance(found, (list, tuple)) or not all(isinstance(x, Tensor) for x in found):
            problems.append(f"{where}: gives a {type(found).__name__}, must give a list of tensors")
        elif len(found) != len(blocks):
            problems.append(f"{where}: gives {len(found)} tensors for the {len(blocks)} blocks {blocks}")
        elif any(tuple(x.shape) != shape for x in found):
            shapes = ", ".join(str(tuple(x.shape)) for x in found)
            problems.append(f"{where}: gives {shapes}, must give {shape} each")
        elif not all(x.isfinite().all() for x in found):
            problems.append(f"{where}: gives NaN or infinite values")
    return [] if problems else list(found), problems


def _value_problems(module: Any, images: Tensor, maps: list[Tensor]) -> list[str]:
    """maps: of the first and the last block, of both images."""
    problems, last = [], module.depth - 1
    if last and torch.equal(maps[0], maps[-1]):
        problems.append(f"feature_maps: gives the same map for the blocks 0 and {last}, must give each block's own")
    alone = module.feature_maps(images[:1], (last,))[0]
    if _close(maps[-1][:1], alone):
        return problems
    again = module.feature_maps(images, tuple(sorted({0, last})))
    if not all(torch.equal(one, other) for one, other in zip(maps, again, strict=True)):
        problems.append("feature_maps: gives two results for the same images in eval mode, must be deterministic")
    elif last and _close(maps[-1], module.feature_maps(images, (last,))[0]):
        problems.append("feature_maps: an image gives another result beside another image, must not depend on it")
    elif last:
        problems.append(f"feature_maps: asked for the blocks 0 and {last}, must give them in that order")
    else:
        problems.append("feature_maps: an image gives another result beside another image, must not depend on it")
    return problems


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def _gradient_problems(module: Any) -> list[str]:
    wanting = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not wanting:
        return ["parameters: none has requires_grad, so that nothing can be fine-tuned"]
    for parameter in wanting.values():
        parameter.grad = None
    (last,) = module.feature_maps(_images(module, _default_size(module)), (module.depth - 1,))
    if not last.requires_grad:
        return ["feature_maps: gives maps without a gradient, must not run under torch.no_grad or detach"]
    last.float().square().mean().backward()
    without = [name for name, p in wanting.items() if p.grad is None]
    if not without:
        return []
    more = f" and {len(without) - NAMED} more" if len(without) > NAMED else ""
    return [
        f"parameters: {', '.join(without[:NAMED])}{more} get no gradient from the last map; what only tokens() uses "
        "wants requires_grad_(False)"
    ]
