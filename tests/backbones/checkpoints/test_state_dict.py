"""From a file's content to one state dict: entries, prefixes, kinds of tensors, and models that are told by name."""

import pytest
import torch
from support.layouts import DIM, PLAIN, beit, dino_head, vit
from torch import nn

from mae_transfer.backbones.checkpoints import loader
from mae_transfer.backbones.checkpoints.state_dict import unwrap
from mae_transfer.backbones.load import load_backbone
from mae_transfer.errors import UserError

WEIGHT = "blocks.0.mlp.fc1.weight"


def refusal(content, **options):
    with pytest.raises(UserError) as error:
        loader.load(PLAIN, content, "some.pth", **options)
    message = str(error.value)
    assert "\n" not in message
    assert " at 0x" not in message
    return message


def below(prefix, state):
    return {f"{prefix}.{key}": tensor for key, tensor in state.items()}


def fingerprint(content, **options):
    return loader.load(PLAIN, content, "some.pth", **options)[1].fingerprint


def test_parameters_load_as_their_values():
    model = vit()
    expected = fingerprint(model.state_dict())
    for state in (dict(model.named_parameters()), model.state_dict(keep_vars=True)):
        assert any(tensor.requires_grad for tensor in state.values())
        loaded, report = loader.load(PLAIN, {"model": state}, "some.pth")
        assert report.fingerprint == expected
        assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in loaded.parameters())


@pytest.mark.parametrize("key", [WEIGHT, "norm.weight", "head.weight"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to(torch.float8_e4m3fn), "is float8_e4m3fn, whose scale is not known"),
        (lambda t: t.to(torch.float8_e5m2), "is float8_e5m2"),
        (lambda t: t.to_sparse(), "is sparse (sparse_coo)"),
        (lambda t: torch.atleast_2d(t).to_sparse_csr(), "is sparse (sparse_csr)"),
        (lambda t: t.to("meta"), "is a tensor of the meta device"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is quantised (qint8)"),
        (lambda t: torch.zeros(1).expand(10**9), "is (1000000000,) repeated from fewer values"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_plain_values_are_named(key, change, message):
    state = dict(vit(num_classes=3).state_dict())
    state[key] = change(state[key])
    assert f"{key} {message}" in refusal(state)


def test_the_final_norm_is_checked_like_the_rest():
    state = dict(vit().state_dict())
    for dtype in (torch.bool, torch.int32, torch.complex64):
        changed = state | {"norm.weight": state["norm.weight"].to(dtype)}
        assert f"norm.weight holds {dtype}, not floating point" in refusal(changed)
    assert "norm.bias holds torch.int64" in refusal(below("model", state | {"norm.bias": torch.ones(DIM).long()}))
    assert "norm.weight, of the final norm, is all zeros" in refusal(state | {"norm.weight": torch.zeros(DIM)})
    changed = {key.replace("norm.", "fc_norm."): t for key, t in state.items() if not key.startswith("blocks.")}
    changed |= {key: t for key, t in state.items() if key.startswith("blocks.")}
    assert "fc_norm.weight, of the final norm, is all zeros" in refusal(changed | {"fc_norm.weight": torch.zeros(DIM)})


def test_weights_under_another_entry_are_found_and_named():
    """I-JEPA's and MSN's `encoder`, `predictor`, `target_encoder`; only a moving average; entries inside entries."""
    state, other = vit().state_dict(), beit().state_dict()
    ijepa = {"encoder": other, "predictor": {"a.weight": torch.ones(2)}, "target_encoder": state, "epoch": 3}
    message = refusal(ijepa)
    assert "has several state dicts, encoder, predictor, target_encoder; choose one by --key <name>" in message
    assert "backbone.checkpoint_key=<name>" in message
    assert fingerprint(ijepa, key="target_encoder") == fingerprint(state)
    message = refusal({"model_ema": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}})
    assert "its weights are under 'model_ema'; read them by --key model_ema" in message
    nested = {"model": {"online": state, "target": state}, "step": 3}
    assert "has several state dicts, model.online, model.target; choose one" in refusal(nested)
    assert fingerprint(nested, key="model.target") == fingerprint(state)
    assert "not a state dict of tensors, 'lr' is a float" in refusal({"lr": 0.1})
    assert "'<tuple>' is a Tensor" in refusal({("a", 1): torch.ones(2)})
    assert "'a\\nb' is a set" in refusal({"a\nb": {1}})


@pytest.mark.parametrize(
    ("prefix", "beside", "told"),
    [
        ("backbone", {"decode_head.conv.weight": torch.ones(3, 3)}, "decode_head.* beside it"),
        (
            "backbone",
            {"projector.0.weight": torch.ones(4, 4), "criterion.w": torch.ones(1)},
            "projector.*, criterion.*",
        ),
        ("backbone", {"head.weight": torch.ones(4, DIM), "head.bias": torch.ones(4)}, "head.* beside it"),
        ("encoder", below("decoder", vit().state_dict()), "decoder.* beside it"),
        ("encoder", {"decoder.blocks.0.norm1.weight": torch.ones(32), "mask_token": torch.ones(1)}, "decoder.*, mask_"),
        ("model.encoder", {"model.head.weight": torch.ones(3)}, "model.* beside it"),
        ("vision", {"logit_scale": torch.ones(())}, "logit_scale beside it"),
    ],
)
def test_an_encoder_beside_other_modules(prefix, beside, told):
    """The message has names of the file alone, and the key that it gives reads the encoder."""
    state = vit().state_dict()
    content = {"state_dict": below(prefix, state) | beside}
    message = refusal(content)
    bare = prefix.removeprefix("model.")
    assert f"an encoder (timm ViT / official MAE) under {bare}.* with " in message
    assert told.replace("model.*", "head.*") in message
    assert f"--key {bare} (backbone.checkpoint_key={bare})" in message
    _, report = loader.load(PLAIN, content, "some.pth", key=bare)
    assert report.fingerprint == fingerprint(state)
    assert set(beside) <= {f"model.{key}" for key in report.ignored} | set(report.ignored)


def test_two_encoders_in_one_state_dict():
    """As sharded DINOv2 training has them: student and teacher side by side, each an encoder with a head."""
    state, other = vit().state_dict(), {key: t + 1 for key, t in vit().state_dict().items()}
    both = below("student", other) | below("teacher", state)
    assert "several encoders in one state dict, under student., teacher.; choose one by --key student or" in refusal(
        both
    )
    assert fingerprint(both, key="teacher") == fingerprint(state) != fingerprint(both, key="student")
    with_heads = {k: below("backbone", s) | dino_head() for k, s in (("student", other), ("teacher", state))}
    both = {"model": below("student", with_heads["student"]) | below("teacher", with_heads["teacher"])}
    assert "--key student or --key teacher" in refusal(both)
    assert fingerprint(both, key="teacher") == fingerprint(state)
    assert "no entry 'ema' and no keys ema.*" in refusal(both, key="ema")


def test_shards_of_deepspeed_are_told_from_weights():
    empty = {key: torch.empty(0) for key in vit().state_dict()}
    for content in (
        {"module": empty, "ds_version": "0.15"},
        {"module": empty | {"head.bias": torch.ones(3)}},
        {"optimizer_state_dict": {"zero_stage": 3, "fp32_flat_groups": [torch.ones(9)]}, "ds_version": "0.15"},
    ):
        assert "run its zero_to_fp32.py" in refusal(content)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (["vision_model.encoder.layers.0.self_attn.q_proj.weight"], "CLIP or SigLIP by Hugging Face's names"),
        (["layers.0.blocks.1.attn.qkv.weight"], "a hierarchical encoder"),
        (["stages.0.0.conv_dw.weight"], "a hierarchical encoder"),
        (["layer1.0.conv1.weight", "fc.weight"], "a ResNet"),
        (["encoder.layers.encoder_layer_0.ln_1.weight", "class_token"], "a ViT by torchvision's names"),
        (["base_model.model.blocks.0.attn.qkv.lora_A.weight"], "LoRA weights"),
    ],
)
def test_models_that_are_known_and_not_supported(keys, told):
    for prefix in ("", "module."):
        assert told in refusal({"model": {prefix + key: torch.ones(2) for key in keys}})


