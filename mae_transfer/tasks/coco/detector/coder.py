"""torchvision's `BoxCoder` without its copies of constants to the device, each of which waits for that; same values."""

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, encode_boxes


class Coder(BoxCoder):
    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        """Deltas fp32 (n, 4) from proposals (n, 4) to reference boxes (n, 4), all xyxy in pixels."""
        return encode_boxes(reference_boxes, proposals, self.weights)

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (n, 4 K) xyxy of the deltas (n, 4 K) from boxes (n, 4)."""
        boxes = boxes.to(rel_codes.dtype)
        size = boxes[:, 2:] - boxes[:, :2]
        centre = boxes[:, :2] + 0.5 * size
        (width, height), (x, y) = size[:, :, None].unbind(1), centre[:, :, None].unbind(1)
        dx, dy, dw, dh = (rel_codes[:, i::4] / weight for i, weight in enumerate(self.weights))
        x, y = dx * width + x, dy * height + y
        half_width = 0.5 * (torch.exp(dw.clamp(max=self.bbox_xform_clip)) * width)
        half_height = 0.5 * (torch.exp(dh.clamp(max=self.bbox_xform_clip)) * height)
        corners = (x - half_width, y - half_height, x + half_width, y + half_height)
        return torch.stack(corners, dim=2).flatten(1)
