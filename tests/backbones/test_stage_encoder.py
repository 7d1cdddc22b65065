"""Hierarchical encoders of timm: the maps of timm's own model, layers as timm groups them, weights back and forth."""

from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from mae_transfer.backbones.load import load_backbone
from mae_transfer.backbones.stage_encoder import StageEncoder
from mae_transfer.backbones.timm_stages import CLASSES
from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.config.sections import OptimConfig
from mae_transfer.engine.optim import param_groups
from mae_transfer.errors import UserError

ONE_OF_EACH = {
    "SwinTransformer": "swin_s3_tiny_224",
    "SwinTransformerV2": "swinv2_tiny_window8_256",
    "SwinTransformerV2Cr": "swinv2_cr_tiny_ns_224",
    "Hiera": "hiera_tiny_224",
    "HieraDet": "sam2_hiera_tiny",
    "ConvNeXt": "convnextv2_atto",
    "PyramidVisionTransformerV2": "pvt_v2_b0",
    "DaVit": "davit_tiny",
    "FocalNet": "focalnet_tiny_srf",
    "MetaFormer": "poolformer_s12",
    "EdgeNeXt": "edgenext_xx_small",
    "MambaOut": "mambaout_femto",
}


def encoder_of(name: str, **options: object) -> StageEncoder:
    encoder = load_backbone(f"timm:{name}", **options)  # type: ignore[arg-type]
    assert isinstance(encoder, StageEncoder)
    return encoder.eval()


def timms_maps(name: str, state: dict[str, Tensor], size: tuple[int, int], images: Tensor) -> list[Tensor]:
    """Of timm's own `features_only` model with these weights, as (B, C, H, W) at strides 4 to 32."""
    options: dict[str, object] = {"img_size": size} if name.startswith("hiera_") else {}
    options |= {"dynamic_img_size": True} if "swin" in name else {}
    model = timm.create_model(name, features_only=True, **options).eval()
    own = model.state_dict()
    # features_only flattens the names of some classes: layers.0.x -> layers_0.x
    flat = {key.replace(".", "_"): value for key, value in state.items()}
    wanted = {key: flat.get(key.replace(".", "_").removeprefix("model_")) for key in own}
    lost = [key for key, value in wanted.items() if value is None and not key.startswith(("model.norm", "model.head"))]
    assert not lost
    model.load_state_dict({key: own[key] if value is None else value for key, value in wanted.items()})
    with torch.no_grad():
        found: list[Tensor] = model(images)
    channels = [info["num_chs"] for info in model.feature_info]
    return [x if x.shape[1] == c else x.permute(0, 3, 1, 2) for x, c in zip(found, channels, strict=True)]


def test_there_is_one_of_each() -> None:
    assert ONE_OF_EACH.keys() == CLASSES.keys()


QUICK = ("SwinTransformer", "Hiera", "ConvNeXt", "PyramidVisionTransformerV2", "EdgeNeXt", "MambaOut")