def test_a_final_norm_without_bias(tmp_path):
    """timm's test_vit4 has RMSNorm; its own final norm is what a frozen encoder's features go through."""
    import timm

    model = timm.create_model("test_vit4").eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    torch.save(model.state_dict(), tmp_path / "rms.pth")
    encoder = load_backbone("timm:test_vit4", checkpoint=tmp_path / "rms.pth", final_norm=True).eval()
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        patches = encoder.norm(encoder.tokens(images, (encoder.depth - 1,))[0])[:, encoder.prefix :]
        expected = model.fc_norm(model.forward_features(images)[:, model.num_prefix_tokens :])
    torch.testing.assert_close(patches, expected, rtol=1e-5, atol=1e-5)
    assert load_backbone("random_vit_nano", final_norm=True).load_report.new["norm.weight, norm.bias"]


def test_names_in_messages_are_one_line_and_of_the_file():
    state = vit().state_dict()
    assert "unexpected a\\nb" in refusal(state | {"a\nb": torch.ones(2)})
    assert unwrap({"_orig_mod.a": torch.ones(2)}, "some.pth")[0].keys() == {"a"}
    wrapped = {"_forward_module._fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.a": torch.ones(2)}
    assert unwrap(wrapped, "some.pth")[0].keys() == {"blocks.0.a"}
    assert "under my_vit.*; read it alone by --key my_vit" in refusal({f"my_vit.{k}": v for k, v in state.items()})
