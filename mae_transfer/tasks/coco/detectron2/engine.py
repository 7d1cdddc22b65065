"""`--engine detectron2`: the same detector of detectron2's own parts, under this project's loop, data and evaluation.

`GeneralizedRCNN`, `FPN` or `SimpleFeaturePyramid`, `RPN`, `StandardROIHeads` or `CascadeROIHeads` and what they hold
are detectron2's, with the options of the recipe (those of its `configs/common/models/mask_rcnn_fpn.py` where the recipe
is silent). What is ours, and why:

- weights: both engines start from the same ones, which `model.build_mask_rcnn` makes, and checkpoints have its names
  (`detectron2/names.py`), so that `--checkpoint` and `mae-transfer convert` read the runs of both;
- sampling: during a forward pass detectron2's `subsample_labels` is one that draws as `detector/sampling.py` does, from
  a generator of each image's own: the same seeds draw the same anchors and RoIs in both engines, on any number of
  ranks;
- norm: `adapters/norm.BatchNorm`, since detectron2's "SyncBN" (torch's) refuses CPU tensors and does not take empty
  inputs. On one process this and detectron2's BatchNorm2d are the same;
- features reach the RoI heads in fp32: under autocast detectron2 rounds the boxes to half precision for RoIAlign;
- a prediction that is not finite makes a loss NaN, on which the loop stops on all ranks; detectron2 raises on one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, SimpleFeaturePyramid, StandardROIHeads
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.proposal_generator import rpn as rpn_module
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
)
from detectron2.modeling.roi_heads import roi_heads as roi_heads_module
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher as Matched

from mae_transfer.adapters import norm
from mae_transfer.adapters.detectron2 import LastMapBackbone, ViTBackbone
from mae_transfer.adapters.square_input import check_fits
from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.config import CocoConfig
from mae_transfer.tasks.coco.detector import anchors, cascade
from mae_transfer.tasks.coco.detector.mask_targets import Mask
from mae_transfer.tasks.coco.detector.paste import encode_bitmaps, pieces
from mae_transfer.tasks.coco.detector.postprocess import Detections
from mae_transfer.tasks.coco.detector.sampling import subsample
from mae_transfer.tasks.coco.detectron2.names import (
    from_detectron2,
    options_of,
    prefix_pairs,
    to_detectron2,
)
from mae_transfer.tasks.coco.model import build_mask_rcnn, square_side
from mae_transfer.tasks.coco.targets import check_targets

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder

MAPS = ["p2", "p3", "p4", "p5", "p6"]
NORMS: dict[str, Any] = {**norm.NORMS, "LN": "LN"}


class Detectron2RCNN(nn.Module):
    """detectron2's detector with the interface of `model.MaskRCNN`: the same batches, losses, detections, names.

    Args:
        encoder: the one inside `rcnn`, for the loop, which asks every model for it.
        rcnn: takes RGB images in 0..255 and pads them to the square.
        pairs: of `names.prefix_pairs`.
        image_size: side in pixels of the square.
    """

    def __init__(
        self, encoder: "Encoder", rcnn: GeneralizedRCNN, pairs: list[tuple[str, str]], image_size: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.rcnn = rcnn
        self.pairs = pairs
        self.image_size = image_size
        self.register_state_dict_post_hook(_to_our_names)
        self.register_load_state_dict_pre_hook(_from_our_names)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor] | list[Detections]:
        """See `model.MaskRCNN.forward`; the losses are always averaged over the RoIs of the batch."""
        inputs: list[dict[str, Any]] = []
        for image, name in zip(batch["images"], batch["file_names"], strict=True):
            check_fits(image, self.image_size, name)  # detectron2 would crop it
            inputs.append({"image": image})
        if not self.training:
            found = self.rcnn.inference(inputs, do_postprocess=False)
            return [_detections(*item) for item in zip(found, batch["sizes"], strict=True)]
        targets = batch["targets"]
        check_targets(targets, batch["file_names"], self.rcnn.roi_heads.num_classes)
        for item, target in zip(inputs, targets, strict=True):
            item["instances"] = _instances(target, item["image"], self.rcnn.roi_heads.mask_on)
        with _sampling_as_here([target["seed"] for target in targets]) as finite, EventStorage():
            losses: dict[str, Tensor] = self.rcnn(inputs)
        losses["loss_rpn_cls"] = torch.where(torch.stack(finite).all(), losses["loss_rpn_cls"], torch.nan)
        return losses


class ObjectMasks:
    """The masks of an image's objects as detectron2's heads ask for them: polygons and bitmaps side by side.

    detectron2 has them all polygons or all bitmaps, and copies a bitmap for every RoI.
    """

    def __init__(self, masks: Sequence[Mask], rows: Tensor | None = None) -> None:
        self.masks = masks
        self.rows = torch.arange(len(masks)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> "ObjectMasks":
        return ObjectMasks(self.masks, self.rows[index.cpu()])

    def to(self, *_: Any, **__: Any) -> "ObjectMasks":
        return self  # as PolygonMasks, which stay on the CPU

    def crop_and_resize(self, boxes: Tensor, size: int) -> Tensor:
        """Bool (n, size, size): what of each object lies in its box, of (n, 4), by detectron2's own mask classes."""
        crops = torch.zeros(len(self), size, size, dtype=torch.bool)
        for crop, row, box in zip(crops, self.rows.tolist(), boxes.cpu()[:, None], strict=True):
            mask = self.masks[row]
            one = BitMasks(mask[None]) if isinstance(mask, np.ndarray) else PolygonMasks([list(mask)])
            crop.copy_(one.crop_and_resize(box, size)[0])
        return crops


