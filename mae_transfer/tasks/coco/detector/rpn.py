"""Region proposal network with detectron2's arithmetic around torchvision's `RPNHead`.

Source: detectron2 `modeling/proposal_generator/{rpn,proposal_utils}.py` and the values of its
`configs/common/models/mask_rcnn_fpn.py`. Against torchvision's RPN: anchors (see anchors.py), fp32 decoding, NMS on
logits, 1000 proposals also in training, empty boxes dropped instead of boxes under 1e-3, non-finite predictions a
NaN loss in training and dropped from the proposals, L1 box loss, both losses normalised by the nominal sample size.
Boxes are decoded after the top-k, which is the same as detectron2's order and 30 times less work.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import batched_nms, clip_boxes_to_image

from mae_transfer.tasks.coco.detector.anchors import ASPECT_RATIOS, grid_anchors
from mae_transfer.tasks.coco.detector.coder import Coder
from mae_transfer.tasks.coco.detector.sampling import match, subsample

PRE_NMS_TOP_K = {True: 2000, False: 1000}
"""Proposals per image and pyramid map that enter the NMS, by `training`."""
POST_NMS_TOP_K = 1000
"""Proposals per image over all maps, in training and test."""
NMS_THRESHOLD = 0.7
POSITIVE_FRACTION = 0.5


class RPN(nn.Module):
    """Proposals from a pyramid.

    Args:
        channels: channels of the pyramid.
        strides: pixels per cell of each pyramid map.
        convs: 3x3 convolutions in the head.
        batch_per_image: anchors sampled per image for the losses.
    """

    def __init__(self, channels: int, strides: Sequence[float], convs: int, batch_per_image: int) -> None:
        super().__init__()
        self.head = RPNHead(channels, len(ASPECT_RATIOS), conv_depth=convs)
        self.strides = tuple(strides)
        self.batch_per_image = batch_per_image
        self.box_coder = Coder(weights=(1.0, 1.0, 1.0, 1.0))
        self.matcher = Matcher(high_threshold=0.7, low_threshold=0.3, allow_low_quality_matches=True)

    def forward(
        self,
        features: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        targets: Sequence[dict[str, object]] | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals fp32 (n <= 1000, 4) xyxy in pixels of each image, best first; with targets also the losses.

        Args:
            features: maps (B, C, H, W), one per stride.
            image_sizes: (height, width) of each image without padding.
            targets: `boxes` (n, 4) of each image.
            generators: one per image, for the sampling.
        """
        anchors = grid_anchors([(f.shape[2], f.shape[3]) for f in features], self.strides, features[0].device)
        logit_maps, delta_maps = self.head(list(features))
        logits = [x.permute(0, 2, 3, 1).flatten(1).float() for x in logit_maps]
        deltas = [x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3).float() for x in delta_maps]
        losses = {}
        if targets is not None and generators is not None:
            losses = self.losses(torch.cat(anchors), torch.cat(logits, 1), torch.cat(deltas, 1), targets, generators)
        with torch.no_grad():
            return self.propose(anchors, logits, deltas, image_sizes), losses

    def propose(
        self,
        anchors: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Tensor]:
        """Top-k per map, decode, clip, drop empty boxes, NMS per map, top-k over all maps.

        Args:
            anchors: (A_l, 4) of each map; `logits` (B, A_l) and `deltas` (B, A_l, 4) belong to them.
        """
        scores, boxes, levels = [], [], []
        for level, (anchor, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
            score, index = logit.topk(min(logit.shape[1], PRE_NMS_TOP_K[self.training]), dim=1)
            delta = delta.gather(1, index[..., None].expand(-1, -1, 4))
            decoded = self.box_coder.decode_single(delta.flatten(0, 1), anchor[index.flatten()])
            scores.append(score)
            boxes.append(decoded.view_as(delta))
            levels.append(torch.full_like(index[0], level))
        all_levels = torch.cat(levels)
        proposals = []
        for i, (box, score) in enumerate(zip(torch.cat(boxes, 1), torch.cat(scores, 1), strict=True)):
            finite = box.isfinite().all(dim=1) & score.isfinite()
            box = clip_boxes_to_image(box, image_sizes[i])
            keep = finite & (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
            kept = keep.nonzero().squeeze(1)
            box, score, level_of = box[kept], score[kept], all_levels[kept]
            proposals.append(box[batched_nms(box, score, level_of, NMS_THRESHOLD)[:POST_NMS_TOP_K]])
        return proposals

    def losses(
        self,
        anchors: Tensor,
        logits: Tensor,
        deltas: Tensor,
        targets: Sequence[dict[str, Any]],
        generators: Sequence[torch.Generator],
    ) -> dict[str, Tensor]:
        """Sums over the sampled anchors / (batch_per_image * B): `loss_rpn_cls` (BCE) and `loss_rpn_loc` (L1).

        Args:
            anchors: (A, 4) of all maps; `logits` (B, A) and `deltas` (B, A, 4) belong to them.
        """
        index, labels, positive_index, wanted = [], [], [], []
        for i, (target, generator) in enumerate(zip(targets, generators, strict=True)):
            matched = match(target["boxes"], anchors, self.matcher)
            positive, negative = subsample(matched, self.batch_per_image, POSITIVE_FRACTION, generator)
            # Indices into the batch's anchors laid end to end, so that each prediction is gathered once.
            index.append(torch.cat([positive, negative]) + i * len(anchors))
            labels.append(torch.cat([torch.ones_like(positive), torch.zeros_like(negative)]))
            positive_index.append(positive + i * len(anchors))
            wanted.append(self.box_coder.encode_single(target["boxes"][matched[positive]], anchors[positive]))
        chosen = logits.flatten()[torch.cat(index)]
        cls = F.binary_cross_entropy_with_logits(chosen, torch.cat(labels).float(), reduction="sum")
        loc = F.l1_loss(deltas.flatten(0, 1)[torch.cat(positive_index)], torch.cat(wanted), reduction="sum")
        normaliser = self.batch_per_image * len(targets)
        # Also of anchors that were not sampled. The training loop stops on a NaN on all ranks at once and names the
        # images; an exception here would leave the other ranks waiting.
        cls = torch.where(logits.isfinite().all() & deltas.isfinite().all(), cls, torch.nan)
        return {"loss_rpn_cls": cls / normaliser, "loss_rpn_loc": loc / normaliser}
