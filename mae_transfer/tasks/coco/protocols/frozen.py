"""Detection with a frozen encoder: pyramid and heads alone are trained.

The encoder runs in eval mode and without autograd, so that a step keeps none of its activations and has no backward
pass through it. Windows, drop path and new relative positions are for encoders that adapt to them: the recipes have
none. DINOv3 (dinov3/eval/detection) and Vasconcelos et al. (arXiv 2204.00484) detect with a frozen encoder, by other
detectors.
"""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.config.layers import find_blocks
from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.model import MaskRCNN, build_mask_rcnn
from mae_transfer.tasks.coco.protocols.config import FrozenConfig
from mae_transfer.tasks.coco.protocols.protocol import TRAINING, Protocol

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder

LEVELS = 4
"""Maps that the FPN takes."""


class FrozenMaps:
    """The frozen encoder as a function: normalised images (B, 3, H, W) -> its maps, one alone `copies` times.

    No module, so that the encoder is registered once, as the attribute `encoder` of the detector.
    """

    def __init__(self, encoder: "Encoder", copies: int) -> None:
        encoder.freeze(0)
        self.encoder, self.copies = encoder, copies

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        maps, norm = self.encoder(images), self.encoder.norm
        if norm is not None:
            maps = [norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for x in maps]
        return list(maps) * self.copies


class Frozen(Protocol[FrozenConfig]):
    reads: ClassVar[tuple[str, ...]] = (*TRAINING, "probe")

    def __init__(self, config: FrozenConfig) -> None:
        super().__init__(config)
        if config.model.implementation == "detectron2":
            raise UserError("--engine detectron2 is for fine-tuning, not for --protocol frozen; leave it out")

    @override
    def encoder_options(self, patch_size: int) -> dict[str, object]:
        spec, probe = resolve(self.config.backbone.name), self.config.probe
        blocks = find_blocks(probe.layers, spec.depth, spec.name)
        simple, stages = self.config.model.pyramid == "simple", bool(spec.stages)
        allowed = (1,) if simple else (LEVELS,) if stages else (1, LEVELS)
        if len(blocks) not in allowed:
            taker, what = ("simple pyramid", "one block: probe.layers=last") if simple else ("FPN", "four_even or last")
            what = "four stages: probe.layers=four_even" if stages and not simple else what
            raise UserError(f"probe.layers={probe.layers}: the {taker} takes {what}")
        # a hierarchical encoder's maps are those of its stages, which timm does not norm
        final_norm = probe.final_norm and not stages
        return super().encoder_options(patch_size) | {"taps": blocks, "final_norm": final_norm}

    @override
    def build_model(self, encoder: "Encoder", num_classes: int, *, masks: bool) -> MaskRCNN:
        single = len(encoder.taps) == 1 and self.config.model.pyramid == "fpn"
        maps = FrozenMaps(encoder, LEVELS if single else 1)
        return build_mask_rcnn(encoder, num_classes, self.config, masks=masks, maps=maps)
