"""The cases of goldens/detectron2.npz: models, images and targets from seeds."""

from typing import Any

import torch
from support.detector_standin import StandInEncoder, seeded_image, seeded_target, seeded_weights, small_config

from mae_transfer.tasks.coco.model import MaskRCNN, build_mask_rcnn

NUM_CLASSES = 5


SIZES = [(256, 256), (256, 120), (120, 256)]
"""(height, width) in the network: square, tall, wide."""


ORIGINAL_SIZES = [(256, 256), (512, 240), (90, 192)]


def golden_model(seed: int, **options: Any) -> MaskRCNN:
    torch.manual_seed(0)
    model = build_mask_rcnn(StandInEncoder(), NUM_CLASSES, small_config(**options))
    seeded_weights(model, seed)
    return model.double()


def golden_images(seed: int) -> dict[str, Any]:
    images = [seeded_image(10 * seed + i, *size) for i, size in enumerate(SIZES)]
    return {"images": images, "file_names": ["a", "b", "c"], "sizes": ORIGINAL_SIZES}


def golden_batch(seed: int, objects: list[int]) -> dict[str, Any]:
    targets = [
        seeded_target(10 * seed + i, *size, n, NUM_CLASSES, bitmaps=i == 1)
        for i, (size, n) in enumerate(zip(SIZES, objects, strict=True))
    ]
    return golden_images(seed) | {"targets": targets}