def check_loss_average(config: CocoConfig, images: int) -> None:
    """UserError if a forward pass of this many images has losses that detectron2 does not have."""
    if config.model.loss_average == "image" and images > 1:
        raise UserError(
            f"--engine detectron2 averages losses over all RoIs of its {images} images; set model.loss_average=batch "
            "to have that, or train.micro_batch=1, where the two are equal"
        )


def build_detectron2(encoder: "Encoder", num_classes: int, config: CocoConfig, *, masks: bool = True) -> Detectron2RCNN:
    """The recipe's (Cascade) Mask R-CNN of detectron2's parts, with the weights that `build_mask_rcnn` gives.

    Raises:
        UserError: an encoder that detectron2 has no FPN for, or losses that it does not have.
    """
    model = config.model
    check_loss_average(config, config.train.micro_batch_size)
    same_start = build_mask_rcnn(encoder, num_classes, config, masks=masks)
    side = square_side(config.data.image_size, encoder.patch_size)
    common = {
        "out_channels": model.fpn_channels,
        "norm": NORMS[model.norm],
        "top_block": LastLevelMaxPool(),
        "square_pad": side,
    }
    if model.pyramid == "simple":
        net = LastMapBackbone(encoder)
        pyramid = SimpleFeaturePyramid(net=net, in_feature=net.map, scale_factors=(4.0, 2.0, 1.0, 0.5), **common)
    else:
        pyramid = FPN(bottom_up=ViTBackbone(encoder), in_features=list(ViTBackbone.maps), **common)
    rcnn = GeneralizedRCNN(
        backbone=pyramid,
        proposal_generator=_rpn(config),
        roi_heads=_roi_heads(num_classes, config, masks=masks),
        pixel_mean=[255 * value for value in encoder.mean],
        pixel_std=[255 * value for value in encoder.std],
        input_format="RGB",
    )
    rcnn.roi_heads.register_forward_pre_hook(_features_in_fp32)
    start = same_start.state_dict()
    pairs = prefix_pairs(**options_of(start))
    if model.pyramid == "simple":  # the encoder is ours here, not detectron2's ViT
        pairs = [("encoder.", "backbone.net.encoder."), *(p for p in pairs if not p[0].startswith("encoder."))]
    rcnn.load_state_dict(to_detectron2(start, pairs))
    return Detectron2RCNN(encoder, rcnn, pairs, side)


def _rpn(config: CocoConfig) -> RPN:
    model = config.model
    return RPN(
        in_features=MAPS,
        head=StandardRPNHead(
            in_channels=model.fpn_channels, num_anchors=len(anchors.ASPECT_RATIOS), conv_dims=[-1] * model.rpn_convs
        ),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[size] for size in anchors.SIZES],
            aspect_ratios=anchors.ASPECT_RATIOS,
            strides=[4, 8, 16, 32, 64],
            offset=0.0,
        ),
        anchor_matcher=Matcher(thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=model.rpn_batch_per_image,
        positive_fraction=0.5,
        pre_nms_topk=(2000, 1000),
        post_nms_topk=(1000, 1000),
        nms_thresh=0.7,
    )


