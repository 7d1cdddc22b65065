#!/usr/bin/env python
"""Fits the last layers of the tiny models of tests/support/tiny_models.py, by least squares on training images.

    PYTHONPATH=tests python tests/goldens/make_tiny_models.py      # writes tests/goldens/tiny_models.npz

The numbers of tiny_models.yaml are of these layers: they have to be measured anew after a change.
"""

import tempfile
from pathlib import Path

import mmcv
import numpy as np
import torch
from PIL import Image
from support import tiny_models
from torch import Tensor, nn
from torchvision.ops import box_iou

from mae_transfer.data.synthetic.ade20k import COLOURS
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.data import CocoEval

SIZE = tiny_models.SEGMENTOR_SIZE
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


def least_squares(
    features: Tensor, wanted: Tensor, ridge: float, weights: Tensor | None = None
) -> dict[str, np.ndarray]:
    """Weight (outputs, inputs) and bias of a linear layer."""
    rows = torch.cat([features.double(), torch.ones(len(features), 1).double()], 1)
    weighted = rows if weights is None else rows * weights[:, None]
    square = rows.T @ weighted + ridge * torch.eye(rows.shape[1]).double()
    solved = torch.linalg.solve(square, weighted.T @ wanted.double()).float().numpy()
    return {"weight": solved[:-1].T.copy(), "bias": solved[-1].copy()}


@torch.no_grad()
def fit_segmentor(data: Path) -> dict[str, np.ndarray]:
    model, caught = tiny_models.segmentor(), list[Tensor]()
    model.decode_head.conv_seg.register_forward_hook(lambda _, inputs, __: caught.append(inputs[0][0]))
    features, labels = [], []
    for path in sorted((data / "images" / "training").iterdir()):
        image = mmcv.imrescale(np.asarray(Image.open(path).convert("RGB")), (4 * SIZE, SIZE))
        mask = np.asarray(Image.open(data / "annotations" / "training" / f"{path.stem}.png"))
        mask = np.asarray(Image.fromarray(mask).resize(image.shape[1::-1], Image.Resampling.NEAREST))
        crop = torch.from_numpy(image[:SIZE, :SIZE].copy()).float()
        if crop.shape[:2] != (SIZE, SIZE):
            continue
        caught.clear()
        model.encode_decode(((crop - MEAN) / STD).permute(2, 0, 1)[None], [{"img_shape": (SIZE, SIZE)}])
        step = SIZE // caught[0].shape[1]
        features.append(caught[0].flatten(1).T)
        labels.append(torch.from_numpy(mask[:SIZE:step, :SIZE:step].astype(int)).flatten())
    x, y = torch.cat(features), torch.cat(labels)
    found = least_squares(x[y > 0], torch.stack([10.0 * (y[y > 0] == value) for value in COLOURS], 1), 1.0)
    return {f"segmentor_{key}": value for key, value in found.items()}


@torch.no_grad()
def fit_detector(data: Path) -> dict[str, np.ndarray]:
    model = tiny_models.detector()
    config = load_config("coco", "mae_vit_nano", overrides=[*tiny_models.DETECTOR, "recipe=vitdet_mask_rcnn"])
    annotations = CocoAnnotations(data / "annotations" / "instances_train2017.json")
    images, background = CocoEval(annotations, data / "train2017", config.data), tiny_models.CLASSES
    caught, proposals = list[Tensor](), list[Tensor]()
    heads, predict = model.roi_heads, model.roi_heads.predict_boxes
    heads.box_predictor.register_forward_hook(lambda _, inputs, __: caught.append(inputs[0]))

    def spy(maps: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        proposals.append(boxes[0])
        return predict(maps, boxes)

    heads.predict_boxes = spy
    features, labels, near, shifts = [], [], [], []
    for index in range(len(images)):
        batch, record = images.collate([images[index]]), annotations[index]
        model(batch)
        found, boxes = caught.pop(), proposals.pop()
        scale = batch["images"][0].shape[-1] / record.width
        truth = torch.tensor([(x, y, x + w, y + h) for x, y, w, h in (o.bbox for o in record.objects)]) * scale
        overlap, best = box_iou(boxes, truth.float()).max(1)
        label = torch.where(overlap >= 0.5, torch.tensor([o.category for o in record.objects])[best], background)
        clear = (overlap >= 0.5) | (overlap <= 0.3)
        features.append(found[clear])
        labels.append(label[clear])
        near.append(found[overlap >= 0.4])
        shifts.append(heads.box_coder.encode_single(truth.float()[best], boxes)[overlap >= 0.4])
    x, y = torch.cat(features), torch.cat(labels)
    each = len(y) / (background + 1) / y.bincount(minlength=background + 1)
    each[background] *= 8
    one_hot = 8.0 * nn.functional.one_hot(y, background + 1)
    scores = least_squares(x, one_hot, len(x) / 1e4, each[y].double())
    deltas = least_squares(torch.cat(near), torch.cat(shifts), len(torch.cat(near)) / 1e4)
    named = (("cls_score", scores), ("bbox_pred", deltas))
    return {f"{layer}_{key}": value for layer, values in named for key, value in values.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fitted = fit_segmentor(tiny_models.segmentor_data(root / "ade"))
        fitted |= fit_detector(tiny_models.detector_data(root / "coco", 80))
    np.savez_compressed(tiny_models.FITTED, **fitted)


if __name__ == "__main__":
    main()
