"""ViT -> feature pyramid as in ViTDet: all maps from the last one, without an FPN.

Source: ViTDet (arXiv 2203.16527), section 3 and A.2; detectron2 `modeling/backbone/vit.py`, `SimpleFeaturePyramid`.
Scales 4, 2, 1 and 0.5 of the map by transposed convolutions or max pooling, then for each a 1x1 and a 3x3 convolution
with norm, without bias and activation; p6 is p5 subsampled by 2. Parameters have the names that detectron2 gives them.
Initialisation is PyTorch's default, as there.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from mae_transfer.adapters.norm import ChannelNorm


class SimplePyramid(nn.Module):
    """The last map of a ViT to a pyramid p2 .. p6.

    Args:
        embed_dim: channels of the map, a multiple of 4.
        out_channels: channels of every pyramid map.
        norm: makes the norm layer for a number of channels.
    """

    def __init__(self, embed_dim: int, out_channels: int = 256, norm: Callable[[int], nn.Module] = ChannelNorm) -> None:
        super().__init__()
        half, quarter = embed_dim // 2, embed_dim // 4
        scales: list[tuple[int, list[nn.Module]]] = [
            (
                quarter,
                [
                    nn.ConvTranspose2d(embed_dim, half, kernel_size=2, stride=2),
                    norm(half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, kernel_size=2, stride=2),
                ],
            ),
            (half, [nn.ConvTranspose2d(embed_dim, half, kernel_size=2, stride=2)]),
            (embed_dim, []),
            (embed_dim, [nn.MaxPool2d(kernel_size=2, stride=2)]),
        ]
        for stage, (channels, layers) in enumerate(scales, start=2):
            layers.append(ConvNorm(channels, out_channels, 1, norm))
            layers.append(ConvNorm(out_channels, out_channels, 3, norm))
            self.add_module(f"simfp_{stage}", nn.Sequential(*layers))

    def forward(self, taps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        """Taps: maps (B, embed_dim, H/p, W/p) of which the last is used, H and W multiples of 2p.

        Returns p2 .. p6, each (B, out_channels, H/s, W/s) at strides s = p/4, p/2, p, 2p, 4p (p6 rounded up).
        """
        pyramid = OrderedDict((f"p{2 + i}", stage(taps[-1])) for i, stage in enumerate(self.children()))
        pyramid["p6"] = F.max_pool2d(pyramid["p5"], kernel_size=1, stride=2)
        return pyramid


class ConvNorm(nn.Conv2d):
    """A convolution that keeps the size, and a norm which is its child, so that the names are detectron2's."""

    def __init__(self, channels: int, out_channels: int, kernel: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__(channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = norm(out_channels)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.norm(super().forward(input))
        return output
