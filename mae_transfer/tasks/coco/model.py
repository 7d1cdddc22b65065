"""Mask R-CNN and Cascade Mask R-CNN on a ViT encoder, with the pyramid of Li et al. (arXiv 2111.11429) or of ViTDet.

torchvision's parts with detectron2's arithmetic; each module under `detector/` names its source and what differs. The
parameter names map one to one to detectron2's (`detectron2/names.py`).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mae_transfer.adapters.norm import NORMS
from mae_transfer.adapters.simple_pyramid import SimplePyramid
from mae_transfer.adapters.square_input import square_batch
from mae_transfer.adapters.stage_pyramid import StageFPN
from mae_transfer.adapters.vit_fpn import GROUPS, ViTFPN
from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.config import CocoConfig
from mae_transfer.tasks.coco.detector.cascade import CascadeRoIHeads
from mae_transfer.tasks.coco.detector.postprocess import Detections, rescale
from mae_transfer.tasks.coco.detector.roi_heads import RoIHeads
from mae_transfer.tasks.coco.detector.rpn import RPN
from mae_transfer.tasks.coco.targets import check_targets

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder

Maps = Callable[[Tensor], list[Tensor]]


class MaskRCNN(nn.Module):
    """Detector over a batch of uint8 images of any sizes up to the square.

    Args:
        encoder: gives taps (B, C, H/p, W/p) for the pyramid, and its `mean` and `std` in 0..1 units.
        pyramid: taps to maps p2 .. p6.
        image_size: side in pixels of the square the images are padded to, rounded up to a multiple of 2 patches.
        maps: normalised images to what the pyramid takes, where that is not the encoder's taps as they are.
    """

    def __init__(
        self,
        encoder: "Encoder",
        pyramid: nn.Module,
        rpn: RPN,
        roi_heads: RoIHeads,
        image_size: int,
        maps: Maps | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.maps = maps
        self.pyramid = pyramid
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.side = square_side(image_size, encoder.patch_size)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor] | list[Detections]:
        """Training: `loss_rpn_cls`, `loss_rpn_loc`, `loss_cls`, `loss_box_reg`, `loss_mask`, means over the images
        (a cascade has `loss_cls` and `loss_box_reg` once for each stage).

        Evaluation: per image `boxes` fp32 (n, 4) xyxy in pixels of the original image, `scores` (n,), `classes` int64
        (n,) 0 .. K-1 and `masks` bool (n, H, W), best first. Without a mask head neither `loss_mask` nor `masks`.

        Args:
            batch: `images` uint8 (3, h, w) RGB and `file_names`; in training `targets` (`boxes` (n, 4) xyxy in pixels,
                `classes`, `masks`, `seed`), in evaluation `sizes` (height, width) of the original images.

        Raises:
            UserError: an image exceeds the square, or a target has an empty box or an unknown class.
        """
        images = square_batch(self.encoder, batch["images"], batch["file_names"], self.side)
        image_sizes = [(image.shape[1], image.shape[2]) for image in batch["images"]]
        features = list(self.pyramid((self.maps or self.encoder)(images)).values())
        if not self.training:
            proposals, _ = self.rpn(features, image_sizes)
            detections = self.roi_heads.detect(features[:4], proposals, image_sizes)
            return [rescale(*item) for item in zip(detections, image_sizes, batch["sizes"], strict=True)]
        targets = self.load_targets(batch["targets"], batch["file_names"])
        generators = [torch.Generator().manual_seed(target["seed"]) for target in targets]
        proposals, losses = self.rpn(features, image_sizes, targets, generators)
        return losses | self.roi_heads(features[:4], proposals, targets, generators, image_sizes)

    def load_targets(self, targets: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
        """Boxes and classes to the device. Those that are there already were checked by the data set: a check would
        wait for all that the device has to do."""
        if all(target["boxes"].device.type == "cpu" for target in targets):
            check_targets(targets, names, self.roi_heads.num_classes)
        device = self.encoder.pixel_mean.device
        return [t | {"boxes": t["boxes"].to(device), "classes": t["classes"].to(device)} for t in targets]


def square_side(image_size: int, patch_size: int) -> int:
    """Side in pixels of the encoder's square input: `image_size` rounded up to whole cells of the coarsest tap."""
    multiple = 2 * patch_size
    return -(-image_size // multiple) * multiple


def build_mask_rcnn(
    encoder: "Encoder", num_classes: int, config: CocoConfig, *, masks: bool = True, maps: Maps | None = None
) -> MaskRCNN:
    """Mask R-CNN of the recipe's kind and sizes, new weights everywhere but in the encoder.

    Without `masks` it has no mask head, and is Faster R-CNN or Cascade R-CNN. `maps`: of `MaskRCNN`.
    Raises UserError unless the encoder has the four taps that the FPN needs; the simple pyramid takes the last of any.
    """
    model = config.model
    if maps is None and len(encoder.taps) != 4 and model.pyramid == "fpn":
        raise UserError(f"the encoder gives {len(encoder.taps)} feature maps, the pyramid needs 4: set 4 taps")
    norm = NORMS[model.norm]
    heads = CascadeRoIHeads if model.cascade else RoIHeads
    pyramid: nn.Module
    if encoder.spec.stages:
        if model.pyramid == "simple":
            raise UserError(
                f"model.pyramid=simple is for plain ViTs, and {encoder.name} is hierarchical; take the recipe "
                "mask_rcnn_li2021, or model.pyramid=fpn"
            )
        pyramid = StageFPN(encoder.map_channels, model.fpn_channels, norm=norm)
        strides: list[float] = [*encoder.map_strides, 2 * encoder.map_strides[-1]]
    else:
        if model.pyramid != "simple" and encoder.embed_dim % GROUPS:
            raise UserError(
                f"{encoder.name}: width {encoder.embed_dim} is no multiple of {GROUPS}, the groups of the norm in the "
                "ViT-FPN; model.pyramid=simple has none"
            )
        of_vit = SimplePyramid if model.pyramid == "simple" else ViTFPN
        pyramid = of_vit(encoder.embed_dim, model.fpn_channels, norm=norm)
        strides = [encoder.patch_size * s for s in (0.25, 0.5, 1, 2, 4)]
    return MaskRCNN(
        encoder,
        pyramid,
        RPN(model.fpn_channels, strides, model.rpn_convs, model.rpn_batch_per_image),
        heads(
            model.fpn_channels,
            strides[:4],
            num_classes,
            norm=norm,
            head_channels=model.head_channels,
            box_convs=model.box_convs,
            box_fc=model.box_fc,
            mask_convs=model.mask_convs if masks else 0,
            batch_per_image=model.roi_batch_per_image,
            loss_average=model.loss_average,
            score_threshold=config.eval.score_threshold,
            nms_threshold=config.eval.nms_threshold,
            max_detections=config.eval.max_detections,
        ),
        config.data.image_size,
        maps,
    )