def _roi_heads(num_classes: int, config: CocoConfig, *, masks: bool) -> StandardROIHeads:
    model = config.model

    def box_head() -> FastRCNNConvFCHead:
        return FastRCNNConvFCHead(
            ShapeSpec(channels=model.fpn_channels, height=7, width=7),
            conv_dims=[model.head_channels] * model.box_convs,
            fc_dims=[model.box_fc],
            conv_norm=NORMS[model.norm],
        )

    def predictor(weights: tuple[float, ...], *, agnostic: bool) -> FastRCNNOutputLayers:
        return FastRCNNOutputLayers(
            ShapeSpec(channels=model.box_fc),
            box2box_transform=Box2BoxTransform(weights=weights),
            num_classes=num_classes,
            test_score_thresh=config.eval.score_threshold,
            test_nms_thresh=config.eval.nms_threshold,
            test_topk_per_image=config.eval.max_detections,
            cls_agnostic_bbox_reg=agnostic,
        )

    def matcher(threshold: float) -> Matcher:
        return Matcher(thresholds=[threshold], labels=[0, 1], allow_low_quality_matches=False)

    common = {
        "num_classes": num_classes,
        "batch_size_per_image": model.roi_batch_per_image,
        "positive_fraction": 0.25,
        "box_in_features": MAPS[:4],
        "box_pooler": _pooler(7),
    }
    if masks:  # without `mask_in_features` detectron2's heads have boxes alone
        common |= {
            "mask_in_features": MAPS[:4],
            "mask_pooler": _pooler(14),
            "mask_head": MaskRCNNConvUpsampleHead(
                ShapeSpec(channels=model.fpn_channels, height=14, width=14),
                num_classes=num_classes,
                conv_dims=[model.head_channels] * (model.mask_convs + 1),
                conv_norm=NORMS[model.norm],
            ),
        }
    if model.cascade:
        return CascadeROIHeads(
            box_heads=[box_head() for _ in range(cascade.STAGES)],
            box_predictors=[predictor(weights, agnostic=True) for weights in cascade.BOX_WEIGHTS],
            proposal_matchers=[matcher(iou) for iou in cascade.IOU_THRESHOLDS],
            **common,
        )
    return StandardROIHeads(
        box_head=box_head(),
        box_predictor=predictor((10, 10, 5, 5), agnostic=False),
        proposal_matcher=matcher(0.5),
        **common,
    )


def _pooler(size: int) -> ROIPooler:
    scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    return ROIPooler(output_size=size, scales=scales, sampling_ratio=0, pooler_type="ROIAlignV2")


@contextmanager
def _sampling_as_here(seeds: Sequence[int]) -> Iterator[list[Tensor]]:
    """Within it detectron2's RPN and RoI heads draw from generators of the images' own and drop bad proposals.

    Gives the list that the RPN then fills with flags: whether the predictions of the batch are finite.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    finite: list[Tensor] = []
    propose = rpn_module.find_top_rpn_proposals

    def find_top_rpn_proposals(boxes: list[Tensor], logits: list[Tensor], *options: Any) -> list[Instances]:
        finite.extend(values.isfinite().all() for values in (*boxes, *logits))
        return propose(boxes, logits, *options[:-1], False)  # its last one, training, does nothing but raise

    def drawing() -> object:
        images = iter(generators)

        def subsample_labels(labels: Tensor, count: int, fraction: float, background: int) -> tuple[Tensor, Tensor]:
            matched = labels.clamp(max=0)
            matched[labels == background] = Matched.BELOW_LOW_THRESHOLD
            matched[labels == -1] = Matched.BETWEEN_THRESHOLDS
            return subsample(matched, count, fraction, next(images))

        return subsample_labels

    with (
        patch.object(rpn_module, "find_top_rpn_proposals", find_top_rpn_proposals),
        patch.object(rpn_module, "subsample_labels", drawing()),
        patch.object(roi_heads_module, "subsample_labels", drawing()),
    ):
        yield finite


def _instances(target: dict[str, Any], image: Tensor, has_masks: bool) -> Instances:
    fields = {"gt_masks": ObjectMasks(target["masks"])} if has_masks else {}
    size = (image.shape[1], image.shape[2])
    return Instances(size, gt_boxes=Boxes(target["boxes"]), gt_classes=target["classes"], **fields)


def _detections(found: Instances, size: tuple[int, int]) -> Detections:
    """In an original image of (height, width), few masks at a time where it is huge (`detector/paste.py`)."""
    has_masks = found.has("pred_masks")
    parts = (list(pieces(len(found), size)) or [slice(0, 0)]) if has_masks else [slice(None)]
    encoded: list[Any] = []
    boxes, scores, classes = [], [], []
    for part in parts:
        piece = detector_postprocess(found[part], *size)
        boxes.append(piece.pred_boxes.tensor)
        scores.append(piece.scores)
        classes.append(piece.pred_classes)
        if has_masks:
            encoded += encode_bitmaps(piece.pred_masks) if len(parts) > 1 else [piece.pred_masks]
    columns = {"boxes": torch.cat(boxes), "scores": torch.cat(scores), "classes": torch.cat(classes)}
    return columns | {"masks": encoded if len(parts) > 1 else encoded[0]} if has_masks else columns


def _features_in_fp32(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    images, features, *rest = args
    return images, {k: v.to(torch.promote_types(v.dtype, torch.float32)) for k, v in features.items()}, *rest


def _to_our_names(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """The encoder is in the state twice, by itself and within detectron2's backbone."""
    assert isinstance(module, Detectron2RCNN)
    theirs = prefix + "rcnn."
    inner = {key.removeprefix(theirs): state.pop(key) for key in list(state) if key.startswith(theirs)}
    state |= {prefix + key: value for key, value in from_detectron2(inner, module.pairs).items()}


def _from_our_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, Detectron2RCNN)
    ours = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
    state |= {f"{prefix}rcnn.{key}": value for key, value in to_detectron2(ours, module.pairs).items()}
    state |= {prefix + key: value for key, value in ours.items() if key.startswith("encoder.")}
