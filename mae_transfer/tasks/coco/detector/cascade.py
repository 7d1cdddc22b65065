"""Cascade Mask R-CNN: three box heads, each on the boxes of the one before, with detectron2's arithmetic.

Source: detectron2 `modeling/roi_heads/cascade_rcnn.py` and the values that ViTDet's configurations give it
(`projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_b_100ep.py`): boxes without classes, rising IoU thresholds and
box weights. RoIs are sampled for the first head only; the others take all boxes it predicts, clipped, without the empty
ones in training. Losses of the heads are added, while their gradients on the pyramid are averaged. In test the scores
are the mean over the heads, the boxes the last head's. There is one mask head, on the RoIs of the first in training.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.ops import clip_boxes_to_image

from mae_transfer.tasks.coco.detector.coder import Coder
from mae_transfer.tasks.coco.detector.pooler import pool
from mae_transfer.tasks.coco.detector.postprocess import Detections, select_detections
from mae_transfer.tasks.coco.detector.roi_heads import (
    BOX_POOL,
    BoxPredictor,
    RoIHeads,
    RoISample,
    box_head,
)
from mae_transfer.tasks.coco.detector.sampling import match

IOU_THRESHOLDS = (0.5, 0.6, 0.7)
"""Least IoU of foreground, by stage."""
BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""Of the box deltas, by stage."""
STAGES = len(IOU_THRESHOLDS)


class CascadeRoIHeads(RoIHeads):
    """`RoIHeads` with a box head and a predictor per stage; the same arguments, inputs and outputs.

    The losses are `loss_cls_stage{k}` and `loss_box_reg_stage{k}`, k = 0, 1, 2, and `loss_mask`.
    """

    def make_box_heads(
        self, channels: int, convs: int, head_channels: int, fc: int, norm: Callable[[int], nn.Module]
    ) -> tuple[nn.Module, nn.Module]:
        self.coders = [Coder(weights=weights) for weights in BOX_WEIGHTS]
        self.matchers = [Matcher(high_threshold=iou, low_threshold=iou) for iou in IOU_THRESHOLDS]
        heads = nn.ModuleList(box_head(channels, convs, head_channels, fc, norm) for _ in range(STAGES))
        return heads, nn.ModuleList(BoxPredictor(fc, self.num_classes, class_agnostic=True) for _ in range(STAGES))

    def box_losses(
        self,
        features: Sequence[Tensor],
        samples: Sequence[RoISample],
        targets: Sequence[dict[str, object]],
        image_sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for stage, coder in enumerate(self.coders):
            logits, deltas = self.run_stage(stage, features, [sample.boxes for sample in samples])
            of_stage = self.losses_of(logits, deltas, samples, targets, coder)
            losses |= {f"{name}_stage{stage}": loss for name, loss in of_stage.items()}
            if stage + 1 < STAGES:
                boxes = self.decode(stage, deltas, [sample.boxes for sample in samples], image_sizes)
                samples = [self.label(stage + 1, b, t) for b, t in zip(boxes, targets, strict=True)]
        return losses

    def detect_boxes(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        boxes, probabilities = list(proposals), torch.zeros(())
        for stage in range(STAGES):
            logits, deltas = self.run_stage(stage, features, boxes)
            probabilities = probabilities + logits.softmax(dim=1)
            if stage + 1 < STAGES:
                boxes = self.decode(stage, deltas, boxes, image_sizes)
        counts = [len(b) for b in boxes]
        last = self.coders[-1].decode_single(deltas.flatten(1), torch.cat(boxes)).view_as(deltas)
        per_image = zip(last.split(counts), (probabilities * (1 / STAGES)).split(counts), image_sizes, strict=True)
        return [select_detections(b, p, size, *self.selection) for b, p, size in per_image]

    def run_stage(self, stage: int, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits fp32 (n, K + 1) and deltas fp32 (n, 1, 4) of the boxes of all images."""
        pooled = pool(features, self.strides, boxes, BOX_POOL)
        if pooled.requires_grad:
            pooled.register_hook(lambda gradient: gradient / STAGES)
        logits, deltas = self.box_predictor[stage](self.box_head[stage](pooled))
        return logits.float(), deltas.float().unflatten(1, (1, 4))

    @torch.no_grad()
    def decode(
        self, stage: int, deltas: Tensor, boxes: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """The boxes (n, 4) of each image that a stage predicts, clipped; in training without the empty ones, in test
        with them, since the scores of a box are added up over the stages."""
        decoded = self.coders[stage].decode_single(deltas[:, 0], torch.cat(list(boxes)))
        clipped = [
            clip_boxes_to_image(b, size)
            for b, size in zip(decoded.split([len(b) for b in boxes]), image_sizes, strict=True)
        ]
        if not self.training:
            return clipped
        together = torch.cat(clipped)
        full = (together[:, 2] > together[:, 0]) & (together[:, 3] > together[:, 1])
        counts = torch.stack([part.sum() for part in full.split([len(b) for b in boxes])]).tolist()  # the one wait
        order = full.logical_not().byte().argsort(stable=True)
        return list(together[order[: sum(counts)]].split(counts))

    @torch.no_grad()
    def label(self, stage: int, boxes: Tensor, target: dict[str, Any]) -> RoISample:
        """All of the boxes (n, 4) of an image, as foreground or background by the threshold of a stage."""
        return self.labelled(boxes, match(target["boxes"], boxes, self.matchers[stage]), target)
