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

    Looks for the attributes and the method of `own_module.EncoderModule`, then runs the module: shapes at several
    sizes, blocks that are told apart, the same result for the same image alone and in a batch (in eval mode), and a
    gradient for every parameter that wants one. An exception of the module itself comes through. The mode, the
    gradients and the state of torch's global generator are left as they were.

    Args:
        sizes: heights and widths in pixels to run it at, default about 112 x 112 and 112 x 168.
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
            problems = _shape_problems(module.eval(), sizes)
            if not problems:
                problems = _value_problems(module)
                problems += _gradient_problems(module.train()) if gradients else []
    finally:
        for parameter, gradient in kept.items():
            parameter.grad = gradient
        module.train(training)
    return problems


def _images(module: Any, batch: int, size: tuple[int, int] | None = None) -> Tensor:
    side = max(112 // module.patch_size, 2) * module.patch_size
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, *(size or (side, side)), generator=generator).to(device)


@torch.no_grad()
def _shape_problems(module: Any, sizes: tuple[tuple[int, int], ...] | None) -> list[str]:
    problems, p, blocks = [], module.patch_size, tuple(sorted({0, module.depth - 1}))
    side = max(112 // p, 2) * p
    for height, width in sizes or ((side, side), (side, side + side // p // 2 * p)):
        images = _images(module, 2, (height, width))
        grid = (height // p, width // p)
        wanted: dict[str, tuple[int, ...]] = {"feature_maps": (2, module.embed_dim, *grid)}
        if callable(getattr(module, "tokens", None)):
            prefix = int(getattr(module, "num_prefix_tokens", 1))
            wanted["tokens"] = (2, prefix + grid[0] * grid[1], module.embed_dim)
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
    return problems


@torch.no_grad()
def _value_problems(module: Any) -> list[str]:
    problems, last = [], module.depth - 1
    images = _images(module, 2)
    first, again, alone = (module.feature_maps(batch, (last,))[0] for batch in (images, images, images[:1]))
    if not torch.equal(first, again):
        problems.append("feature_maps: gives two results for the same images in eval mode, must be deterministic")
    elif not torch.allclose(first[:1], alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max())):
        problems.append("feature_maps: an image gives another result beside another image, must not depend on it")
    if last > 0 and not torch.equal(module.feature_maps(images, (0, last))[1], first):
        problems.append(f"feature_maps: asked for the blocks 0 and {last}, must give them in that order")
    if last and torch.equal(module.feature_maps(images, (0,))[0], first):
        problems.append(f"feature_maps: gives the same map for the blocks 0 and {last}, must give each block's own")
    return problems


def _gradient_problems(module: Any) -> list[str]:
    wanting = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not wanting:
        return ["parameters: none has requires_grad, so that nothing can be fine-tuned"]
    for parameter in wanting.values():
        parameter.grad = None
    (last,) = module.feature_maps(_images(module, 2), (module.depth - 1,))
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
