"""What is the same for all encoders."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mae_transfer.backbones import registry
from mae_transfer.backbones.encoder import Encoder
from mae_transfer.backbones.grid import grid_of
from mae_transfer.errors import UserError

SPEC = registry.find("random_vit_b")


def test_normalisation_is_that_of_torchvision_and_leaves_the_images_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(SPEC.mean, SPEC.std)])
    encoder = Encoder(SPEC, None, None, 224)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    expected = reference(Image.fromarray(pixels))
    torch.testing.assert_close(encoder.normalise(images)[0], expected, rtol=0, atol=2e-6)
    as_floats = images.float()
    encoder.normalise(as_floats)
    assert torch.equal(as_floats, images.float())
    assert not encoder.state_dict()


def test_one_channel():
    encoder = Encoder(dataclasses.replace(SPEC, mean=(0.5,), std=(0.25,)), None, None, 224)
    assert encoder.normalise(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)).unique().tolist() == [2.0]


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (50, {}, "image size 50 is no multiple of the patch 16 of x; use 48 or 64"),
        ((32, 50), {}, "image size 32x50 is no multiple of the patch 16 of x; use 32x48 or 32x64"),
        (10, {"what": "data.image_size="}, "data.image_size=10 is no multiple of the patch 16 of x; use 16"),
        (16, {"least": 2}, "image size 16 is no multiple of the patch 16 of x, at least 2 of them; use 32"),
        (50, {"hint": ", or not"}, "use 48 or 64, or not"),
    ],
)
def test_sizes_that_do_not_fit_the_patch(size, options, message):
    with pytest.raises(UserError) as error:
        grid_of(size, 16, "x", **options)
    assert str(error.value).endswith(message)


def test_sizes_that_fit():
    assert grid_of(64, 16, "x") == (4, 4)
    assert grid_of((32, 64), 16, "x", least=2) == (2, 4)
