"""UperNet on Swin against mmsegmentation's own: its SwinTransformer, norms and heads, with the same weights."""

import io
import warnings
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch
from support.ade20k_reference import CLASSES, shake
from support.swin_reference import BACKBONE, WIDTH, our_state, small_swin

from mae_transfer.backbones.load import load_backbone
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.ade20k.protocols.upernet import build_upernet, import_heads

SIZE, CHANNELS, AUX = 512, 32, 16


def mmsegmentations() -> Any:
    import_heads()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from mmengine import ConfigDict
        from mmseg.models import EncoderDecoder, SegDataPreProcessor

        norm, widths = {"type": "SyncBN", "requires_grad": True}, [WIDTH * 2**i for i in range(4)]
        head = {"num_classes": CLASSES, "norm_cfg": norm, "align_corners": False, "dropout_ratio": 0.1}
        loss = {"type": "CrossEntropyLoss", "use_sigmoid": False}
        return EncoderDecoder(
            backbone={"type": "SwinTransformer", **BACKBONE},
            decode_head={
                "type": "UPerHead",
                "in_channels": widths,
                "in_index": [0, 1, 2, 3],
                "pool_scales": (1, 2, 3, 6),
                "channels": CHANNELS,
                "loss_decode": {**loss, "loss_weight": 1.0},
                **head,
            },
            auxiliary_head={
                "type": "FCNHead",
                "in_channels": 4 * WIDTH,
                "in_index": 2,
                "channels": AUX,
                "num_convs": 1,
                "concat_input": False,
                "loss_decode": {**loss, "loss_weight": 0.4},
                **head,
            },
            data_preprocessor=SegDataPreProcessor(),
            test_cfg=ConfigDict(mode="whole"),
        ).eval()


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    """Ours and theirs with the same weights."""
    name = small_swin()
    overrides = [
        f"data.image_size={SIZE}",
        "eval.stride=64",
        f"model.head_channels={CHANNELS}",
        f"model.aux_channels={AUX}",
    ]
    config = load_config("ade20k", name, overrides=overrides)
    ours = build_upernet(load_backbone(name, weights="random", img_size=SIZE), CLASSES, config).eval()
    theirs = mmsegmentations()
    shake(theirs, torch.Generator().manual_seed(1))
    state = theirs.state_dict()
    backbone = {key.removeprefix("backbone."): x for key, x in state.items() if key.startswith("backbone.")}
    heads = {key: x for key, x in state.items() if not key.startswith("backbone.")}
    ours.load_state_dict(our_state(backbone, "pyramid.norms") | heads, strict=True)
    return ours, theirs


@pytest.mark.parametrize("size", [(SIZE, SIZE), (416, 544), (96, 160)], ids=str)
def test_logits_equal_mmsegmentations(both: tuple[Any, Any], size: tuple[int, int]) -> None:
    """Last maps of 16x16, of 13x17, and of 3x5, which is less than a window: none is a multiple of it."""
    ours, theirs = both
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        maps = theirs.extract_feat(images)
        for mine, other in zip(ours.pyramid(ours.encoder(images)), maps, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
        expected = theirs.encode_decode(images, [{"img_shape": images.shape[2:]}])
        actual = ours.logits(images)
        auxiliary = ours.auxiliary_head(ours.pyramid(ours.encoder(images)))
        torch.testing.assert_close(auxiliary, theirs.auxiliary_head(maps), rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
