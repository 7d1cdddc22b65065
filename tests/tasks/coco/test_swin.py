"""Mask R-CNN on Swin: what its FPN reads, and how its parameters are grouped, against OpenMMLab's own."""

import io
import warnings
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch
from support.ade20k_reference import shake
from support.swin_reference import BACKBONE, DEPTHS, our_name, our_state, small_swin
from torch import Tensor, nn
from torch.nn import functional as F

from mae_transfer.backbones.load import load_backbone
from mae_transfer.engine.optim import param_groups
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.ade20k.protocols.upernet import import_heads
from mae_transfer.tasks.coco.model import build_mask_rcnn

LARGEST, SIDE = 300, 320
"""The longest side of an image, and that of the square it is padded to. No map of that is a multiple of the window, and
the last, of 10 x 10, is larger than one."""
SIZES = ((201, 300), (300, 170))
OVERRIDES = [f"data.image_size={LARGEST}", "model.fpn_channels=16", "model.head_channels=16"]
NORMS = "pyramid.stages.norms"
DECAY = 0.7


def mmdetections() -> nn.Module:
    """The backbone of mmdetection's configs/swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py, from mmsegmentation."""
    import_heads()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from mmseg.models.backbones import SwinTransformer

        model: nn.Module = SwinTransformer(**BACKBONE)
    model.eval()
    return model


def detector(*overrides: str) -> tuple[Any, Any]:
    """Ours, and its configuration."""
    config: Any = load_config("coco", name := small_swin(), overrides=[*OVERRIDES, *overrides])
    encoder = load_backbone(name, weights="random", img_size=SIDE)
    return build_mask_rcnn(encoder, 3, config).eval(), config


@pytest.fixture(scope="module")
def both() -> tuple[Any, nn.Module]:
    """Ours and theirs with the same weights."""
    (ours, _), theirs = detector(), mmdetections()
    shake(theirs, torch.Generator().manual_seed(1))
    missing, unexpected = ours.load_state_dict(our_state(theirs.state_dict(), NORMS), strict=False)
    assert not unexpected
    assert not [key for key in missing if key.startswith(("encoder.model.", "pyramid.stages."))]
    return ours, theirs


def test_the_fpn_reads_mmdetections_maps(both: tuple[Any, nn.Module]) -> None:
    """During the detector's own forward pass, of images that are padded at their right and lower side."""
    ours, theirs = both
    generator = torch.Generator().manual_seed(2)
    images = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in SIZES]
    read: list[Tensor] = []
    hook = ours.pyramid.fpn.register_forward_pre_hook(lambda _, inputs: read.extend(inputs[0].values()))
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    padded = [F.pad((x / 255 - mean) / std, (0, SIDE - x.shape[2], 0, SIDE - x.shape[1])) for x in images]
    with torch.no_grad():
        ours({"images": images, "file_names": ["a.jpg", "b.jpg"], "sizes": SIZES})
        expected = theirs(torch.stack(padded))
    hook.remove()
    assert [SIDE // x.shape[2] for x in read] == [4, 8, 16, 32]
    for mine, other in zip(read, expected, strict=True):
        assert other.std() > 0.1
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_weight_decay_is_mmdetections() -> None:
    """Its configuration: no decay of names with `absolute_pos_embed`, `relative_position_bias_table`, `norm`."""
    ours, config = detector()
    theirs = mmdetections()
    free = ("absolute_pos_embed", "relative_position_bias_table", "norm")
    expected = {our_name(key, NORMS): not any(part in key for part in free) for key, _ in theirs.named_parameters()}
    groups = param_groups(ours, config.optim)
    decays = {name: bool(group["weight_decay"]) for group in groups for name in group["names"]}
    assert {name: decays[name] for name in expected} == expected
    assert {group["lr_scale"] for group in groups} == {1.0}


def test_layer_decay_counts_blocks() -> None:
    """The patch embedding is layer 0, then come the blocks of all stages; what follows the encoder is not scaled.

    A downsampling is of the layer of the first block after it: it begins that stage.
    """
    ours, config = detector(f"optim.layer_decay={DECAY}")
    scales = {name: group["lr_scale"] for group in param_groups(ours, config.optim) for name in group["names"]}
    last = sum(DEPTHS) + 1
    for name, scale in scales.items():
        parts = name.removeprefix("encoder.model.").split(".")
        if not name.startswith("encoder."):
            layer = last
        elif parts[0] == "patch_embed":
            layer = 0
        else:
            stage = int(parts[1])
            layer = 1 + sum(DEPTHS[:stage]) + (int(parts[3]) if parts[2] == "blocks" else 0)
        assert scale == pytest.approx(DECAY ** (last - layer)), name
