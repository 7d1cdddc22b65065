"""What the detector's tests share: a tiny encoder, a small configuration, and weights and images from documented seeds.

The goldens were made with these same functions, so changing any of them needs new goldens.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mae_transfer.backbones.encoder import Encoder
from mae_transfer.backbones.registry import Spec
from mae_transfer.tasks.coco.config import CocoConfig


class StandInEncoder(Encoder):
    """Four 3x3 convolutions on a patch embedding: the encoder's contract without a transformer."""

    def __init__(self, embed_dim: int = 32, patch_size: int = 16) -> None:
        # Statistics exact in fp32, also times 255: detectron2 keeps them in 0..255 units.
        statistics: dict[str, Any] = {"mean": (0.5, 0.4375, 0.375), "std": (0.25, 0.21875, 0.25)}
        spec = Spec("stand-in", "own", None, embed_dim, 4, 1, patch_size, **statistics)
        super().__init__(spec, None, None, 16 * patch_size)
        self.embed = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)
        self.blocks = nn.ModuleList(nn.Conv2d(embed_dim, embed_dim, 3, padding=1) for _ in self.taps)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, taps = self.embed(images), []
        for block in self.blocks:
            x = x + torch.tanh(block(x))
            taps.append(x)
        return taps


def small_config(image_size: int = 256, **model: Any) -> CocoConfig:
    """The recipe's structure at a width that a test can afford."""
    widths = {"fpn_channels": 16, "head_channels": 16, "box_fc": 32}
    return CocoConfig.model_validate(
        {
            "recipe": "test",
            "backbone": {"name": "stand-in"},
            "optim": {"lr": 1e-4, "weight_decay": 0.1},
            "schedule": {"kind": "cosine", "steps": 1},
            "train": {"global_batch": 2},
            "data": {"image_size": image_size, "scale_min": 0.1, "scale_max": 2.0},
            "model": widths | model,
            "eval": {},
        }
    )


def seeded_weights(model: nn.Module, seed: int) -> None:
    """Fill all parameters and buffers, in sorted order of their names, from one numpy generator.

    Scales are chosen so that a random detector has varied boxes and more detections than it may report.
    """
    rng = np.random.default_rng(seed)
    gains = {"rpn.head.bbox_pred.weight": 0.3, "roi_heads.box_predictor.cls_score.weight": 3.0}
    with torch.no_grad():
        for name, value in sorted(model.state_dict().items()):
            shape = tuple(value.shape)
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
                new = rng.uniform(0.5, 1.5, shape)
            elif name.endswith("weight"):
                new = rng.normal(0, gains.get(name, 1.0) / np.sqrt(np.prod(shape[1:])), shape)
            else:
                new = rng.normal(0, 0.1, shape)
            value.copy_(torch.from_numpy(np.asarray(new)))


def seeded_image(seed: int, height: int, width: int) -> Tensor:
    """uint8 (3, height, width): coarse random blocks with fine noise on them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (3, height // 8 + 1, width // 8 + 1)).repeat(8, axis=1).repeat(8, axis=2)
    return torch.from_numpy((coarse[:, :height, :width] + rng.integers(0, 56, (3, height, width))).astype(np.uint8))


def seeded_target(seed: int, height: int, width: int, objects: int, num_classes: int, bitmaps: bool) -> dict[str, Any]:
    """Random ellipses as polygons (a third of them in two parts) or bitmaps, with their boxes."""
    rng = np.random.default_rng(seed)
    boxes, masks = [], []
    for k in range(objects):
        w, h = rng.uniform(12, 0.7 * width), rng.uniform(12, 0.7 * height)
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
        angle = np.linspace(0, 2 * np.pi, 17)[:-1] + rng.uniform(0, 1)
        if bitmaps:
            column, row = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
            inside = ((column - x - w / 2) / w * 2) ** 2 + ((row - y - h / 2) / h * 2) ** 2 <= 1
            masks.append(inside.astype(np.uint8))
        else:
            parts = [(x, w)] if k % 3 else [(x, 0.4 * w), (x + 0.6 * w, 0.4 * w)]
            masks.append(
                [
                    np.stack(
                        [left + part * (0.5 + 0.5 * np.cos(angle)), y + h * (0.5 + 0.5 * np.sin(angle))], 1
                    ).ravel()
                    for left, part in parts
                ]
            )
        boxes.append([x, y, x + w, y + h])
    return {
        "boxes": torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
        "classes": torch.from_numpy(rng.integers(0, num_classes, objects)),
        "masks": masks,
        "seed": seed,
    }