@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in ONE_OF_EACH])
def test_maps_are_those_of_timm(kind: str, tmp_path: Path) -> None:
    """With the weights of the whole model, classifier included, of which no tensor may be lost.

    Swin at its native size: at others it is its authors' (tests/tasks/ade20k/test_swin.py), and timm's is not.
    """
    name, size = ONE_OF_EACH[kind], (96, 96) if CLASSES[kind] == "fixed" else (64, 128)
    size = (224, 224) if kind == "SwinTransformer" else size
    torch.manual_seed(0)
    whole = timm.create_model(name, **({"img_size": 96} if CLASSES[kind] == "fixed" else {}))
    state = whole.state_dict()
    torch.save({"model": state}, tmp_path / "w.pth")
    encoder = encoder_of(name, checkpoint=tmp_path / "w.pth", img_size=size)
    assert type(encoder.model).__name__ == kind
    assert all(torch.equal(x, state[key]) for key, x in encoder.model.state_dict().items())
    images = torch.randn(1, 3, *size)
    maps = encoder(images)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (c, size[0] // s, size[1] // s) for c, s in zip(encoder.spec.stages, (4, 8, 16, 32), strict=True)
    ]
    for ours, theirs in zip(maps, timms_maps(name, state, size, images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.cat([x.flatten() for x in maps]).square().mean().backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None]

    torch.save({key: x for key, x in state.items() if key != max(encoder.model.state_dict())}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="missing"):
        encoder_of(name, checkpoint=tmp_path / "w.pth", img_size=size)


@pytest.mark.parametrize("name", ["convnextv2_atto", "swin_s3_tiny_224"])
def test_layer_decay_is_timms(name: str) -> None:
    """timm's own parameter groups of the whole model, less those of what follows the last map."""
    encoder = encoder_of(name, weights="random")
    model = torch.nn.Module()
    model.encoder = encoder
    config = OptimConfig(kind="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.7, no_weight_decay=["norm", "bias"])
    ours = {n.removeprefix("encoder.model."): g["lr_scale"] for g in param_groups(model, config) for n in g["names"]}
    whole = timm.create_model(name)
    groups = timm.optim.param_groups_layer_decay(whole, layer_decay=0.7)
    names = {id(p): n for n, p in whole.named_parameters()}
    theirs = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert ours.keys() <= theirs.keys()
    for key, scale in ours.items():
        assert scale == pytest.approx(theirs[key], rel=1e-12), key


@pytest.mark.parametrize("name", ["swinv2_tiny_window8_256", "swin_s3_tiny_224", "hiera_tiny_224", "convnextv2_atto"])
def test_weight_decay_is_timms(name: str) -> None:
    """As timm's optimizers group the whole model: none for one dimension, nor for its `no_weight_decay`.

    Of Swin v2 that is microsoft/Swin-Transformer's `no_weight_decay_keywords`: cpb_mlp and logit_scale.
    """
    model = torch.nn.Module()
    model.encoder = encoder_of(name, weights="random")
    config = OptimConfig(kind="adamw", lr=1.0, weight_decay=0.05, no_weight_decay=["norm", "bias", "layer_scale"])
    groups = param_groups(model, config)
    ours = {n.removeprefix("encoder.model."): g["weight_decay"] for g in groups for n in g["names"]}
    whole = timm.create_model(name)
    names = {id(p): n for n, p in whole.named_parameters()}
    exempt = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
    told = timm.optim.param_groups_weight_decay(whole, 0.05, no_weight_decay_list=exempt)
    theirs = {names[id(p)]: group["weight_decay"] for group in told for p in group["params"]}
    assert ours == {key: theirs[key] for key in ours}
    if name.startswith("swinv2"):
        assert {key.split(".attn.")[1] for key in ours if "cpb_mlp" in key or "logit_scale" in key} == {
            *("logit_scale", "cpb_mlp.0.weight", "cpb_mlp.0.bias", "cpb_mlp.2.weight")
        }
        assert not any(decay for key, decay in ours.items() if "cpb_mlp" in key or "logit_scale" in key)


def test_probes_read_what_timm_pools() -> None:
    for name in ("convnextv2_atto", "swin_s3_tiny_224"):
        encoder = encoder_of(name, weights="random", img_size=96, final_norm=True)
        images = torch.randn(2, 3, 96, 96)
        with torch.no_grad():
            pooled = encoder.pooled(images)
            model = encoder.model
            features = model.forward_features(images)
            if name.startswith("swin"):  # LayerNorm, then the mean
                wanted = features.mean((1, 2))
            else:  # the mean, then LayerNorm
                norm = model.head.norm
                mean = features.mean((2, 3))
                wanted = torch.nn.functional.layer_norm(mean, mean.shape[1:], norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(pooled, wanted, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            if name.startswith("swin"):
                (tokens,) = encoder.tokens(images, (3,))
                torch.testing.assert_close(tokens, features.flatten(1, 2), rtol=1e-5, atol=1e-5)
            else:
                with pytest.raises(UserError, match=r"not their map.*probe\.final_norm=false"):
                    encoder.tokens(images, (3,))
        assert not encoder_of(name, weights="random").pools


def test_stages_are_frozen_from_the_front() -> None:
    encoder = encoder_of("hiera_tiny_224", weights="random")
    encoder.freeze(1)
    learning = Counter(n.split(".")[2] for n, p in encoder.named_parameters() if p.requires_grad)
    assert set(learning) == {"10", "11"}  # hiera_tiny has stages of 1, 2, 7 and 2 blocks
    encoder.freeze(0)
    assert not any(p.requires_grad for p in encoder.parameters())
    encoder.train()
    assert not any(part.training for part in encoder.model.modules() if any(True for _ in part.parameters()))
    with pytest.raises(UserError, match=r"0\.5 trainable stages"):
        encoder.freeze(0.5)


def test_hieras_positions_are_resampled_and_its_size_is_said(tmp_path: Path) -> None:
    whole = timm.create_model("hiera_tiny_224")
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    encoder = encoder_of("hiera_tiny_224", checkpoint=tmp_path / "w.pth", img_size=96)
    assert encoder.load_report.resized == {"pos_embed": "bicubic from 56x56 to 24x24"}
    wide = encoder_of("hiera_tiny_224", checkpoint=tmp_path / "w.pth", img_size=(96, 160))
    assert wide.load_report.resized == {"pos_embed": "bicubic from 56x56 to 24x40"}
    with pytest.raises(UserError, match="built for images of 96x96 pixels and cannot take 128x128"):
        encoder(torch.zeros(1, 3, 128, 128))


def test_files_of_other_models_are_one_line(tmp_path: Path) -> None:
    """Also where timm's own reader of such files fails on them."""
    for name, file in (
        ("swinv2_cr_tiny_ns_224", "convnextv2_atto"),
        ("convnextv2_atto", "pvt_v2_b0"),
        ("hiera_tiny_224", "pvt_v2_b0"),
        ("swin_s3_tiny_224", "pvt_v2_b0"),
    ):
        with torch.device("meta"):
            shapes = {key: x.shape for key, x in timm.create_model(file).state_dict().items()}
        table = {"layers.9.blocks.0.attn.relative_position_bias_table": (9, 3)} if name.startswith("swin_") else {}
        torch.save({key: torch.zeros(x) for key, x in (shapes | table).items()}, tmp_path / "w.pth")
        with pytest.raises(UserError, match=r"w\.pth: (does not fit timm:|is not of timm:.*timm's own reader)"):
            encoder_of(name, checkpoint=tmp_path / "w.pth")


def test_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(UserError, match=r"is hierarchical: .*set backbone.window_size=0 backbone.rel_pos=false"):
        load_backbone("timm:convnextv2_atto", weights="random", window_size=7, rel_pos=True)
    with pytest.raises(UserError, match="not a plain ViT but of timm's resnet"):
        resolve("timm:resnet18")
    encoder = encoder_of("poolformer_s12", weights="random")
    with pytest.raises(UserError, match=r"set optim.layer_decay=1"):
        encoder.layer_id("model.stages.0.blocks.0.norm1.weight")
    with pytest.raises(UserError, match=r"probe.blocks=1"):
        encoder.tokens(torch.zeros(1, 3, 64, 64), (2, 3))
