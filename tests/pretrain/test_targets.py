"""Targets of the masked autoencoder as pixels again, and what an honest picture may know."""

import torch

from mae_transfer.pretrain.targets import EPS, MeanColorTarget, NormPixelTarget


def test_mean_colours_as_pixels_are_flat_patches() -> None:
    target, colors = MeanColorTarget(12, 3), torch.randn(2, 5, 3)
    pixels = target.to_pixels(colors, torch.randn(2, 5, 12))
    assert torch.equal(pixels.view(2, 5, 4, 3), colors[:, :, None].expand(2, 5, 4, 3))  # channels last
    assert torch.allclose(target.of(pixels), colors)


def test_honest_pixels_have_the_visible_patches_statistics() -> None:
    """Masked patches: prediction times sqrt(mean variance of the visible patches) plus the mean of their means."""
    torch.manual_seed(0)
    patches, prediction = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    mask = torch.tensor([[True, False, True, False, True], [False, True, True, True, True]])
    pixels = NormPixelTarget(12).to_pixels(prediction, patches, mask)
    for i in range(2):
        visible = [j for j in range(5) if not mask[i, j]]
        mean = sum(patches[i, j].mean() for j in visible) / len(visible)
        variance = sum(patches[i, j].var() for j in visible) / len(visible)
        for j in range(5):
            own = (patches[i, j].mean(), patches[i, j].var())
            shift, spread = (mean, variance) if mask[i, j] else own
            assert torch.allclose(pixels[i, j], prediction[i, j] * (spread + EPS).sqrt() + shift, atol=1e-5)


def test_honest_pixels_do_not_depend_on_masked_patches() -> None:
    torch.manual_seed(0)
    patches, prediction, mask = torch.randn(2, 6, 12), torch.randn(2, 6, 12), torch.arange(6).expand(2, -1) > 2
    target = NormPixelTarget(12)
    others = torch.where(mask[:, :, None], 5 * torch.randn(2, 6, 12), patches)
    assert torch.equal(target.to_pixels(prediction, patches, mask), target.to_pixels(prediction, others, mask))
    assert not torch.equal(target.to_pixels(prediction, patches), target.to_pixels(prediction, others))
