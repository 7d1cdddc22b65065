"""The ViT-FPN adapter: shapes at any patch size, the resampling modules in closed form, norms and biases."""

import pytest
import torch
from torch import nn

from mae_transfer.adapters.vit_fpn import ViTFPN


@pytest.mark.parametrize(("patch", "height", "width"), [(16, 128, 128), (16, 64, 160), (14, 112, 56)])
def test_strides(patch: int, height: int, width: int) -> None:
    grid = (height // patch, width // patch)
    pyramid = ViTFPN(32, out_channels=8)([torch.randn(2, 32, *grid) for _ in range(4)])
    assert list(pyramid) == ["p2", "p3", "p4", "p5", "p6"]
    for name, up in zip(("p2", "p3", "p4", "p5"), (4, 2, 1, 0.5), strict=True):
        assert pyramid[name].shape == (2, 8, int(grid[0] * up), int(grid[1] * up)), name
    assert pyramid["p6"].equal(pyramid["p5"][:, :, ::2, ::2])


def test_modules_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    adapter = ViTFPN(64, out_channels=8)
    four, eight, sixteen, thirty_two = adapter.stages
    assert [type(m) for m in four] == [nn.ConvTranspose2d, nn.GroupNorm, nn.GELU, nn.ConvTranspose2d]
    assert four[1].num_groups == 32
    x = torch.randn(1, 64, 3, 5)
    # A 2x2 transposed convolution of stride 2 writes each cell into its own 2x2 block.
    blocks = torch.einsum("bchw,cdij->bdhiwj", x, eight.weight).reshape(1, 64, 6, 10) + eight.bias[:, None, None]
    torch.testing.assert_close(eight(x), blocks, atol=1e-5, rtol=1e-5)
    assert sixteen(x) is x
    assert thirty_two(torch.arange(16.0).view(1, 1, 4, 4)).flatten().tolist() == [5, 7, 13, 15]


def test_fpn_is_lateral_plus_upsampled_with_a_norm_everywhere() -> None:
    torch.manual_seed(0)
    adapter = ViTFPN(32, out_channels=8).eval()
    convs = [m for m in adapter.fpn.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 8
    assert all(conv.bias is None for conv in convs)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in adapter.fpn.modules()) == 8
    for conv in convs:  # Caffe2's XavierFill: uniform on +-sqrt(3 / fan_in)
        assert conv.weight.abs().max().item() == pytest.approx((3 / conv.weight[0].numel()) ** 0.5, rel=0.05)
    taps = [torch.randn(1, 32, 4, 4) for _ in range(4)]
    maps = [stage(tap) for stage, tap in zip(adapter.stages, taps, strict=True)]
    top = adapter.fpn.inner_blocks[3](maps[3])
    below = adapter.fpn.inner_blocks[2](maps[2]) + top.repeat_interleave(2, 2).repeat_interleave(2, 3)
    pyramid = adapter(taps)
    torch.testing.assert_close(pyramid["p5"], adapter.fpn.layer_blocks[3](top))
    torch.testing.assert_close(pyramid["p4"], adapter.fpn.layer_blocks[2](below))


def test_custom_norm_is_used_for_every_fpn_convolution() -> None:
    adapter = ViTFPN(32, 8, norm=lambda channels: nn.GroupNorm(1, channels))
    assert sum(isinstance(m, nn.GroupNorm) for m in adapter.fpn.modules()) == 8
