"""Layouts and the audit: files in the documented layouts give timm's forward, and no tensor can go astray."""

import argparse
import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mae_transfer.backbones import load as load_module
from mae_transfer.backbones import registry
from mae_transfer.backbones.checkpoints import loader
from mae_transfer.backbones.checkpoints.state_dict import unwrap
from mae_transfer.backbones.load import load_backbone
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.errors import UserError

NANO = registry.find("mae_vit_nano")
DIM, DEPTH = NANO.embed_dim, NANO.depth
SMALL_BEIT = dataclasses.replace(NANO, abs_pos=False, rel_pos_tables=True, layer_scale=0.1, img_size=48, depth=3)


def randomise(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def nano_vit(**kwargs):
    shape = {"img_size": 48, "embed_dim": DIM, "depth": DEPTH, "num_heads": NANO.num_heads, "num_classes": 0}
    return randomise(VisionTransformer(**{**shape, **kwargs}))


def small_beit(**kwargs):
    shape = {"img_size": 48, "embed_dim": DIM, "depth": 3, "num_heads": NANO.num_heads, "num_classes": 0}
    return randomise(Beit(**{**shape, **kwargs}, init_values=0.1, use_abs_pos_emb=False))


def mae_decoder(width=48, depth=2, tokens=10):
    """The decoder of facebookresearch/mae's models_mae.py."""
    blocks = VisionTransformer(embed_dim=width, depth=depth, num_heads=3, num_classes=0).blocks
    parts = {
        "decoder_embed": nn.Linear(DIM, width),
        "decoder_blocks": blocks,
        "decoder_norm": nn.LayerNorm(width),
        "decoder_pred": nn.Linear(width, 16 * 16 * 3),
    }
    state = {f"{name}.{key}": t for name, part in parts.items() for key, t in part.state_dict().items()}
    return state | {"mask_token": torch.randn(1, 1, width), "decoder_pos_embed": torch.randn(1, tokens, width)}


def load_state(state, tmp_path, name="mae_vit_nano", **options):
    torch.save(state, tmp_path / "weights.pth")
    return load_backbone(name, checkpoint=tmp_path / "weights.pth", **options)


def refusal(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_equals_timm(encoder, model, size=48):
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    expected = model.forward_intermediates(images, list(encoder.taps), norm=False, intermediates_only=True)
    with torch.no_grad():
        for ours, theirs in zip(encoder.eval()(images), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def layouts():
    vit = nano_vit()
    state = vit.state_dict()
    encoder_keys = {k: t for k, t in state.items() if not k.startswith("norm.")}
    args = argparse.Namespace(lr=1e-3)
    training = {"model": state | mae_decoder(), "optimizer": {"state": {}}, "epoch": 7, "scaler": {}, "args": args}
    finetuned = nano_vit(num_classes=10, global_pool="avg")
    probe = {f"head.1.{key}": t for key, t in nn.Linear(DIM, 10).state_dict().items()}
    probe |= {f"head.0.{key}": t for key, t in nn.BatchNorm1d(DIM, affine=False).state_dict().items()}
    assert encoder_keys.keys() < finetuned.state_dict().keys()
    return {
        "encoder only": (vit, {"model": state}),
        "full": (vit, {"model": state | mae_decoder()}),
        "full, another decoder": (vit, {"model": state | mae_decoder(width=24, depth=1)}),
        "training": (vit, training),
        "fine-tuned": (finetuned, {"model": finetuned.state_dict(), "epoch": 1}),
        "linear probe": (vit, {"model": state | probe}),
        "bare": (vit, state),
        "DDP": (vit, {"model": {f"module.{key}": t for key, t in state.items()}}),
        "compiled DDP": (vit, {"state_dict": {f"module._orig_mod.{key}": t for key, t in state.items()}}),
        "half": (nano_vit().half().float(), {key: t.half() for key, t in state.items()}),
    }


@pytest.mark.parametrize("layout", layouts())
def test_documented_layouts_give_timms_forward(layout, tmp_path):
    model, content = layouts()[layout]
    encoder = load_state(content, tmp_path)
    assert_equals_timm(encoder, model)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in encoder.parameters())
    report = encoder.load_report
    assert set(report.loaded) == {key.removeprefix("vit.") for key in encoder.state_dict()}
    tensors, _ = unwrap(content, "test")
    assert set(report.loaded) | set(report.ignored) == set(tensors) | (
        set(content) - {"model"} if "model" in content else set()
    )


def test_report_and_fingerprint(tmp_path):
    state = nano_vit().state_dict()
    report = load_state({"model": state | mae_decoder(), "epoch": 3}, tmp_path).load_report
    text = "\n".join(report.lines())
    assert report.layout == "official MAE with decoder"
    assert f"{len(report.loaded)} tensors loaded from {tmp_path / 'weights.pth'}" in text
    assert "ignored: epoch: beside 'model': state of the training run" in text
    assert "and 30 more: decoder of the pre-training" in text
    assert "ignored: norm.weight, norm.bias: final norm, not used by the encoder" in text

    save_file(state, tmp_path / "same.safetensors")
    same = load_backbone("mae_vit_nano", checkpoint=tmp_path / "same.safetensors").load_report
    assert same.fingerprint == report.fingerprint  # the same encoder in another layout and container
    state["blocks.5.mlp.fc1.bias"][3] += 1e-6
    assert load_state(state, tmp_path).load_report.fingerprint != report.fingerprint


def test_report_of_windows_and_tables(tmp_path):
    options = {"img_size": (96, 128), "window_size": 2, "num_global_blocks": 2, "rel_pos": True}
    encoder = load_state(nano_vit().state_dict(), tmp_path, **options)
    report = encoder.load_report
    assert report.new == {"rel_pos_window": "(9, 4), zeros", "rel_pos_global": "(165, 4), zeros"}
    assert report.resized == {"pos_embed": "3x3 -> 6x8, bicubic at every forward"}
    assert "dropped with windowed attention" in report.ignored["cls_token"]
    names = {key.removeprefix("vit.") for key in encoder.state_dict()}
    assert set(report.loaded) | set(report.new) == names
    assert [m.shape[2:] for m in encoder(torch.zeros(1, 3, 96, 128))] == [(6, 8)] * 4

    random = load_backbone("random_vit_nano").load_report
    assert random.fingerprint is None
    assert random.lines() == ["random_vit_nano: RANDOM weights, nothing loaded"]


def native_beit(model, shared=False):
    """timm's state dict with the buffers that BEiT's own files have; `shared`: as its pre-training saves it."""
    state = dict(model.state_dict())
    if shared:
        table = state["blocks.0.attn.relative_position_bias_table"]
        state = {key: t for key, t in state.items() if "relative_position" not in key}
        state |= {"rel_pos_bias.relative_position_bias_table": table, "mask_token": torch.randn(1, 1, DIM)}
        state |= {"rel_pos_bias.relative_position_index": torch.zeros(10, 10, dtype=torch.long)}
        state |= {"lm_head.weight": torch.randn(8192, DIM), "lm_head.bias": torch.randn(8192)}
        return {"model": state}
    index = {f"blocks.{i}.attn.relative_position_index": torch.zeros(10, 10, dtype=torch.long) for i in range(3)}
    return {"model": state | index}


@pytest.mark.parametrize("layout", ["timm", "native fine-tuned", "native pre-training"])
def test_beit_layouts_give_timms_forward(layout):
    model = small_beit(use_rel_pos_bias=True, global_pool="" if layout == "native pre-training" else "avg")
    content = {"timm": model.state_dict(), "native fine-tuned": native_beit(model)}.get(layout)
    if content is None:
        content = native_beit(model, shared=True)
        for block in model.blocks[1:]:
            block.attn.relative_position_bias_table = model.blocks[0].attn.relative_position_bias_table
    vit, report = loader.load(SMALL_BEIT, content, "test")
    assert_equals_timm(ViTEncoder(vit, SMALL_BEIT, taps=(0, 2)), model)
    assert report.layout == "BEiT"


def test_only_finite_floating_point_weights(tmp_path):
    for value in (float("nan"), float("inf")):
        state = nano_vit().state_dict()
        state["blocks.3.attn.proj.bias"][5] = value
        message = refusal(load_state, state, tmp_path)
        assert "blocks.3.attn.proj.bias holds NaN or infinite" in message
        assert "weights.pth" in message
    state = nano_vit().state_dict()
    state["blocks.3.attn.proj.bias"] = torch.zeros(DIM, dtype=torch.long)
    assert "blocks.3.attn.proj.bias holds torch.int64" in refusal(load_state, state, tmp_path)


@pytest.mark.parametrize(
    ("kwargs", "name", "message"),
    [
        (
            {"embed_dim": 192, "depth": 12, "num_heads": 3},
            "mae_vit_nano",
            "embed dim 192, depth 12, patch 16: that is mae_vit_ti",
        ),
        ({"embed_dim": 192, "depth": 12, "num_heads": 3}, "sup_vit_s", "that is sup_vit_ti, not sup_vit_s"),
        ({"depth": 4}, "mae_vit_nano", "embed dim 64, depth 4, patch 16: no registered size, not mae_vit_nano"),
        ({"patch_size": 8}, "mae_vit_nano", "patch 8: no registered size"),
        ({"reg_tokens": 4}, "mae_vit_nano", "unexpected reg_token"),
        ({"qk_norm": True}, "mae_vit_nano", "unexpected blocks.0.attn.q_norm.weight"),
        ({"class_token": False, "global_pool": "avg"}, "mae_vit_nano", "missing cls_token"),
    ],
)
def test_another_architecture_is_named(kwargs, name, message, tmp_path):
    assert message in refusal(load_state, nano_vit(**kwargs).state_dict(), tmp_path, name=name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({}, "it is empty"),
        ({"model": {"a": 1}}, "'a' is a int"),
        ({"epoch": 3}, "'epoch' is a int"),
        ({"vit.layernorm.weight": torch.ones(3)}, "unknown layout, its keys are vit.layernorm.weight"),
        ({"module.trunk.w.0.norm1.weight": torch.ones(3)}, "unknown layout, its keys are trunk.w.0.norm1"),
    ],
)
def test_what_is_no_known_state_dict(content, message, tmp_path):
    assert message in refusal(load_state, content, tmp_path)


def test_layer_scale_of_a_checkpoint_is_kept_and_absent_where_it_is_absent(tmp_path):
    """Under `sup` LayerScale means DeiT-III, without a position for the class token; a plain file is plain."""
    assert_equals_timm(load_state(vit.state_dict(), tmp_path) if (vit := nano_vit(init_values=0.1)) else None, vit)
    sup = dataclasses.replace(registry.find("sup_vit_l"), embed_dim=DIM, depth=DEPTH, num_heads=NANO.num_heads)
    for kwargs in ({}, {"init_values": 0.1, "no_embed_class": True}):
        vit = nano_vit(**kwargs)
        loaded, _ = loader.load(sup, vit.state_dict(), "test")
        assert_equals_timm(ViTEncoder(loaded, sup), vit)


def test_weights_and_names_that_exclude_each_other(tmp_path, monkeypatch):
    state = nano_vit().state_dict()
    for options in ({"name": "random_vit_nano"}, {"weights": "random"}):
        assert "takes no checkpoint" in refusal(load_state, state, tmp_path, **options)
    assert "use pretrained or random" in refusal(load_backbone, "mae_vit_nano", weights="imagenet")
    for name in ("mae_vit_nano", "mae_vit_ti", "mocov3_vit_s"):
        assert f"{name!r}: no published weights; pass --checkpoint" in refusal(load_backbone, name)
    monkeypatch.setattr(load_module, "published_weights", None)  # random weights never ask for any
    torch.manual_seed(5)
    first = load_backbone("mae_vit_nano", weights="random").state_dict()
    torch.manual_seed(5)
    again = load_backbone("random_vit_nano").state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
