"""The maps of a hierarchical encoder -> the pyramid of a dense task.

The dense code of Swin and ConvNeXt puts a new LayerNorm over the channels on each map (`norm0` .. `norm3` of their
backbones in mmsegmentation and mmdetection); UperNet's head or an FPN reads the normed maps.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork


class StagePyramid(nn.Module):
    """Maps (B, C_i, h_i, w_i), shallow to deep, each with a LayerNorm over its channels."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList([LayerNorm2d(c, eps=1e-5) for c in channels])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [norm(x) for norm, x in zip(self.norms, maps, strict=True)]


class StageFPN(nn.Module):
    """Four maps at strides 4, 8, 16, 32 to a pyramid p2 .. p6 of torchvision's FPN, p6 being p5 subsampled by 2.

    Args:
        channels: of the four maps.
        out_channels: channels of every pyramid map.
        norm: makes the norm layer of the FPN for a number of channels.
    """

    def __init__(
        self, channels: Sequence[int], out_channels: int = 256, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.stages = StagePyramid(channels)
        self.fpn = FeaturePyramidNetwork(list(channels), out_channels, norm_layer=norm)

    def forward(self, maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        named = OrderedDict((f"p{2 + i}", x) for i, x in enumerate(self.stages(maps)))
        pyramid: OrderedDict[str, Tensor] = self.fpn(named)
        pyramid["p6"] = F.max_pool2d(pyramid["p5"], kernel_size=1, stride=2)
        return pyramid
