"""Mask targets against pycocotools and mask pasting against a direct bilinear formula."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mae_transfer.tasks.coco.detector.mask_targets import mask_targets
from mae_transfer.tasks.coco.detector.paste import encode_bitmaps, paste_masks


def random_polygons(gen: np.random.Generator, parts: int) -> list[np.ndarray]:
    polygons = []
    for _ in range(parts):
        angle = np.sort(gen.uniform(0, 2 * np.pi, 9))
        radius = gen.uniform(5, 60, 9)
        polygons.append(
            (np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1) + gen.uniform(40, 160, 2)).ravel()
        )
    return polygons


def test_polygon_targets_are_pycocotools() -> None:
    gen = np.random.default_rng(0)
    masks = [random_polygons(gen, parts) for parts in (1, 2, 3, 1, 1)]
    matched = torch.from_numpy(gen.integers(0, 5, 60))
    corner = gen.uniform(0, 120, (60, 2))
    boxes = torch.from_numpy(np.concatenate([corner, corner + gen.uniform(2, 90, (60, 2))], 1).astype(np.float32))
    # A box thinner than the 0.1 px that bounds the scale: the polygon's edge, 0.05 px inside it, falls on column 14.
    masks.append([np.array([10.05, 0, 60, 0, 60, 100, 10.05, 100])])
    matched[0], boxes[0] = 5, torch.tensor([10.0, 20.0, 10.02, 60.0])
    found = mask_targets(masks, matched, boxes, 28)
    assert found.dtype == torch.float32
    assert found.unique().tolist() == [0, 1]
    assert found[0].any()
    for k, (x0, y0, x1, y1) in enumerate(boxes.double().tolist()):
        scale = np.array([28 / max(x1 - x0, 0.1), 28 / max(y1 - y0, 0.1)])
        moved = [((p.reshape(-1, 2) - [x0, y0]) * scale).ravel().tolist() for p in masks[matched[k]]]
        wanted = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, 28, 28)))
        assert np.array_equal(found[k].numpy(), wanted), k


def test_bitmap_targets_are_cell_majorities() -> None:
    """Boxes over whole pixels, 2 x 3 of them per cell: a cell is set when at least half of its pixels are."""
    gen = np.random.default_rng(1)
    bitmaps = [gen.integers(0, 2, (100, 100)).astype(np.uint8) for _ in range(3)]
    boxes = torch.tensor([[7.0, 4.0, 63.0, 88.0], [20.0, 10.0, 76.0, 94.0]])
    found = mask_targets(bitmaps, torch.tensor([2, 0]), boxes, 28)
    for k, (bitmap, (x, y)) in enumerate([(bitmaps[2], (7, 4)), (bitmaps[0], (20, 10))]):
        cells = bitmap[y : y + 84, x : x + 56].reshape(28, 3, 28, 2).mean((1, 3))
        assert np.array_equal(found[k].numpy(), cells >= 0.5)


def test_polygons_and_bitmaps_in_one_image_and_no_boxes() -> None:
    gen = np.random.default_rng(2)
    polygons, bitmap = random_polygons(gen, 1), np.zeros((200, 200), np.uint8)
    bitmap[50:100] = 1
    boxes = torch.tensor([[0.0, 0.0, 200.0, 200.0]] * 3)
    found = mask_targets([polygons, bitmap], torch.tensor([1, 0, 1]), boxes, 28)
    assert found[0].equal(mask_targets([bitmap], torch.tensor([0]), boxes[:1], 28)[0])
    assert found[1].equal(mask_targets([polygons], torch.tensor([0]), boxes[:1], 28)[0])
    assert found[2].equal(found[0])
    assert mask_targets([], torch.zeros(0, dtype=torch.int64), boxes[:0], 28).shape == (0, 28, 28)


@pytest.mark.parametrize("size", [(90, 130), (20, 35)])
def test_pasting_samples_at_pixel_centres(size: tuple[int, int]) -> None:
    gen = np.random.default_rng(3)
    masks = gen.uniform(0, 1, (12, 28, 28))
    corner = gen.uniform(-5, 15, (12, 2))
    boxes = np.concatenate([corner, corner + gen.uniform(0.3, 100, (12, 2))], 1)
    boxes[0] = [0, 0, size[1], size[0]]
    boxes[1] = [3.2, 4.1, 3.9, 4.3]  # holds no pixel's centre
    found = paste_masks(torch.from_numpy(masks), torch.from_numpy(boxes), size).numpy()
    for mask, (x0, y0, x1, y1), image in zip(masks, boxes, found, strict=True):
        u = (np.arange(size[1]) + 0.5 - x0) / (x1 - x0) * 28 - 0.5
        v = (np.arange(size[0]) + 0.5 - y0) / (y1 - y0) * 28 - 0.5
        wx = np.maximum(0, 1 - np.abs(u[:, None] - np.arange(28)))
        wy = np.maximum(0, 1 - np.abs(v[:, None] - np.arange(28)))
        value = wy @ mask @ wx.T
        clear = np.abs(value - 0.5) > 1e-5
        assert np.array_equal(image[clear], (value >= 0.5)[clear])
        assert clear.mean() > 0.99
    assert not found[1].any()


def test_pasting_nothing() -> None:
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (30, 40)).shape == (0, 30, 40)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (30, 40)])
def test_encodings_are_pycocotools(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(8, *size, generator=generator) < torch.linspace(0, 1, 8)[:, None, None]
    assert not masks[0].any()
    assert masks[-1].all()
    masks[3, 0, 0] = masks[4, -1, -1] = True  # the run that begins an image, and the one that ends it
    columns = masks.permute(1, 2, 0).numpy().astype(np.uint8)
    assert encode_bitmaps(masks) == coco_mask.encode(np.asfortranarray(columns))
    assert encode_bitmaps(masks[:0]) == []
