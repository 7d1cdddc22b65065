"""ViT -> feature pyramid as in the MAE paper: four taps, resampled to four strides, then an FPN with norm.

Source: Li et al. 2021 (arXiv 2111.11429), section 2.1: after the last block of each quarter of the ViT, modules that
keep the embedding width give strides patch/4, patch/2, patch and 2*patch; torchvision's FPN with a norm after every
lateral and output convolution (no bias) follows; p6 is p5 subsampled by 2. The number of groups of the GroupNorm is not
stated there; 32 is what the public reproduction (MIMDet) uses. Initialisation: FPN convolutions as Caffe2's XavierFill
(the same in torchvision and detectron2), transposed convolutions as PyTorch does by default.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

GROUPS = 32
"""Of the GroupNorm after the first transposed convolution."""


class ViTFPN(nn.Module):
    """Four equal-sized maps of a ViT to a pyramid p2 .. p6.

    Args:
        embed_dim: channels of the taps, a multiple of `GROUPS`.
        out_channels: channels of every pyramid map.
        norm: makes the norm layer for a number of channels.
    """

    def __init__(
        self, embed_dim: int, out_channels: int = 256, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(embed_dim, embed_dim, kernel_size=2, stride=2),
                    nn.GroupNorm(GROUPS, embed_dim),
                    nn.GELU(),
                    nn.ConvTranspose2d(embed_dim, embed_dim, kernel_size=2, stride=2),
                ),
                nn.ConvTranspose2d(embed_dim, embed_dim, kernel_size=2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, stride=2),
            ]
        )
        self.fpn = FeaturePyramidNetwork([embed_dim] * 4, out_channels, norm_layer=norm)

    def forward(self, taps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        """Taps: 4 maps (B, embed_dim, H/p, W/p), shallow to deep, H and W multiples of 2p.

        Returns p2 .. p6, each (B, out_channels, H/s, W/s) at strides s = p/4, p/2, p, 2p, 4p (p6 rounded up).
        """
        maps = OrderedDict(
            (f"p{2 + i}", stage(tap)) for i, (stage, tap) in enumerate(zip(self.stages, taps, strict=True))
        )
        pyramid: OrderedDict[str, Tensor] = self.fpn(maps)
        pyramid["p6"] = F.max_pool2d(pyramid["p5"], kernel_size=1, stride=2)
        return pyramid
