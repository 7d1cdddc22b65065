"""Box and mask heads: torchvision's layers with detectron2's conventions, sampling, losses and initialisation.

Source: detectron2 `modeling/roi_heads/` and `configs/new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py` (the heads that
Li et al. 2021 name). Classes are 0 .. K-1 with the background LAST, K boxes and K masks per RoI. Every module runs on
every batch, also with no foreground at all, so that norms and gradients stay in step over ranks.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from mae_transfer.tasks.coco.detector.coder import Coder
from mae_transfer.tasks.coco.detector.losses import LossAverage, box_losses, mask_loss, roi_weights
from mae_transfer.tasks.coco.detector.mask_targets import mask_targets
from mae_transfer.tasks.coco.detector.pooler import pool
from mae_transfer.tasks.coco.detector.postprocess import Detections, select_detections
from mae_transfer.tasks.coco.detector.sampling import match, of_matched, subsample

POSITIVE_FRACTION = 0.25
BOX_POOL, MASK_POOL = 7, 14
MASK_SIZE = 2 * MASK_POOL


class RoISample(NamedTuple):
    """RoIs of one image that are trained on."""

    boxes: Tensor
    """fp32 (n, 4)."""
    classes: Tensor
    """int64 (n,), K is background."""
    matched: Tensor
    """int64 (n,): the object of each, negative for background."""


class BoxPredictor(nn.Module):
    """Class scores (n, K + 1), background last, and box deltas (n, K * 4), or (n, 4) for boxes without classes."""

    def __init__(self, in_features: int, num_classes: int, *, class_agnostic: bool = False) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes + 1)
        self.bbox_pred = nn.Linear(in_features, 4 if class_agnostic else num_classes * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x)


def box_head(channels: int, convs: int, head_channels: int, fc: int, norm: Callable[[int], nn.Module]) -> nn.Module:
    """Pooled features (n, channels, 7, 7) -> (n, fc)."""
    return FastRCNNConvFCHead((channels, BOX_POOL, BOX_POOL), [head_channels] * convs, [fc], norm_layer=norm)


class RoIHeads(nn.Module):
    """Second stage of Mask R-CNN.

    Args:
        channels: channels of the pyramid.
        strides: pixels per cell of each map to pool from, p2 first.
        num_classes: K, without background.
        norm: makes the norm layer for a number of channels.
        head_channels, box_convs, box_fc, mask_convs: widths and depths of the heads; 0 mask convolutions are no mask
            head, for boxes alone.
        batch_per_image: RoIs sampled per image for the losses.
        loss_average: see `losses.roi_weights`.
        score_threshold, nms_threshold, max_detections: of the detections.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[float],
        num_classes: int,
        *,
        norm: Callable[[int], nn.Module],
        head_channels: int = 256,
        box_convs: int = 4,
        box_fc: int = 1024,
        mask_convs: int = 4,
        batch_per_image: int = 512,
        loss_average: LossAverage = "image",
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.box_head: Any
        self.box_predictor: Any
        self.box_head, self.box_predictor = self.make_box_heads(channels, box_convs, head_channels, box_fc, norm)
        self.has_masks = mask_convs > 0
        if self.has_masks:
            self.mask_head = MaskRCNNHeads(channels, [head_channels] * mask_convs, dilation=1, norm_layer=norm)
            self.mask_predictor = MaskRCNNPredictor(head_channels, head_channels, num_classes)
        self.strides = tuple(strides)
        self.batch_per_image = batch_per_image
        self.loss_average = loss_average
        self.selection = (score_threshold, nms_threshold, max_detections)
        self.box_coder = Coder(weights=(10.0, 10.0, 5.0, 5.0))
        self.matcher = Matcher(high_threshold=0.5, low_threshold=0.5)
        self.init_weights()

    def make_box_heads(
        self, channels: int, convs: int, head_channels: int, fc: int, norm: Callable[[int], nn.Module]
    ) -> tuple[nn.Module, nn.Module]:
        """`box_head` and `box_predictor`."""
        return box_head(channels, convs, head_channels, fc, norm), BoxPredictor(fc, self.num_classes)

    def init_weights(self) -> None:
        """detectron2's initialisation where torchvision's differs (the convolutions are equal: kaiming, fan out)."""
        for layer in self.box_head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=1)  # Caffe2's XavierFill
                nn.init.zeros_(layer.bias)
        predictors = [m for m in self.box_predictor.modules() if isinstance(m, BoxPredictor)]
        normal = [pair for p in predictors for pair in ((p.cls_score, 0.01), (p.bbox_pred, 0.001))]
        if self.has_masks:
            normal.append((self.mask_predictor.mask_fcn_logits, 0.001))
            nn.init.zeros_(self.mask_predictor.conv5_mask.bias)
        for layer, std in normal:
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        features: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[dict[str, Any]],
        generators: Sequence[torch.Generator],
        image_sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """The training losses `loss_cls`, `loss_box_reg` and, with a mask head, `loss_mask`.

        Args:
            features: maps (B, C, H, W), p2 first.
            proposals: fp32 (n, 4) xyxy in pixels of each image.
            targets: `boxes` (n, 4), `classes` (n,) and `masks` of each image.
            generators: one per image, for the sampling.
            image_sizes: (height, width) of each image without padding.
        """
        features = _at_least_fp32(features)
        sampled = [self.sample(p, t, g) for p, t, g in zip(proposals, targets, generators, strict=True)]
        losses = self.box_losses(features, [sample for sample, _ in sampled], targets, image_sizes)
        if self.has_masks:
            foreground = [RoISample(*(of_all[:count] for of_all in sample)) for sample, count in sampled]
            losses["loss_mask"] = self.mask_loss(features, foreground, targets)
        return losses

    def mask_loss(
        self, features: Sequence[Tensor], foreground: Sequence[RoISample], targets: Sequence[dict[str, Any]]
    ) -> Tensor:
        """Of RoIs that have an object each."""
        mask_logits = self.predict_masks(features, [s.boxes for s in foreground])
        masks = [
            mask_targets(t["masks"], s.matched, s.boxes, MASK_SIZE) for s, t in zip(foreground, targets, strict=True)
        ]
        weights = roi_weights([len(s.boxes) for s in foreground], self.loss_average, features[0].device)
        return mask_loss(mask_logits, torch.cat([s.classes for s in foreground]), torch.cat(masks), weights)

    def box_losses(
        self,
        features: Sequence[Tensor],
        samples: Sequence[RoISample],
        targets: Sequence[dict[str, object]],
        image_sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """The losses of everything but the masks."""
        logits, deltas = self.predict_boxes(features, [s.boxes for s in samples])
        return self.losses_of(logits, deltas, samples, targets, self.box_coder)

    def losses_of(
        self,
        logits: Tensor,
        deltas: Tensor,
        samples: Sequence[RoISample],
        targets: Sequence[dict[str, Any]],
        coder: Coder,
    ) -> dict[str, Tensor]:
        """`loss_cls` and `loss_box_reg` of the predictions for the samples of all images."""
        classes, boxes = torch.cat([s.classes for s in samples]), torch.cat([s.boxes for s in samples])
        # of background the box itself, so that all deltas are finite
        gt_boxes = [of_matched(t["boxes"], s.matched, s.boxes) for s, t in zip(samples, targets, strict=True)]
        wanted = coder.encode_single(torch.cat(gt_boxes), boxes)
        weights = roi_weights([len(s.boxes) for s in samples], self.loss_average, logits.device)
        return box_losses(logits, deltas, classes, wanted, weights)

    @torch.no_grad()
    def detect(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections of each image in pixels of the network's image, with mask probabilities (n, 28, 28) if it has a
        mask head."""
        features = _at_least_fp32(features)
        detections = self.detect_boxes(features, proposals, image_sizes)
        if not self.has_masks:
            return detections
        masks = self.predict_masks(features, [d["boxes"] for d in detections])
        classes = torch.cat([d["classes"] for d in detections])
        own = masks[torch.arange(len(classes), device=masks.device), classes].sigmoid()
        split = own.split([len(d["classes"]) for d in detections])
        return [d | {"masks": m} for d, m in zip(detections, split, strict=True)]

    def detect_boxes(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections of each image, without masks."""
        logits, deltas = self.predict_boxes(features, proposals)
        boxes = self.box_coder.decode_single(deltas.flatten(1), torch.cat(list(proposals))).view_as(deltas)
        counts = [len(p) for p in proposals]
        per_image = zip(boxes.split(counts), logits.softmax(dim=1).split(counts), image_sizes, strict=True)
        return [select_detections(b, p, size, *self.selection) for b, p, size in per_image]

    def predict_boxes(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits fp32 (n, K + 1) and deltas fp32 (n, K, 4) of the boxes of all images."""
        logits, deltas = self.box_predictor(self.box_head(pool(features, self.strides, boxes, BOX_POOL)))
        return logits.float(), deltas.float().unflatten(1, (self.num_classes, 4))

    def predict_masks(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Logits fp32 (n, K, 28, 28) of the boxes of all images."""
        return self.mask_predictor(self.mask_head(pool(features, self.strides, boxes, MASK_POOL))).float()

    @torch.no_grad()
    def sample(self, proposals: Tensor, target: dict[str, Any], generator: torch.Generator) -> tuple[RoISample, int]:
        """Up to `batch_per_image` of the proposals (n, 4) and the ground-truth boxes, and how many of them are
        foreground, which comes first: a quarter at most."""
        boxes = torch.cat([proposals, target["boxes"]])
        matched = match(target["boxes"], boxes, self.matcher)
        positive, negative = subsample(matched, self.batch_per_image, POSITIVE_FRACTION, generator)
        chosen = torch.cat([positive, negative])
        return self.labelled(boxes[chosen], matched[chosen], target), len(positive)

    def labelled(self, boxes: Tensor, matched: Tensor, target: dict[str, Any]) -> RoISample:
        """The boxes (n, 4) with the classes of their objects `matched` (n,), the answer of `match`."""
        background = torch.full_like(matched, self.num_classes)
        return RoISample(boxes, of_matched(target["classes"], matched, background), matched)


def _at_least_fp32(features: Sequence[Tensor]) -> list[Tensor]:
    return [f.to(torch.promote_types(f.dtype, torch.float32)) for f in features]
