"""Masked autoencoding written out from the paper's formulas, an image at a time, without a line of the code under test.

Weights come as a dict of the model's parameters by name; all arithmetic is elementary, so that gradients are autograd's
of that arithmetic.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

EPS = 1e-6


def sin_cos(grid: tuple[int, int], width: int) -> np.ndarray:
    """(1 + h * w, width) by the definition: sin and cos of the column, then of the row; zeros for the class token."""
    table = np.zeros((1 + grid[0] * grid[1], width))
    quarter = width // 4
    for row in range(grid[0]):
        for column in range(grid[1]):
            for k in range(quarter):
                frequency = 1 / 10000 ** (k / quarter)
                entry = table[1 + row * grid[1] + column]
                entry[k] = math.sin(column * frequency)
                entry[quarter + k] = math.cos(column * frequency)
                entry[2 * quarter + k] = math.sin(row * frequency)
                entry[3 * quarter + k] = math.cos(row * frequency)
    return table


def patches_of(image: Tensor, patch: int) -> Tensor:
    """(C, H, W) -> (L, patch * patch * C): rows of patches, in each the pixels row by row, channels last."""
    _, height, width = image.shape
    found = []
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            found.append(image[:, top : top + patch, left : left + patch].permute(1, 2, 0).reshape(-1))
    return torch.stack(found)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.sum(-1, keepdim=True) / x.shape[-1]
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / x.shape[-1]
    return (x - mean) / torch.sqrt(variance + EPS) * weight + bias


Rotate = Callable[[Tensor, int], Tensor]
"""Queries or keys (N, D) of a head, and the head's number -> the same, rotated by the tokens' places."""
Rotation = Callable[[int, int, tuple[int, int], int, int], list[Tensor]]
"""Row, column, grid, block, head -> angles of the pairs of channels."""


def block(x: Tensor, w: dict[str, Tensor], name: str, heads: int, rotate: Rotate = lambda x, _: x) -> Tensor:
    """A pre-norm Transformer block on (N, C), with LayerScale if there are weights of it."""
    width = x.shape[1]
    size = width // heads
    y = layer_norm(x, w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"])
    qkv = y @ w[f"{name}.attn.qkv.weight"].T + w[f"{name}.attn.qkv.bias"]
    query, key, value = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = torch.exp(rotate(query[:, part], head) @ rotate(key[:, part], head).T / math.sqrt(size))
        outputs.append(scores / scores.sum(1, keepdim=True) @ value[:, part])
    attended = torch.cat(outputs, 1) @ w[f"{name}.attn.proj.weight"].T + w[f"{name}.attn.proj.bias"]
    x = x + attended * w.get(f"{name}.gamma_1", torch.ones(width))
    y = layer_norm(x, w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"])
    hidden = y @ w[f"{name}.mlp.fc1.weight"].T + w[f"{name}.mlp.fc1.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    output = hidden @ w[f"{name}.mlp.fc2.weight"].T + w[f"{name}.mlp.fc2.bias"]
    return x + output * w.get(f"{name}.gamma_2", torch.ones(width))


def rotated(x: Tensor, angles: list[Tensor], halves: bool) -> Tensor:
    """A token's channels (D,), turned pair by pair: neighbours are pairs, or channels half of D apart."""
    size, out = len(x), [torch.zeros(())] * len(x)
    for k, angle in enumerate(angles):
        i, j = (k, k + size // 2) if halves else (2 * k, 2 * k + 1)
        out[i] = x[i] * torch.cos(angle) - x[j] * torch.sin(angle)
        out[j] = x[j] * torch.cos(angle) + x[i] * torch.sin(angle)
    return torch.stack(out)


def embed(pixels: Tensor, w: dict[str, Tensor], patch: int, channels: int) -> Tensor:
    """A patch's pixels (patch * patch * C) -> (width,), as the convolution has it."""
    image = pixels.reshape(patch, patch, channels).permute(2, 0, 1)
    weight = w["encoder.vit.patch_embed.proj.weight"]
    return (weight * image).sum((1, 2, 3)) + w["encoder.vit.patch_embed.proj.bias"]


def predict(
    image: Tensor,
    noise: Tensor,
    w: dict[str, Tensor],
    *,
    patch: int,
    keep: int,
    heads: int,
    decoder_heads: int,
    mask_in_encoder: bool = False,
    classes: int = 1,
    learned: bool = False,
    decoder: bool = True,
    rotation: Rotation | None = None,
    halves: bool = False,
) -> tuple[Tensor, list[int]]:
    """Predictions (L, width) for a normalised image (C, H, W), and the places of the masked patches.

    `classes`: class tokens and registers; their fixed positions are zeros. `learned`: all positions are weights.
    `rotation`: queries and keys are rotated by the places of their tokens; `halves`: see `rotated`.
    """
    channels, height, width = image.shape
    grid = (height // patch, width // patch)
    count = grid[0] * grid[1]
    order = sorted(range(count), key=lambda i: (float(noise[i]), i))
    visible, masked = order[:keep], sorted(order[keep:])
    pixels = patches_of(image, patch)
    fixed = torch.from_numpy(sin_cos(grid, w["encoder.vit.cls_token"].shape[-1])).float()[1:]
    fixed = fixed if "encoder.vit.pos_embed" in w else torch.zeros_like(fixed)
    position = w["encoder.vit.pos_embed"][0, classes:] if learned else fixed
    tokens = [w["encoder.vit.cls_token"][0, 0], *(w["encoder.vit.reg_token"][0] if classes > 1 else [])]
    assert len(tokens) == classes
    if learned:
        tokens = [token + w["encoder.vit.pos_embed"][0, i] for i, token in enumerate(tokens)]
    if mask_in_encoder:
        entries = [
            (w["mask_token"][0, 0] if i in masked else embed(pixels[i], w, patch, channels)) + position[i]
            for i in range(count)
        ]
    else:
        entries = [embed(pixels[i], w, patch, channels) + position[i] for i in visible]
    x = torch.stack([*tokens, *entries])
    depth = 1 + max(int(name.split(".")[3]) for name in w if name.startswith("encoder.vit.blocks."))
    for i in range(depth):

        def rotate(x: Tensor, head: int, i: int = i) -> Tensor:
            if rotation is None:
                return x
            places = [divmod(place, grid[1]) for place in (range(count) if mask_in_encoder else visible)]
            angles = [rotation(row, column, grid, i, head) for row, column in places]
            own = [rotated(token, of_token, halves) for token, of_token in zip(x[classes:], angles, strict=True)]
            return torch.stack([*x[:classes], *own])

        x = block(x, w, f"encoder.vit.blocks.{i}", heads, rotate)
    x = layer_norm(x, w["encoder.norm.weight"], w["encoder.norm.bias"])
    if not decoder:
        return (x @ w["decoder_pred.weight"].T + w["decoder_pred.bias"])[classes:], masked
    x = x @ w["decoder_embed.weight"].T + w["decoder_embed.bias"]
    if mask_in_encoder:
        full = list(x[classes:])
    else:
        full = [x[classes + visible.index(i)] if i in visible else w["mask_token"][0, 0] for i in range(count)]
    fixed = torch.from_numpy(sin_cos(grid, x.shape[-1])).float()[1:]
    zeros = torch.zeros(classes, x.shape[-1])
    x = torch.stack([*x[:classes], *full]) + (w["decoder_pos_embed"][0] if learned else torch.cat([zeros, fixed]))
    depth = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("decoder_blocks."))
    for i in range(depth):
        x = block(x, w, f"decoder_blocks.{i}", decoder_heads)
    x = layer_norm(x, w["decoder_norm.weight"], w["decoder_norm.bias"])
    return (x @ w["decoder_pred.weight"].T + w["decoder_pred.bias"])[classes:], masked


def target_of(pixels: Tensor, normalised: bool) -> Tensor:
    """The target of patches (L, V): their pixels, or these less the mean, over the unbiased variance's deviation."""
    if not normalised:
        return pixels
    mean = pixels.sum(1, keepdim=True) / pixels.shape[1]
    variance = ((pixels - mean) ** 2).sum(1, keepdim=True) / (pixels.shape[1] - 1)
    return (pixels - mean) / (variance + 1e-6) ** 0.5


def loss_of(
    images: Tensor,
    noise: Tensor,
    w: dict[str, Tensor],
    *,
    patch: int,
    normalised: bool,
    on_all: bool = False,
    colors: bool = False,
    **options: int,
) -> Tensor:
    """The sum of the squared errors of all masked patches of all images over their number of values."""
    total, values = torch.zeros(()), 0
    for image, of_image in zip(images, noise, strict=True):
        prediction, masked = predict(image, of_image, w, patch=patch, **options)
        places = range(len(prediction)) if on_all else masked
        pixels = patches_of(image, patch)
        aims = target_of(pixels, normalised)
        if colors:
            aims = torch.stack([pixels[:, i :: len(image)].sum(1) / patch**2 for i in range(len(image))], 1)
        for i in places:
            total = total + ((prediction[i] - aims[i]) ** 2).sum()
            values += aims.shape[1]
    return total / values
