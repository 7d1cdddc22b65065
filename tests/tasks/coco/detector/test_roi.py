"""Pooling, RoI sampling, losses, initialisation and the choice of detections against closed forms."""

import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import nn
from torch.nn import functional as F
from torchvision.ops.poolers import LevelMapper

from mae_transfer.tasks.coco.detector import paste
from mae_transfer.tasks.coco.detector.losses import box_losses, mask_loss, roi_weights
from mae_transfer.tasks.coco.detector.pooler import assign_levels, pool
from mae_transfer.tasks.coco.detector.postprocess import rescale, select_detections
from mae_transfer.tasks.coco.detector.roi_heads import RoIHeads
from mae_transfer.tasks.coco.evaluate import encode

STRIDES = (4, 8, 16, 32)


def squares(*sides: float) -> torch.Tensor:
    return torch.tensor([[0.0, 0.0, s, s] for s in sides])


def test_levels() -> None:
    sides = (1e-4, 1, 111.9, 112, 223.9, 224, 447.9, 448, 5000)
    assert assign_levels(squares(*sides), 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    # torchvision's epsilon comes after the logarithm and lifts a box just under the border.
    border = squares(224 * (1 - 3.5e-7))
    assert assign_levels(border, 4).item() == 1
    assert LevelMapper(2, 5)([border]).item() == 2


def test_a_box_that_is_nan_pools_zeros() -> None:
    """As those that a diverged cascade predicts in an evaluation; `select_detections` drops them."""
    maps = [torch.ones(1, 2, 64 // stride, 64 // stride) for stride in STRIDES]
    boxes = torch.cat([squares(8), torch.full((1, 4), torch.nan), squares(600)])
    pooled = pool(maps, STRIDES, [boxes], 2)
    assert pooled.flatten(1).any(dim=1).tolist() == [True, False, True]
    assert torch.equal(pooled[[0, 2]], pool(maps, STRIDES, [boxes[[0, 2]]], 2))


def ramp(batch: int, height: int, width: int, stride: float) -> torch.Tensor:
    """Channel 0 is the x and channel 1 the y of each cell's centre in pixels, channel 2 the image's number."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) * stride, (torch.arange(width) + 0.5) * stride, indexing="ij")
    return torch.stack([torch.stack([x, y, torch.full_like(x, i)]) for i in range(batch)])


@pytest.mark.parametrize("patch", [16, 14])
@pytest.mark.parametrize("size", [7, 14])
def test_aligned_pooling_of_a_ramp_is_the_position_of_each_bin(patch: int, size: int) -> None:
    """Exact whatever the map, the scale and the number of sampling points: half-pixel shifts would show."""
    strides = [patch / 4, patch / 2, patch, patch * 2]
    features = [ramp(2, 64 * 16 // 2**k, 64 * 16 // 2**k, s) for k, s in enumerate(strides)]
    boxes = [
        torch.tensor([[100.3, 50.7, 141.2, 99.9], [200.0, 210.0, 390.5, 377.0]]),
        torch.tensor([[64.0, 64.0, 464.0, 664.0], [70.0, 75.0, 850.0, 790.0], [301.0, 302.0, 303.5, 309.0]]),
    ]
    pooled = pool(features, strides, boxes, size)
    flat = torch.cat(boxes)
    step = (torch.arange(size) + 0.5) / size
    x = flat[:, :1] + step * (flat[:, 2:3] - flat[:, :1])
    y = flat[:, 1:2] + step * (flat[:, 3:] - flat[:, 1:2])
    torch.testing.assert_close(pooled[:, 0], x[:, None, :].expand(-1, size, -1), atol=2e-3, rtol=1e-5)
    torch.testing.assert_close(pooled[:, 1], y[:, :, None].expand(-1, -1, size), atol=2e-3, rtol=1e-5)
    assert pooled[:, 2, 0, 0].tolist() == [0, 0, 1, 1, 1]


def test_sampling_is_adaptive() -> None:
    """A box over 28 x 21 whole cells takes 4 x 3 points a bin, each at a cell's centre: plain average pooling."""
    torch.manual_seed(0)
    features = [torch.randn(1, 5, 64 // 2**k, 64 // 2**k) for k in range(4)]
    box = torch.tensor([[4.0 * 3, 4.0 * 5, 4.0 * 31, 4.0 * 26]])
    wanted = F.avg_pool2d(features[0][:, :, 5:26, 3:31], (3, 4))
    torch.testing.assert_close(pool(features, STRIDES, [box], 7), wanted, atol=1e-5, rtol=1e-5)


def test_pooling_without_boxes_is_connected_to_every_map() -> None:
    features = [torch.randn(2, 3, 8, 8, requires_grad=True) for _ in range(4)]
    pooled = pool(features, STRIDES, [torch.zeros(0, 4), torch.zeros(0, 4)], 7)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert all(f.grad is not None and not f.grad.any() for f in features)


def small_heads(**options: object) -> RoIHeads:
    sizes = {"head_channels": 8, "box_fc": 16, "box_convs": 1, "mask_convs": 1} | options
    return RoIHeads(8, STRIDES, 3, norm=nn.BatchNorm2d, **sizes)  # type: ignore[arg-type]


def test_roi_sample_adds_the_objects_and_puts_the_foreground_first() -> None:
    target = {
        "boxes": torch.tensor([[0.0, 0.0, 50.0, 50.0], [60.0, 60.0, 90.0, 90.0]]),
        "classes": torch.tensor([2, 0]),
    }
    background = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)) * 100 + 200
    near = target["boxes"][:1] + torch.rand(300, 4, generator=torch.Generator().manual_seed(1))
    proposals = torch.cat([torch.cat([background, background + 10], 1), near])
    heads = small_heads()
    sample, foreground = heads.sample(proposals, target, torch.Generator().manual_seed(2))
    assert len(sample.boxes) == len(sample.classes) == len(sample.matched) == 512
    assert foreground == 128
    assert (sample.classes[128:] == 3).all()
    assert (sample.matched[128:] < 0).all()
    assert sample.classes[:128].equal(target["classes"][sample.matched[:128]])
    alone, _ = heads.sample(proposals[:0], target, torch.Generator())
    assert sorted(alone.classes.tolist()) == [0, 2]
    none = {"boxes": torch.zeros(0, 4), "classes": torch.zeros(0, dtype=torch.int64)}
    sample, foreground = heads.sample(proposals, none, torch.Generator())
    assert (sample.classes.tolist(), foreground) == ([3] * 512, 0)
    assert len(heads.sample(proposals[:0], none, torch.Generator())[0].boxes) == 0


def test_weights_average_over_rois_or_images() -> None:
    assert roi_weights([3, 1, 0], "batch").tolist() == [0.25] * 4
    assert roi_weights([3, 1, 0], "image").tolist() == pytest.approx([1 / 9] * 3 + [1 / 3])
    assert roi_weights([5], "image").equal(roi_weights([5], "batch"))
    assert roi_weights([0, 0], "batch").shape == roi_weights([0, 0], "image").shape == (0,)


def test_losses_in_numpy() -> None:
    gen = np.random.default_rng(0)
    logits, deltas, wanted = gen.normal(size=(6, 4)), gen.normal(size=(6, 3, 4)), gen.normal(size=(6, 4))
    classes, weights = np.array([1, 3, 0, 3, 3, 3]), gen.uniform(size=6)
    losses = box_losses(*(torch.tensor(v) for v in (logits, deltas, classes, wanted, weights)))
    cls = sum(w * (np.log(np.exp(z).sum()) - z[c]) for z, c, w in zip(logits, classes, weights, strict=True))
    box = weights[0] * np.abs(deltas[0, 1] - wanted[0]).sum() + weights[2] * np.abs(deltas[2, 0] - wanted[2]).sum()
    assert losses["loss_cls"].item() == pytest.approx(cls)
    assert losses["loss_box_reg"].item() == pytest.approx(box)
    masks, targets, picked = (
        gen.normal(size=(2, 3, 4, 4)),
        gen.integers(0, 2, (2, 4, 4)).astype(float),
        np.array([2, 1]),
    )
    own = masks[[0, 1], picked]
    bce = (np.logaddexp(0, own) - own * targets).mean((1, 2))
    found = mask_loss(*(torch.tensor(v) for v in (masks, picked, targets, weights[:2])))
    assert found.item() == pytest.approx((bce * weights[:2]).sum())


def test_initialisation_is_detectron2s() -> None:
    torch.manual_seed(0)
    heads = RoIHeads(64, STRIDES, 80, norm=nn.BatchNorm2d, head_channels=64, box_fc=256)
    stds = {
        "box_head.0.0.weight": math.sqrt(2 / (64 * 9)),
        "box_head.5.weight": math.sqrt(1 / (64 * 49)),
        "box_predictor.cls_score.weight": 0.01,
        "box_predictor.bbox_pred.weight": 0.001,
        "mask_head.3.0.weight": math.sqrt(2 / (64 * 9)),
        "mask_predictor.conv5_mask.weight": math.sqrt(2 / (64 * 4)),
        "mask_predictor.mask_fcn_logits.weight": 0.001,
    }
    parameters = dict(heads.named_parameters())
    for name, std in stds.items():
        assert parameters[name].std().item() == pytest.approx(std, rel=0.03), name
    # XavierFill is uniform on +-sqrt(3 / fan_in).
    assert parameters["box_head.5.weight"].abs().max().item() == pytest.approx(math.sqrt(3 / (64 * 49)), rel=1e-3)
    biases = [name for name in parameters if name.endswith("bias")]
    assert len(biases) == 8 + 5
    assert not any(parameters[name].any() for name in biases)


def test_detections_are_chosen_by_threshold_class_and_score() -> None:
    nan = math.nan
    base = torch.tensor([[0.0, 0, 20, 20], [1, 1, 21, 21], [50, 50, 50.005, 60], [0, 0, 20, 20], [90, 10, 130, 30]])
    boxes = base[:, None].repeat(1, 2, 1)
    boxes[3, 0, 0] = nan
    probabilities = torch.tensor(
        [[0.8, 0.15, 0.05], [0.6, 0.3, 0.1], [0.05, 0.5, 0.45], [0.9, 0.05, 0.05], [0.051, 0.05, 0.9]]
    )
    found = select_detections(boxes, probabilities, (100, 100), 0.05, 0.5, 100)
    # Row 1 loses to row 0 in class 0 and wins in class 1; 0.05 is not above 0.05; row 3 is not finite in one class.
    assert found["scores"].tolist() == pytest.approx([0.8, 0.5, 0.3, 0.051])
    assert found["classes"].tolist() == [0, 1, 1, 0]
    torch.testing.assert_close(found["boxes"][1], base[2])  # torchvision drops sides under 0.01
    assert found["boxes"][3].tolist() == [90, 10, 100, 30]
    assert len(select_detections(boxes, probabilities, (100, 100), 0.05, 0.5, 2)["boxes"]) == 2


def test_rescaling_clips_again_and_drops_empty_boxes() -> None:
    detections = {
        "boxes": torch.tensor(
            [[10.0, 20.0, 30.0, 40.0], [90.0, 10.0, 100.5, 20.0], [5.0, 5.0, 5.0, 9.0], [100.1, 5.0, 101.0, 9.0]]
        ),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]),
        "classes": torch.tensor([3, 1, 2, 0]),
        "masks": torch.ones(4, 28, 28),
    }
    found = rescale(detections, (50, 100), (100, 300))
    torch.testing.assert_close(found["boxes"], torch.tensor([[30.0, 40.0, 90.0, 80.0], [270.0, 20.0, 300.0, 40.0]]))
    assert found["classes"].tolist() == [3, 1]
    assert found["masks"].shape == (2, 100, 300)
    assert found["masks"][0].sum().item() == pytest.approx(60 * 40, rel=0.01)


def test_masks_of_a_huge_image_are_encoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(7, 2, 2, generator=generator).sort(dim=1).values
    detections = {
        "boxes": (corners * torch.tensor([100.0, 50.0])).flatten(1),
        "scores": torch.rand(7, generator=generator),
        "classes": torch.arange(7),
        "masks": torch.rand(7, 28, 28, generator=generator),
    }
    whole = rescale(detections, (50, 100), (500, 700))
    monkeypatch.setattr(paste, "LARGEST_BYTES", 7 * 500 * 700 - 1)
    monkeypatch.setattr(paste, "_PIECE_BYTES", 2 * 500 * 700)
    monkeypatch.setattr(paste, "_BAND_PIXELS", 700 * 33)
    pieces = rescale(detections, (50, 100), (500, 700))
    assert isinstance(pieces["masks"], list)
    assert torch.equal(torch.from_numpy(coco_mask.decode(pieces["masks"])).permute(2, 0, 1).bool(), whole["masks"])
    for name in ("boxes", "scores", "classes"):
        assert torch.equal(pieces[name], whole[name])
    of_whole, of_pieces = encode(1, whole), encode(1, pieces)
    assert of_pieces.masks == of_whole.masks
    assert (of_pieces.boxes == of_whole.boxes).all()
