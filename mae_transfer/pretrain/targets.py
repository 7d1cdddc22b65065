"""What is predicted of a patch, and the loss: MAE Table 1 (d). Always in float32.

Patches are (B, n, p * p * channels), normalised as the encoder's input, a patch's pixels row by row with the channels
last, as in facebookresearch/mae `patchify`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_transfer.errors import UserError

EPS = 1e-6
"""Added to a patch's variance: facebookresearch/mae `models_mae.py`."""


class Target(nn.Module):
    """`width`: numbers that are predicted for each patch."""

    width: int

    def loss(self, prediction: Tensor, patches: Tensor, ids: Tensor | None = None) -> Tensor:
        """Predictions (B, n, width) of patches (and of their tokens `ids`, (B, n)) -> the loss of each, (B, n)."""
        return (prediction - self.of(patches)).square().mean(-1)

    def of(self, patches: Tensor) -> Tensor:
        """The target of patches, (B, n, width)."""
        raise NotImplementedError

    def to_pixels(self, prediction: Tensor, patches: Tensor) -> Tensor:
        """The patches that predictions mean, in the units of `patches`, which are the true ones."""
        raise NotImplementedError


class PixelTarget(Target):
    def __init__(self, patch_values: int) -> None:
        super().__init__()
        self.width = patch_values

    def of(self, patches: Tensor) -> Tensor:
        return patches

    def to_pixels(self, prediction: Tensor, patches: Tensor) -> Tensor:
        return prediction


class NormPixelTarget(PixelTarget):
    """Pixels less the patch's mean, over its standard deviation (of the unbiased variance)."""

    def of(self, patches: Tensor) -> Tensor:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + EPS).sqrt()

    def to_pixels(self, prediction: Tensor, patches: Tensor) -> Tensor:
        """With the mean and deviation of the true patch, which the prediction does not hold."""
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return prediction * (variance + EPS).sqrt() + mean


class TokenTarget(Target):
    """The token of a patch among `width` of a vocabulary, by cross-entropy."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.width = vocab_size

    def loss(self, prediction: Tensor, patches: Tensor, ids: Tensor | None = None) -> Tensor:
        assert ids is not None, "tokens come from a tokenizer"
        return F.cross_entropy(prediction.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)

    def to_pixels(self, prediction: Tensor, patches: Tensor) -> Tensor:
        raise UserError("this run predicts tokens, which are no pixels to show; take one with another model.target")


class PcaTarget(Target):
    """Coefficients of the largest principal components of patches; `fit` makes them from training images."""

    components: Tensor
    centre: Tensor

    def __init__(self, patch_values: int, coefficients: int) -> None:
        super().__init__()
        self.width = coefficients
        self.register_buffer("components", torch.zeros(patch_values, coefficients))
        self.register_buffer("centre", torch.zeros(patch_values))

    def of(self, patches: Tensor) -> Tensor:
        with torch.autocast(patches.device.type, enabled=False):
            return (patches - self.centre) @ self.components

    def to_pixels(self, prediction: Tensor, patches: Tensor) -> Tensor:
        return prediction @ self.components.T + self.centre

    @torch.no_grad()
    def fit(self, count: int, total: Tensor, products: Tensor) -> None:
        """From the number of patches, their sum (V,) and the sum of their outer products (V, V), in float64.

        The sign of a component is that which makes its largest entry positive, so that any eigensolver gives the same.
        """
        centre = total / count
        _, vectors = torch.linalg.eigh(products / count - torch.outer(centre, centre))
        vectors = vectors.flip(1)[:, : self.width]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        self.components.copy_(vectors * largest.sign())
        self.centre.copy_(centre)
