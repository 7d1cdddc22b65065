"""Floating-point operations of an encoder's forward pass on one image, and the counter for those of any pass."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder
    from mae_transfer.backbones.vit import ViTEncoder


def encoder_flops(encoder: "Encoder") -> int:
    """Floating-point operations of the maps of one image of the size that the encoder was built for.

    In closed form for the plain ViTs of this project; a module of a user's own is run once and counted by torch.
    """
    return vit_flops(encoder) if hasattr(encoder, "vit") else counted_flops(encoder)  # type: ignore[arg-type]


def counted_flops(encoder: "Encoder") -> int:
    """What `count_operations` counts in a forward pass of zeros."""
    height, width = (side * encoder.patch_size for side in encoder.global_grid)
    images = torch.zeros(1, len(encoder.mean), height, width, device=encoder.pixel_mean.device)
    training = encoder.training
    with torch.no_grad(), count_operations() as counter:
        encoder.eval()(images)
    encoder.train(training)
    return counter.get_total_flops()


def count_operations() -> FlopCounterMode:
    """torch's counter, which knows of the CPU's fused attention too; a multiplication and an addition are two."""
    return FlopCounterMode(display=False, custom_mapping=dict(FUSED_ON_CPU))


def _forward(query: torch.Size, key: torch.Size, value: torch.Size, *args: object, **kwargs: object) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(
    grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *args: object, **kwargs: object
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


FUSED_ON_CPU: Mapping[object, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
"""The CPU's fused attention, which torch's counter does not know -> its operations, of its arguments' shapes."""


def vit_flops(encoder: "ViTEncoder") -> int:
    """Of one whole image of the size that the encoder was built for, a multiplication and an addition being two.

    Matrix products only, as in torch's `FlopCounterMode` and as ViT papers count: linear layers, patch embedding and
    attention (with the padding of its windows); of the blocks that are run. Biases, norms, softmax, activations and
    relative positions, which are less than a percent, are left out.
    """
    (h, w), side, prefix = encoder.global_grid, encoder.window_size, encoder.prefix
    projection = encoder.vit.patch_embed.proj.weight
    total = 2 * h * w * projection.numel()
    tokens = prefix + h * w
    for i, block in enumerate(encoder.vit.blocks[: encoder.taps[-1] + 1]):
        windowed = i not in encoder.global_blocks
        padded = (-(-h // side) * side) * (-(-w // side) * side) if windowed else tokens
        seen = side * side if windowed else tokens
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                inside = name.startswith("attn.")
                total += 2 * (padded if inside else tokens) * module.weight.numel()
        total += sum(4 * padded * seen * width for width in _widths(block, encoder.embed_dim))
    return total


def _widths(block: nn.Module, embed_dim: int) -> list[int]:
    """Channels (heads x their width) of each attention in a block: one, of the embedding's, where it does not say."""
    projections = [(getattr(each, "qkv", None), getattr(each, "q_proj", None)) for each in block.modules()]
    fused = [qkv.out_features // 3 for qkv, _ in projections if isinstance(qkv, nn.Linear)]
    return fused + [query.out_features for _, query in projections if isinstance(query, nn.Linear)] or [embed_dim]
