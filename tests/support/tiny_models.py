"""A tiny segmentor and a tiny detector: weights from numpy's generator, last layers fitted once and kept in
goldens/tiny_models.npz (goldens/make_tiny_models.py). And the images that they are evaluated on."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from support.ade20k_reference import make_mmseg
from support.paths import GOLDENS
from torch import Tensor

from mae_transfer.backbones.configured import encoder_of
from mae_transfer.data.synthetic.ade20k import COLOURS, make_ade20k
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.coco.model import MaskRCNN, build_mask_rcnn
from mae_transfer.tasks.coco.protocols.finetune import Finetune

FITTED = GOLDENS / "tiny_models.npz"
SEGMENTOR_SIZE, SEGMENTOR_IMAGES = 64, 60
DETECTOR_IMAGES, CLASSES = 40, 3
DETECTOR = [
    *("data.image_size=128", "backbone.window_size=2", "model.fpn_channels=32", "model.head_channels=32"),
    "model.box_fc=256",
]
_PAINT = ((200, 70, 60), (60, 160, 70), (70, 80, 210))


def drawn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the same names and shapes, of which none is at its initial value."""
    rng, found = np.random.default_rng(0), {}
    for name in sorted(state):
        tensor = state[name]
        if not tensor.is_floating_point():
            found[name] = tensor
            continue
        noise = rng.normal(0, 1, tuple(tensor.shape))
        if name.endswith("running_var"):
            noise = 1 + 0.1 * noise**2
        elif tensor.ndim < 2:
            noise = 0.1 * noise + (name.endswith("weight") or "gamma" in name)
        else:
            noise *= 0.3 if tensor.ndim == 3 else tensor[0].numel() ** -0.5
        found[name] = torch.from_numpy(noise).to(tensor.dtype)
    return found


def segmentor() -> Any:
    """mmsegmentation's own UperNet on its MAE, without its fitted classifier."""
    shape: Any = SimpleNamespace(embed_dim=64, depth=8, num_heads=4, taps=(1, 3, 5, 7))
    model = make_mmseg(shape, SEGMENTOR_SIZE, "MAE", 150).eval()
    model.load_state_dict(drawn(model.state_dict()))
    return model


def fitted_segmentor(fitted: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = segmentor().state_dict()
    weight, bias = state["decode_head.conv_seg.weight"], state["decode_head.conv_seg.bias"]
    weight.zero_()
    bias.fill_(-100)
    rows = [value - 1 for value in COLOURS]
    weight[rows, :, 0, 0], bias[rows] = (torch.from_numpy(fitted[f"segmentor_{key}"]) for key in ("weight", "bias"))
    return state


def segmentor_data(folder: Path) -> Path:
    return make_ade20k(folder, train_images=60, val_images=SEGMENTOR_IMAGES, size=(64, 110))


def detector() -> MaskRCNN:
    """Without its fitted box head; boxes of the RPN are its anchors, and masks fill their boxes."""
    overrides = [*DETECTOR, "recipe=vitdet_mask_rcnn", "backbone.weights=random"]
    config: Any = load_config("coco", "mae_vit_nano", overrides=overrides)
    model = build_mask_rcnn(encoder_of(config.backbone, Finetune(config).encoder_options), CLASSES, config).eval()
    state = drawn(model.state_dict())
    for name in ("rpn.head.bbox_pred", "roi_heads.mask_predictor.mask_fcn_logits"):
        state[f"{name}.weight"].zero_()
        state[f"{name}.bias"].fill_(float("mask" in name))
    model.load_state_dict(state)
    return model


def fitted_detector(fitted: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = detector().state_dict()
    for layer in ("cls_score", "bbox_pred"):
        for part in ("weight", "bias"):
            values = torch.from_numpy(fitted[f"{layer}_{part}"])
            copies = CLASSES if layer == "bbox_pred" else 1
            state[f"roi_heads.box_predictor.{layer}.{part}"] = torch.cat([values] * copies)
    return state


def detector_data(root: Path, train_images: int = 0) -> Path:
    """Coloured rectangles under noise, in COCO's layout, as PNG files."""
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": label + 1, "name": f"class{label}"} for label in range(CLASSES)]
    for split, count, seed in (("train2017", train_images, 1), ("val2017", DETECTOR_IMAGES, 2)):
        if not count:
            continue
        (root / split).mkdir()
        rng, images, objects = np.random.default_rng(seed), [], list[dict[str, object]]()
        for number in range(1, count + 1):
            image, boxes = _scene(rng)
            image.save(root / split / f"{number:04d}.png")
            size = {"height": image.height, "width": image.width}
            images.append({"id": number, "file_name": f"{number:04d}.png", **size})
            for x, y, w, h, label in boxes:
                corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                row = {"id": len(objects) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0}
                objects.append({**row, "bbox": [x, y, w, h], "area": w * h, "segmentation": corners})
        content = {"images": images, "annotations": objects, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def _scene(rng: np.random.Generator) -> tuple[Image.Image, list[tuple[int, int, int, int, int]]]:
    """An image, and x, y, width, height and label of what is in it."""
    height, width = (int(side) for side in rng.integers(90, 129, 2))
    pixels, boxes = rng.normal(128, 30, (height, width, 3)), list[tuple[int, int, int, int, int]]()
    for _ in range(int(rng.integers(1, 4))):
        h, w = (int(side) for side in rng.integers(24, 60, 2))
        x, y, label = int(rng.integers(0, width - w)), int(rng.integers(0, height - h)), int(rng.integers(CLASSES))
        if all(x + w <= a or a + c <= x or y + h <= b or b + d <= y for a, b, c, d, _ in boxes):
            pixels[y : y + h, x : x + w] = np.array(_PAINT[label]) + rng.normal(0, 35, (h, w, 3))
            boxes.append((x, y, w, h, label))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), boxes
