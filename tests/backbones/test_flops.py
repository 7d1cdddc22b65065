"""The closed form of an encoder's operations against torch's counter."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ViT_B_16_Weights

from mae_transfer.backbones.flops import encoder_flops
from mae_transfer.backbones.load import load_backbone


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("random_vit_nano", {"img_size": 64}),
        ("random_vit_nano", {"img_size": (64, 96)}),
        ("random_vit_nano", {"img_size": 128, "taps": (0, 2)}),
        ("random_vit_nano", {"img_size": 128, "window_size": 3}),
        ("random_vit_ti", {"img_size": 64}),
        ("timm:vit_small_patch14_reg4_dinov2", {"img_size": 56}),
        ("timm:vit_small_patch16_18x2_224", {"img_size": 32}),
    ],
)
def test_closed_form_is_what_torch_counts(name: str, options: dict[str, Any]) -> None:
    encoder = load_backbone(name, weights="random", **options).eval()
    height, width = (side * encoder.patch_size for side in encoder.global_grid)
    # of the kernels torch's counter knows the plain one alone, on a CPU
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 3, height, width))
    assert encoder_flops(encoder) == counter.get_total_flops()


def test_relative_positions_are_not_counted() -> None:
    """Their sums are no product; the counter does not see the products of `bias_attention`."""
    one, other = (
        load_backbone("random_vit_nano", weights="random", img_size=128, window_size=4, rel_pos=rel_pos)
        for rel_pos in (True, False)
    )
    assert encoder_flops(one) == encoder_flops(other)


def test_vit_b_has_the_operations_that_torchvision_states() -> None:
    """In 10^9 multiply-adds, with a classifier of 1000 classes."""
    encoder = load_backbone("random_vit_b", weights="random", img_size=224)
    stated = ViT_B_16_Weights.IMAGENET1K_V1.meta["_ops"]
    assert encoder_flops(encoder) / 2e9 == pytest.approx(stated, rel=0.005)
