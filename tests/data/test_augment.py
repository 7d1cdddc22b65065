"""Crops and resizing against torchvision's on Pillow images, RandAugment against timm's own, MAE's crop by formula."""

import contextlib
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_train
from torchvision import transforms as v1
from torchvision.transforms.v2 import functional as F

from mae_transfer.data.augment import draw_crop, draw_single_crop, make_randaugment, posterize, resize
from mae_transfer.data.synthetic.classification import draw
from mae_transfer.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POLICY = "rand-m9-mstd0.5-inc1"


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return draw(seed % 5, height, width, np.random.default_rng(seed))


def tensor(image: Image.Image) -> torch.Tensor:
    return F.pil_to_tensor(image)


class Scripted:
    """Draws of numpy's generator and of torch's, from one list: a draw is a share of its range."""

    def __init__(self, shares: list[float]) -> None:
        self.shares = iter(shares)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * next(self.shares)

    def integers(self, bound: int) -> int:
        return int(next(self.shares) * bound)


@pytest.mark.parametrize("box", [(0, 0, 375, 500), (17, 33, 200, 150), (100, 3, 50, 400)])
def test_a_resized_crop_is_that_of_pillow(box: tuple[int, int, int, int]) -> None:
    top, left, height, width = box
    image = picture(375, 500, seed=3)
    reference = image.crop((left, top, left + width, top + height)).resize((224, 224), Image.Resampling.BICUBIC)
    ours = resize(tensor(image)[:, top : top + height, left : left + width], 224, 224)
    assert (ours.int() - tensor(reference).int()).abs().max() <= 1


@pytest.mark.parametrize("shape", [(375, 500), (50, 600), (600, 50)])
def test_crops_are_drawn_as_torchvision_draws_them(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same shares of each range give the same box, also where all ten tries fail and the centre is taken."""
    generator = np.random.default_rng(0)
    fallbacks = 0
    for _ in range(200):
        shares = generator.random(40).tolist()
        ours = draw_crop(*shape, 0.08, Scripted(shares))  # type: ignore[arg-type]
        reference = Scripted(shares)
        monkeypatch.setattr(
            torch.Tensor, "uniform_", lambda t, a, b, r=reference: t.fill_(r.uniform(float(a), float(b)))
        )
        monkeypatch.setattr(torch, "randint", lambda low, high, size, r=reference: torch.tensor([r.integers(high)]))
        blank = torch.empty(3, *shape)
        theirs = v1.RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3])
        monkeypatch.undo()
        assert ours == tuple(theirs)
        fallbacks += ours[2:] == (min(shape[0], round(shape[1] * 4 / 3)), min(shape[1], round(shape[0] * 4 / 3)))
    assert (fallbacks > 0) == (max(shape) / min(shape) > 4)


def test_single_crops_are_cut_to_the_image_as_in_mae() -> None:
    """util/crop.py: one try, width and height cut to the image, then placed; never the centre by rule."""
    generator = np.random.default_rng(1)
    for _ in range(300):
        area, ratio, top, left = generator.random(4).tolist()
        box = draw_single_crop(100, 400, 0.08, Scripted([area, ratio, top, left]))  # type: ignore[arg-type]
        target = 40000 * (0.08 + 0.92 * area)
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * ratio)
        width, height = min(round(math.sqrt(target * aspect)), 400), min(round(math.sqrt(target / aspect)), 100)
        assert box == (int(top * (100 - height + 1)), int(left * (400 - width + 1)), height, width)


def test_randaugment_is_timms_own_policy() -> None:
    """The same operations with the same settings, and the same pixels from the same state of the generators."""
    augment = make_randaugment(POLICY, 224, MEAN)
    reference = transforms_imagenet_train(
        224, auto_augment=POLICY, interpolation="bicubic", mean=MEAN, std=STD, separate=True
    )[1].transforms[0]
    assert repr(augment) == repr(reference)
    assert [vars(op) | {"aug_fn": op.aug_fn.__name__} for op in augment.ops] == [
        vars(op) | {"aug_fn": op.aug_fn.__name__} for op in reference.ops
    ]
    image = picture(224, 224, seed=2)
    for seed in range(40):
        results = []
        for policy in (augment, reference):
            random.seed(seed)
            np.random.seed(seed)
            with contextlib.suppress(ValueError):  # of Pillow 13, which refuses to keep 0 bits
                results.append(np.asarray(policy(image)))
        assert len(results) == 1 or (results[0] == results[1]).all()
        assert len(results) == 2 or policy is reference


def test_no_bits_are_black_as_pillow_had_it_before_13() -> None:
    image = picture(8, 8)
    assert not np.asarray(posterize(image, 0)).any()
    for bits in range(1, 9):
        assert (np.asarray(posterize(image, bits)) == (np.asarray(image) & (256 - 2 ** (8 - bits)))).all()


def test_an_unknown_policy_is_one_line() -> None:
    for policy in ("augmix-m3", "nonsense"):
        with pytest.raises(UserError, match=f"data.randaugment={policy}") as caught:
            make_randaugment(policy, 224, MEAN)
        assert "\n" not in str(caught.value)
