"""UperNet on Swin against mmsegmentation's own: its SwinTransformer, norms and heads, with the same weights.

As configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py there, but small. Its
tools/model_converters/swin2mmseg.py says how the parameters of Swin's code, which are timm's, are named and ordered.
"""

import io
import re
import warnings
from contextlib import redirect_stdout
from typing import Any

import pytest
import timm
import torch
from support.ade20k_reference import CLASSES, shake
from timm.models import swin_transformer
from torch import Tensor

from mae_transfer.backbones.load import load_backbone
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.ade20k.protocols.upernet import build_upernet, import_heads

SIZE, CHANNELS, AUX = 512, 32, 16
WIDTH, DEPTHS, HEADS, WINDOW = 24, (2, 2, 2, 2), (1, 2, 4, 8), 7
RENAMED = (
    (r"^backbone\.norm(\d)\.", r"pyramid.norms.\1."),
    (r"^backbone\.patch_embed\.projection\.", "encoder.model.patch_embed.proj."),
    (r"^backbone\.stages\.", "encoder.model.layers."),
    (r"^backbone\.", "encoder.model."),
    (r"\.w_msa\.", "."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)


def small_swin() -> str:
    """The name of a Swin of the sizes above, known to timm."""
    sizes = {"embed_dim": WIDTH, "depths": DEPTHS, "num_heads": HEADS, "window_size": WINDOW, "patch_size": 4}

    def swin_of_a_test(pretrained: bool = False, **options: Any) -> Any:
        make = swin_transformer._create_swin_transformer
        return make("swin_tiny_patch4_window7_224", pretrained=pretrained, **{**sizes, **options})

    swin_of_a_test.__module__ = swin_transformer.__name__
    swin_transformer.swin_of_a_test = swin_of_a_test
    timm.models.register_model(swin_of_a_test)
    return "timm:swin_of_a_test"


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
            backbone={
                "type": "SwinTransformer",
                "pretrain_img_size": 224,
                "embed_dims": WIDTH,
                "patch_size": 4,
                "window_size": WINDOW,
                "mlp_ratio": 4,
                "depths": list(DEPTHS),
                "num_heads": list(HEADS),
                "strides": (4, 2, 2, 2),
                "out_indices": (0, 1, 2, 3),
                "qkv_bias": True,
                "patch_norm": True,
                "drop_path_rate": 0.3,
                "use_abs_pos_embed": False,
                "act_cfg": {"type": "GELU"},
                "norm_cfg": {"type": "LN", "requires_grad": True},
            },
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


def our_state(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their weights by our names, `correct_unfold_*_order` of the converter undone; a stage's downsampling begins the
    next stage in timm."""
    found = {}
    for key, tensor in theirs.items():
        if key.endswith("relative_position_index"):
            continue
        if ".downsample." in key:  # their channels are those of nn.Unfold: channel, row, column
            last = tensor.unflatten(-1, (-1, 2, 2))
            tensor = last.movedim(-1, -3).movedim(-1, -2).flatten(-3)  # column, row, channel
            key = re.sub(r"stages\.(\d)\.", lambda m: f"stages.{int(m[1]) + 1}.", key)
        for old, new in RENAMED:
            key = re.sub(old, new, key)
        found[key] = tensor
    return found


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
    ours.load_state_dict(our_state(theirs.state_dict()), strict=True)
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
