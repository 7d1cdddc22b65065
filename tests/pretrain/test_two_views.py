"""The two views of MoCo v3 against the released code's operations, with the draws written down beside them."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from support.pretraining import resolve_pretrain
from torchvision.transforms import functional as pillow

from mae_transfer.pretrain import two_views
from mae_transfer.pretrain.views import Views


def config_of(*overrides: str):
    return resolve_pretrain("mocov3", "vit_nano_p8", data="synthetic", overrides=["data.image_size=32", *overrides])


IMAGE = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Draws:
    """numpy's generator, which writes down what it gave."""

    def __init__(self, seed: int) -> None:
        self.rng, self.found = np.random.default_rng(seed), []

    def __getattr__(self, name: str):
        def draw(*args):
            self.found.append(getattr(self.rng, name)(*args))
            return self.found[-1]

        return draw


def moco(picture: Image.Image, draws: list, blur: float, solarize: float) -> tuple[Image.Image, set[str]]:
    """main_moco.py's augmentation1 or 2 after its crop and before its flip; the names of the operations that came."""
    left, names = list(draws), set()
    if left.pop(0) < 0.8:
        names.add("jitter")
        for place in left.pop(0):
            factor = left.pop(0)
            low, high = [(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)][place]
            assert low <= factor <= high
            kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
            picture = pillow.adjust_hue(picture, factor) if place == 3 else kinds[place](picture).enhance(factor)
    if left.pop(0) < 0.2:
        names.add("grey")
        picture = pillow.to_grayscale(picture, num_output_channels=3)
    if left.pop(0) < blur:
        names.add("blur")
        assert 0.1 <= left[0] <= 2.0
        picture = picture.filter(ImageFilter.GaussianBlur(radius=left.pop(0)))
    if left.pop(0) < solarize:
        names.add("solarize")
        picture = ImageOps.solarize(picture)
    assert left == []
    return picture, names


@pytest.mark.parametrize(
    ("kind", "blur", "solarize"), [(two_views.FIRST_VIEW, 1.0, 0.0), (two_views.SECOND_VIEW, 0.1, 0.2)]
)
def test_distortions_are_the_released_codes(kind, blur: float, solarize: float) -> None:
    picture = pillow.to_pil_image(IMAGE)
    seen: list[str] = []
    for seed in range(300):
        draws = Draws(seed)
        found = two_views.distort(picture, kind, draws)
        expected, names = moco(picture, draws.found, blur, solarize)
        seen += names
        if seed < 40:
            assert found.tobytes() == expected.tobytes()
    for name, share in (("jitter", 0.8), ("grey", 0.2), ("blur", blur), ("solarize", solarize)):
        assert seen.count(name) / 300 == pytest.approx(share, abs=4 * (share * (1 - share) / 300) ** 0.5), name


def test_a_view_is_a_bilinear_crop_then_distorted_then_flipped() -> None:
    views = two_views.TwoViews(config_of("data.flip=1", "data.augmentation=crop"))
    draws = Draws(3)
    sample = views.train(IMAGE, draws)
    crops = [draws.found[i : i + 4] for i in range(0, len(draws.found), 5)]  # area, ratio, top, left; then the flip
    assert len(draws.found) == 10
    whole = pillow.to_pil_image(IMAGE)
    for name, (share, log_ratio, top, left) in zip(("image", "second"), crops, strict=True):
        assert 0.08 <= share <= 1
        width = round((50 * 60 * share * np.exp(log_ratio)) ** 0.5)
        height = round((50 * 60 * share / np.exp(log_ratio)) ** 0.5)
        view = whole.crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BILINEAR)
        expected = np.asarray(view).transpose(2, 0, 1)[:, :, ::-1].astype(int)
        assert abs(sample[name].numpy().astype(int) - expected).max() <= 1  # torch rounds otherwise than Pillow


def test_full_and_crop_differ_in_the_views_alone() -> None:
    """The same settings but for the option. `crop` draws for crop and flip and for nothing else."""
    full, crop = (config_of(f"data.augmentation={kind}") for kind in ("full", "crop"))
    assert crop.model_copy(update={"data": full.data}) == full
    assert {name for name, value in full.data if value != getattr(crop.data, name)} == {"augmentation"}
    samples = [two_views.TwoViews(config).train(IMAGE, np.random.default_rng(0)) for config in (full, crop)]
    assert samples[0].keys() == samples[1].keys() == {"image", "second"}
    assert not torch.equal(samples[0]["image"], samples[1]["image"])
    assert not torch.equal(samples[1]["image"], samples[1]["second"])


def test_evaluation_has_the_centre_crop_and_one_fixed_view() -> None:
    config = config_of()
    views = two_views.TwoViews(config)
    first, again, other = (views.test(IMAGE, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first["image"], Views(config).test(IMAGE, np.random.default_rng(0))["image"])
    assert torch.equal(first["image"], other["image"])
    assert torch.equal(first["second"], again["second"])
    assert not torch.equal(first["second"], other["second"])
    assert first["second"].shape == (3, 32, 32)


def test_other_channels_have_crops_alone() -> None:
    grey = ("data.channels=5", f"data.mean={[0.5] * 5}", f"data.std={[0.2] * 5}", "data.augmentation=crop")
    sample = two_views.TwoViews(config_of(*grey)).train(IMAGE[[0, 1, 2, 0, 1]], np.random.default_rng(0))
    assert sample["second"].shape == (5, 32, 32)
