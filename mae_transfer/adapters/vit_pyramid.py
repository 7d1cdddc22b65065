"""ViT -> four maps at strides patch/4 .. 2*patch, as in BEiT's and the MAE paper's semantic segmentation.

Source: microsoft/unilm `beit/semantic_segmentation` (`fpn1` .. `fpn4`); the neck `Feature2Pyramid` with rescales 4, 2,
1, 0.5 in mmsegmentation. Unlike `vit_fpn.ViTFPN` (Li et al.) it has batch norm between the two transposed convolutions
where that has group norm, and no FPN behind: UperNet's head has its own. Initialisation is PyTorch's default.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class ViTPyramid(nn.Module):
    """Four equal-sized maps of a ViT to four maps of falling size.

    Args:
        embed_dim: channels of the taps and of every output.
        norm: makes the norm layer for a number of channels.
    """

    def __init__(self, embed_dim: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(embed_dim, embed_dim, kernel_size=2, stride=2),
                    norm(embed_dim),
                    nn.GELU(),
                    nn.ConvTranspose2d(embed_dim, embed_dim, kernel_size=2, stride=2),
                ),
                nn.ConvTranspose2d(embed_dim, embed_dim, kernel_size=2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, stride=2),
            ]
        )

    def forward(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """Taps: 4 maps (B, embed_dim, h, w), shallow to deep, h and w at least 2.

        Returns maps of sides 4h, 2h, h and h // 2 (and so w), each (B, embed_dim, ...).
        """
        return [stage(tap) for stage, tap in zip(self.stages, taps, strict=True)]
