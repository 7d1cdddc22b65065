"""Which MLPs of an encoder keep less in training."""

import pytest
import torch
from timm.layers import Mlp
from torch import nn

from mae_transfer.backbones.lean_mlp import LeanMlp, make_lean
from mae_transfer.backbones.load import load_backbone


@pytest.mark.parametrize("name", ["random_vit_nano", "timm:vit_tiny_patch16_224", "timm:vit_small_patch16_rope_224"])
def test_encoders_of_exact_gelu_have_it(name: str) -> None:
    encoder = load_backbone(name, weights="random", img_size=32)
    mlps = [module for module in encoder.modules() if isinstance(module, Mlp)]
    assert len(mlps) == encoder.depth
    assert {type(mlp) for mlp in mlps} == {LeanMlp}


def test_others_stay_as_they_are() -> None:
    others = [
        Mlp(4, act_layer=nn.SiLU),
        Mlp(4, act_layer=lambda: nn.GELU(approximate="tanh")),
        Mlp(4, norm_layer=nn.LayerNorm),
        Mlp(4, drop=0.1),
        Mlp(4, bias=False),
        Mlp(4, use_conv=True),
    ]
    model = nn.ModuleList([*others, Mlp(4)])
    make_lean(model)
    assert [type(module) for module in model] == [Mlp] * len(others) + [LeanMlp]
    with pytest.raises(AssertionError, match="of exact GELU only"):
        LeanMlp(4, act_layer=nn.SiLU)


def test_frozen_weights_and_inputs_get_what_timms_get() -> None:
    torch.manual_seed(0)
    theirs, ours = Mlp(8), Mlp(8)
    ours.load_state_dict(theirs.state_dict())
    make_lean(ours)
    x = torch.randn(3, 8)
    for frozen in (True, False):
        gradients = []
        for mlp in (theirs, ours):
            mlp.requires_grad_(not frozen).zero_grad()
            given = x.clone().requires_grad_(frozen)
            mlp(given).square().sum().backward()
            gradients.append([given.grad, *(parameter.grad for parameter in mlp.parameters())])
        for mine, other in zip(*gradients, strict=True):
            assert (mine is None) == (other is None)
            assert mine is None or torch.equal(mine, other)
    assert not ours.requires_grad_(False)(x).requires_grad
