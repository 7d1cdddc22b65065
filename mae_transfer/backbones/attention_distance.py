"""Mean attention distance by layer and head: over how many pixels a patch looks (ViT, arXiv 2010.11929, Figure 7 and
appendix D.7; Raghu et al., arXiv 2108.08810, Figure 3).

For a query patch it is the sum over the other patches of attention times the distance of their centres; then the mean
over queries and images. Prefix tokens (class, registers) have no place: as queries they are left out, and what is
attended to them counts as no distance.

The probabilities are computed from what PyTorch's `scaled_dot_product_attention` is called with, so that rotations and
biases of relative positions are in them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mae_transfer.backbones.grid import Grid, text
from mae_transfer.backbones.positions.bias_attention import fused_everywhere
from mae_transfer.errors import UserError

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder


def attention_distance(encoder: "Encoder", images: Tensor) -> Tensor:
    """Normalised images (B, 3, H, W) -> mean distance in pixels, float32 (blocks, heads) on the CPU.

    Raises:
        UserError: a block does not attend over all patches of the image (windows, stages), or not by PyTorch's
            attention.
    """
    grid = encoder.grid_of(images.shape[2], images.shape[3])
    watch = _Watch(pixel_distances(grid, encoder.patch_size).to(images.device), encoder.prefix)
    with torch.no_grad(), fused_everywhere(), watch:
        encoder.tokens(images, (encoder.depth - 1,))
    if len(watch.found) != encoder.depth or watch.others:
        raise UserError(
            f"attention distance: {len(watch.found)} of {encoder.depth} blocks of {encoder.name} attend over all "
            f"{text(grid)} patches; it is for plain ViTs without windows"
        )
    return torch.stack(watch.found).cpu()


def pixel_distances(grid: Grid, patch: int) -> Tensor:
    """Distance of the centres of each two patches, row by row, in pixels: float32 (h * w, h * w)."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    centres = patch * torch.stack([rows.flatten(), columns.flatten()], dim=1).float()
    return torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")


class _Watch(TorchFunctionMode):
    """Computes the distance of every call of `scaled_dot_product_attention` over prefix and patches."""

    def __init__(self, distances: Tensor, prefix: int) -> None:
        super().__init__()
        self.distances, self.prefix = distances, prefix
        self.found: list[Tensor] = []
        self.others = 0

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[Tensor, ...] = (),
        kwargs: Mapping[str, Tensor] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, mask = args[0], args[1], kwargs.get("attn_mask")
            known = len(args) < 4 and (mask is None or mask.is_floating_point())
            count = self.prefix + len(self.distances)
            if known and query.shape[-2] == key.shape[-2] == count:
                self.found.append(self._distance(query.float(), key.float(), mask, kwargs.get("scale")))
            else:
                self.others += 1
        return func(*args, **kwargs)

    def _distance(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: Tensor | float | None) -> Tensor:
        """Queries and keys (B, heads, N, D) -> (heads,)."""
        logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        attention = (logits if mask is None else logits + mask.float()).softmax(-1)
        among_patches = attention[..., self.prefix :, self.prefix :]
        return (among_patches * self.distances).sum(-1).mean((0, 2))
