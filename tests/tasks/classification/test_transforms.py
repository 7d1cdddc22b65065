"""Test and training transforms against MAE's on Pillow; what a sample depends on."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms.v2 import functional as F

from mae_transfer.data.synthetic.classification import draw
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.transforms import EvalTransform, TrainTransform

MEAN = (0.485, 0.456, 0.406)
POLICY = "rand-m9-mstd0.5-inc1"


def config(*overrides: str) -> ClassificationConfig:
    loaded = load_config("folder", "random_vit_nano", overrides=list(overrides))
    assert isinstance(loaded, ClassificationConfig)
    return loaded


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return draw(seed % 5, height, width, np.random.default_rng(seed))


def tensor(image: Image.Image) -> torch.Tensor:
    return F.pil_to_tensor(image)


@pytest.mark.parametrize("size", [224, 64, 448])
@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (100, 333), (256, 256), (60, 40)])
def test_evaluation_is_that_of_mae(size: int, shape: tuple[int, int]) -> None:
    """facebookresearch/mae util/datasets.py build_transform, on Pillow: equal to one grey level."""
    resized = int(size / (224 / 256)) if size <= 224 else size
    reference = v1.Compose(
        [v1.Resize(resized, interpolation=v1.InterpolationMode.BICUBIC), v1.CenterCrop(size), v1.PILToTensor()]
    )
    image = picture(*shape)
    ours = EvalTransform(config(f"data.image_size={size}"))(tensor(image))
    difference = (ours.int() - reference(image).int()).abs()
    assert ours.shape == (3, size, size)
    assert difference.max() <= 1
    assert difference.float().mean() < 0.05


def test_of_a_strip_only_the_middle_is_resized() -> None:
    """1 x 30000 pixels would be 256 x 7.7 million first; the middle has the colours that it has in the strip."""
    strip = torch.arange(30000).div(30000 / 256, rounding_mode="floor").to(torch.uint8).expand(3, 1, -1)
    found = EvalTransform(config("data.image_size=224"))(strip)
    assert found.shape == (3, 224, 224)
    assert set(found.unique().tolist()) <= {127, 128}
    image = tensor(picture(10, 200))
    middle = EvalTransform(config("data.image_size=64"))(image)
    whole = EvalTransform(config("data.image_size=64"))(image[..., 45:155])
    assert (middle.int() - whole.int()).abs().float().mean() < 3, "as of any part that is long enough"


def test_a_sample_depends_on_its_generator_alone_and_leaves_the_global_ones() -> None:
    transform = TrainTransform(config(f"data.randaugment={POLICY}", "data.image_size=64"), MEAN)
    image = tensor(picture(80, 100))

    def sample(seed: int, globals_seed: int) -> torch.Tensor:
        random.seed(globals_seed)
        np.random.seed(globals_seed)
        before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
        result = transform(image, np.random.default_rng(seed))
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index, union-attr]
        return result

    assert torch.equal(sample(1, 1), sample(1, 2))
    assert not torch.equal(sample(1, 1), sample(2, 1))
    assert sample(1, 1).dtype == torch.uint8
    assert sample(1, 1).shape == (3, 64, 64)


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    plain = config("data.crop=center", "data.flip=0", "data.randaugment=null", "data.image_size=64")
    assert not plain.data.augments
    image = tensor(picture(80, 100))
    assert torch.equal(TrainTransform(plain, MEAN)(image, np.random.default_rng(0)), EvalTransform(plain)(image))
    assert config().data.augments


def test_flips_are_as_often_as_asked() -> None:
    flips = config("data.crop=center", "data.flip=0.25", "data.randaugment=null", "data.image_size=16")
    transform, image = TrainTransform(flips, MEAN), tensor(picture(20, 20))
    plain = EvalTransform(flips)(image)
    flipped = 0
    for seed in range(2000):
        result = transform(image, np.random.default_rng(seed))
        is_plain = torch.equal(result, plain)
        assert is_plain or torch.equal(result, plain.flip(-1))
        flipped += not is_plain
    assert flipped / 2000 == pytest.approx(0.25, abs=0.04)
