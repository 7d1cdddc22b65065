"""Anchors, proposals and RPN losses against closed forms, and where they part from torchvision."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher

from mae_transfer.tasks.coco.detector.anchors import SIZES, cell_anchors, grid_anchors
from mae_transfer.tasks.coco.detector.rpn import RPN
from mae_transfer.tasks.coco.detector.sampling import match, subsample

STRIDES = (4, 8, 16, 32, 64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_cell_anchors_are_not_rounded() -> None:
    assert cell_anchors(32)[0].tolist() == pytest.approx([-22.627417, -11.313708, 22.627417, 11.313708], abs=1e-5)
    for size in SIZES:
        boxes = cell_anchors(size).double()
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        assert (width * height).tolist() == pytest.approx([size**2] * 3, rel=1e-6)
        assert (height / width).tolist() == pytest.approx([0.5, 1, 2], rel=1e-6)


@pytest.mark.parametrize("patch", [16, 14])
def test_grid_anchors_lie_on_fixed_strides(patch: int) -> None:
    strides = [patch * s for s in (0.25, 0.5, 1, 2, 4)]
    grids = [(13, 21), (7, 11), (4, 6), (2, 3), (1, 2)]
    for grid, stride, anchors, size in zip(grids, strides, grid_anchors(grids, strides), SIZES, strict=True):
        assert anchors.dtype == torch.float32
        assert anchors.shape == (grid[0] * grid[1] * 3, 4)
        row, column, ratio = grid[0] - 1, grid[1] // 2, 2
        height = size * math.sqrt(2)
        x, y = column * stride, row * stride
        wanted = [x - height / 4, y - height / 2, x + height / 4, y + height / 2]
        assert anchors[(row * grid[1] + column) * 3 + ratio].tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_box_coder_is_detectron2s(weights: tuple[float, ...]) -> None:
    """detectron2 `Box2BoxTransform` in numpy; dw and dh are cut at log(1000 / 16)."""
    gen = np.random.default_rng(0)
    corner = gen.uniform(0, 900, (50, 2))
    boxes = np.concatenate([corner, corner + gen.uniform(1, 100, (50, 2))], 1)
    deltas = gen.normal(0, 2, (50, 4)) * weights
    deltas[0, 2:] = 30 * np.array(weights[2:])
    size, centre = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
    moved = deltas[:, :2] / weights[:2] * size + centre
    grown = np.exp(np.minimum(deltas[:, 2:] / weights[2:], math.log(62.5))) * size
    wanted = np.concatenate([moved - grown / 2, moved + grown / 2], 1)
    coder = BoxCoder(weights)
    decoded = coder.decode_single(torch.tensor(deltas), torch.tensor(boxes))
    np.testing.assert_allclose(decoded.numpy(), wanted, rtol=1e-12, atol=1e-9)
    again = coder.encode_single(decoded[1:], torch.tensor(boxes[1:]))
    keep = np.abs(deltas[1:, 2:] / weights[2:]).max(1) < math.log(62.5)
    np.testing.assert_allclose(again.numpy()[keep], deltas[1:][keep], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("positives", "negatives", "count", "fraction", "wanted"),
    [
        (1000, 5000, 256, 0.5, (128, 128)),
        (10, 5000, 256, 0.5, (10, 246)),
        (1000, 5000, 512, 0.25, (128, 384)),
        (1000, 3, 512, 0.25, (128, 3)),
        (0, 5, 512, 0.25, (0, 5)),
    ],
)
def test_sampling_counts(positives: int, negatives: int, count: int, fraction: float, wanted: tuple[int, int]) -> None:
    matched = torch.cat(
        [
            torch.arange(positives),
            torch.full((negatives,), Matcher.BELOW_LOW_THRESHOLD),
            torch.full((50,), Matcher.BETWEEN_THRESHOLDS),
        ]
    )
    chosen = subsample(matched, count, fraction, rng())
    assert tuple(len(c) for c in chosen) == wanted
    assert (matched[chosen[0]] >= 0).all()
    assert (matched[chosen[1]] == Matcher.BELOW_LOW_THRESHOLD).all()
    assert all(len(c.unique()) == len(c) for c in chosen)
    assert all(a.equal(b) for a, b in zip(chosen, subsample(matched, count, fraction, rng()), strict=True))
    if negatives > count:
        assert not chosen[1].equal(subsample(matched, count, fraction, rng(1))[1])


def test_matching_thresholds_low_quality_and_no_objects() -> None:
    matcher = RPN(8, STRIDES, 1, 256).matcher
    gt = torch.tensor([[0.0, 0.0, 10.0, 10.0], [100.0, 100.0, 110.0, 110.0]])
    boxes = torch.tensor(
        [
            [0.0, 0.0, 10.0, 7.0],  # IoU 0.7 with the first: positive
            [0.0, 0.0, 10.0, 6.9],  # 0.69: neither
            [0.0, 0.0, 10.0, 3.0],  # 0.3: neither
            [0.0, 0.0, 10.0, 2.9],  # 0.29: background
            [100.0, 100.0, 102.0, 110.0],  # 0.2, but the best for the second: positive
        ]
    )
    assert match(gt, boxes, matcher).tolist() == [0, -2, -2, -1, 1]
    assert match(gt[:0], boxes, matcher).tolist() == [-1] * 5


def numpy_rpn_losses(
    anchors: Tensor, logits: Tensor, deltas: Tensor, gt: Tensor, normaliser: float
) -> tuple[float, float]:
    """All anchors sampled; anchor k is positive for box k, the rest are background."""
    a, g = anchors.double().numpy(), gt.double().numpy()
    n = len(g)
    z = logits.double().numpy()
    y = np.arange(len(z)) < n
    cls = np.sum(np.logaddexp(0, z) - z * y)
    size, gsize = a[:n, 2:] - a[:n, :2], g[:, 2:] - g[:, :2]
    shift = ((g[:, 2:] + g[:, :2]) - (a[:n, 2:] + a[:n, :2])) / 2 / size
    wanted = np.concatenate([shift, np.log(gsize / size)], 1)
    loc = np.abs(deltas[:n].double().numpy() - wanted).sum()
    return cls / normaliser, loc / normaliser


def test_losses_are_sums_over_the_nominal_sample_size() -> None:
    """With 12 anchors an image cannot fill the 256 samples; the divisor stays 256 times the images. L1, beta 0."""
    torch.manual_seed(0)
    corner = torch.arange(12.0)[:, None] * 50
    anchors = torch.cat([corner, corner, corner + 20, corner + 20], 1)
    gt = [anchors[:3] + torch.tensor([0.5, -0.4, 1.0, 0.8]), anchors[:0]]
    logits, deltas = torch.randn(2, 12), 0.1 * torch.randn(2, 12, 4)
    losses = RPN(8, STRIDES, 1, 256).losses(anchors, logits, deltas, [{"boxes": g} for g in gt], [rng(), rng(1)])
    parts = [numpy_rpn_losses(anchors, logits[i], deltas[i], gt[i], 256 * 2) for i in range(2)]
    assert losses["loss_rpn_cls"].item() == pytest.approx(parts[0][0] + parts[1][0], rel=1e-5)
    assert losses["loss_rpn_loc"].item() == pytest.approx(parts[0][1], rel=1e-5)
    assert parts[1][1] == 0


def spread_boxes(count: int) -> Tensor:
    corner = torch.stack(torch.meshgrid(torch.arange(100.0), torch.arange(100.0), indexing="ij"), -1).reshape(-1, 2)[
        :count
    ]
    return torch.cat([corner * 10, corner * 10 + 8], 1)


@pytest.mark.parametrize(("training", "wanted"), [(True, 1000), (False, 1000)])
def test_proposal_counts(training: bool, wanted: int) -> None:
    """Disjoint boxes survive the NMS: what is left is top-k. The best of the second map comes after 2000 or 1000."""
    rpn = RPN(8, STRIDES, 1, 256).train(training)
    anchors = [spread_boxes(3000), spread_boxes(3000) + 0.25]
    logits = [torch.linspace(10, 5, 3000)[None], torch.linspace(9.999, 0, 3000)[None]]
    (found,) = rpn.propose(anchors, logits, [torch.zeros(1, 3000, 4)] * 2, [(2000, 2000)])
    assert len(found) == wanted
    merged = torch.cat([torch.stack([torch.cat(logits, 1)[0]], 1), torch.cat(anchors)], 1)
    limit = 2000 if training else 1000
    allowed = torch.cat([merged[:limit], merged[3000 : 3000 + limit]])
    best = allowed[allowed[:, 0].argsort(descending=True, stable=True)][:wanted, 1:]
    torch.testing.assert_close(found, best, atol=1e-3, rtol=0)


def test_pre_nms_limit_is_per_map() -> None:
    """1500 copies of one box hide everything under rank 1000 of their map in test, not in training."""
    anchors = spread_boxes(1600)
    anchors[:1500] = anchors[0]
    logits = torch.linspace(5, 1, 1600)[None]
    counts = [
        len(
            RPN(8, STRIDES, 1, 256)
            .train(training)
            .propose([anchors], [logits], [torch.zeros(1, 1600, 4)], [(2000, 2000)])[0]
        )
        for training in (True, False)
    ]
    assert counts == [101, 1]


def test_only_empty_boxes_are_dropped_and_boxes_are_clipped() -> None:
    """torchvision drops sides under 1e-3; detectron2 only boxes of no side."""
    rpn = RPN(8, STRIDES, 1, 256).eval()
    anchors = torch.tensor(
        [[10.0, 10.0, 10.0005, 20.0], [5.0, 5.0, 5.0, 9.0], [90.0, 40.0, 130.0, 70.0], [120.0, 10.0, 140.0, 20.0]]
    )
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    (found,) = rpn.propose([anchors], [logits], [torch.zeros(1, 4, 4)], [(60, 100)])
    torch.testing.assert_close(found, torch.tensor([[10.0, 10.0, 10.0005, 20.0], [90.0, 40.0, 100.0, 60.0]]))


@pytest.mark.parametrize("where", ["logit", "delta"])
def test_non_finite_predictions_are_dropped_and_make_the_loss_nan(where: str) -> None:
    anchors, logits, deltas = spread_boxes(4), torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.zeros(1, 4, 4)
    if where == "logit":
        logits[0, 1] = math.nan
    else:
        deltas[0, 1, 0] = math.inf
    args: Any = ([anchors], [logits], [deltas], [(2000, 2000)])
    (found,) = RPN(8, STRIDES, 1, 256).eval().propose(*args)
    torch.testing.assert_close(found, anchors[[0, 2, 3]])
    targets = [{"boxes": anchors[2:3]}]
    rpn = RPN(8, STRIDES, 1, batch_per_image=1)  # the bad prediction need not be among the sampled ones
    losses = rpn.losses(anchors, logits, deltas, targets, [torch.Generator().manual_seed(0)])
    assert losses["loss_rpn_cls"].isnan()


def test_initialisation_is_detectron2s() -> None:
    torch.manual_seed(0)
    for name, value in RPN(64, STRIDES, 2, 256).named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name
        else:
            assert value.std().item() == pytest.approx(0.01, rel=0.1), name
