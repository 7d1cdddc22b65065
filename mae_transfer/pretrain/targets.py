"""Targets of the prediction, with their losses: MAE Table 1 (d). Always in float32.

Patches are (B, n, p * p * channels), normalised as the encoder's input, a patch's pixels row by row with the channels
last, as in facebookresearch/mae `patchify`.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_transfer.errors import UserError

EPS = 1e-6
"""Added to a patch's variance: facebookresearch/mae `models_mae.py`."""


class Target(nn.Module):
    """`width` numbers are predicted for each patch."""

    width: int

    def loss(self, prediction: Tensor, patches: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """Predictions (B, n, width) of patches (B, n, p * p * channels), or of their tokens (B, n) -> losses (B, n)."""
        return (prediction - self.of(patches)).square().mean(-1)

    def of(self, patches: Tensor) -> Tensor:
        """The target of patches, (B, n, width)."""
        raise NotImplementedError

    def to_pixels(self, prediction: Tensor, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        """Predictions of all patches -> patches (B, L, p * p * channels), normalised as the encoder's input.

        Args:
            patches: the true ones, for what a prediction does not hold.
            mask: bool (B, L), true where masked. With it nothing is taken from the true masked patches.
        """
        raise NotImplementedError


class PixelTarget(Target):
    def __init__(self, patch_values: int) -> None:
        super().__init__()
        self.width = patch_values

    def of(self, patches: Tensor) -> Tensor:
        return patches

    def to_pixels(self, prediction: Tensor, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        return prediction


class NormPixelTarget(PixelTarget):
    """Pixels less the patch's mean, over its standard deviation (of the unbiased variance)."""

    def of(self, patches: Tensor) -> Tensor:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + EPS).sqrt()

    def to_pixels(self, prediction: Tensor, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        """The prediction holds neither mean nor deviation of a patch. Without `mask` both are the true patch's; with it
        masked patches get the mean of the visible patches' means and variances."""
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        if mask is not None:
            variance, mean = (_visible_mean_where_masked(values, mask[:, :, None]) for values in (variance, mean))
        return prediction * (variance + EPS).sqrt() + mean


def _visible_mean_where_masked(values: Tensor, mask: Tensor) -> Tensor:
    """(B, L, 1): an image's masked values are replaced by the mean of its visible ones."""
    visible = (~mask).to(values.dtype)
    return torch.where(mask, (values * visible).sum(1, keepdim=True) / visible.sum(1, keepdim=True), values)


class MeanColorTarget(Target):
    """The mean of each channel over the patch: an early failure of masked image modelling, for comparison.

    The mean holds no structure within a patch. It is of the normalised pixels.
    """

    def __init__(self, patch_values: int, channels: int) -> None:
        super().__init__()
        self.width, self.pixels = channels, patch_values // channels

    def of(self, patches: Tensor) -> Tensor:
        return patches.unflatten(-1, (self.pixels, self.width)).mean(-2)

    def to_pixels(self, prediction: Tensor, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        return prediction.repeat(1, 1, self.pixels)


class TokenTarget(Target):
    """The token of a patch among `width` of a vocabulary, by cross-entropy."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.width = vocab_size

    def loss(self, prediction: Tensor, patches: Tensor, token_ids: Tensor | None = None) -> Tensor:
        assert token_ids is not None, "tokens come from a tokenizer"
        return F.cross_entropy(prediction.flatten(0, 1), token_ids.flatten(), reduction="none").view_as(token_ids)

    def to_pixels(self, prediction: Tensor, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        raise UserError("this run predicts tokens, which are no pixels to show; take one with another model.target")


class PcaTarget(Target):
    """Coefficients of the largest principal components of patches, which `fit` finds in training images."""

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

    def to_pixels(self, prediction: Tensor, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        return prediction @ self.components.T + self.centre

    @torch.no_grad()
    def fit(self, images: Iterable[Tensor]) -> None:
        """From the patches (L, V) of training images, by the covariance in float64.

        The sign of a component is the one that makes its largest entry positive: any eigensolver then gives the same.
        """
        count, total, products = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for patches in images:
            patches = patches.double()
            count, total, products = count + len(patches), total + patches.sum(0), products + patches.T @ patches
        centre = total / count
        _, vectors = torch.linalg.eigh(products / count - torch.outer(centre, centre))
        vectors = vectors.flip(1)[:, : self.width]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        self.components.copy_(vectors * largest.sign())
        self.centre.copy_(centre)
