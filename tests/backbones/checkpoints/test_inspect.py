"""tools/inspect_checkpoint.py: what it says of a file, and that exports are what their libraries load."""

import dataclasses
import shlex
import subprocess
import sys

import pytest
import timm
import torch
import transformers
import yaml
from safetensors.torch import load_file
from support.layouts import LAYOUTS, PLAIN, layout, mae_decoder, randomise
from support.paths import TOOLS
from timm.models.vision_transformer import VisionTransformer

from mae_transfer.backbones import registry
from mae_transfer.backbones.checkpoints import export as export_module
from mae_transfer.backbones.checkpoints import inspect as inspect_module
from mae_transfer.backbones.checkpoints.fixed_position import table
from mae_transfer.backbones.checkpoints.layout import Converted
from mae_transfer.backbones.checkpoints.rotary_guess import guess
from mae_transfer.backbones.load import load_backbone
from mae_transfer.errors import UserError

TOOL = TOOLS / "inspect_checkpoint.py"


@pytest.fixture
def main(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import inspect_checkpoint

    return inspect_checkpoint.main


def nano(**kwargs):
    shape = {"img_size": 64, "embed_dim": 64, "depth": 8, "num_heads": 4, "num_classes": 0}
    return randomise(VisionTransformer(**{**shape, **kwargs}))


def test_help_is_quick_and_has_examples():
    code = f"import runpy, sys; sys.argv = ['x', '--help']\ntry: runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
    code += "except SystemExit: assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--backbone timm:vit_small_patch14_reg4_dinov2" in result.stdout


def test_a_whole_account_with_the_line_to_use(tmp_path, main, capsys):
    path = tmp_path / "my file.pth"
    model = nano()
    model.pos_embed.data = table((4, 4), 64, columns_first=True)
    decoder = {k: t for k, t in mae_decoder().items() if k not in ("decoder_embed.weight", "decoder_pos_embed")}
    decoder |= {"decoder_embed.weight": torch.randn(16, 64), "decoder_pos_embed": torch.randn(1, 17, 16)}
    torch.save({"model": model.state_dict() | decoder, "epoch": 3}, path)
    assert main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "layout: official MAE with decoder" in out
    assert (
        "architecture: embed dim 64, depth 8, heads not in the file (usual: 1), patch 16, grid 4x4 (64 px), MLP 256"
        in out
    )
    assert "! it has a decoder" in out
    assert "! its position embedding is for grid 4x4 (64 px), not 224" in out
    assert "ignored: epoch: beside 'model'" in out
    use = out.splitlines()[-1].removeprefix("use: ")
    command = [
        "mae-transfer",
        "transfer",
        "--task",
        "coco",
        "--backbone",
        "mae_vit_nano",
        "--checkpoint",
        str(path),
    ]
    assert shlex.split(use) == command
    load_backbone("mae_vit_nano", checkpoint=path)

    assert main([str(path), "--backbone", "mae_vit_b"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: checkpoint ")
    assert "has embed dim 64, depth 8, patch 16: that is mae_vit_nano, not mae_vit_b" in error
    assert error.count("\n") == 1
    assert main([str(tmp_path / "missing.pth")]) == 2


def test_suspicious_signs(tmp_path):
    path = tmp_path / "mae_visualize.pth"
    half = {key: tensor.half() for key, tensor in nano(num_classes=3).state_dict().items()}
    half["blocks.2.attn.proj.weight"][:] = 0
    half["blocks.3.attn.proj.bias"][1] = 65504
    half["blocks.4.attn.proj.bias"][1] = float("inf")
    for i in range(8):
        half[f"blocks.{i}.norm1.weight"][:] = 1
    torch.save(half, path)
    findings = inspect_module.inspect(path)
    signs = "\n".join(findings.signs)
    for sign in (
        "it has a classifier",
        "all zeros: blocks.2.attn.proj.weight",
        "blocks.3.attn.proj.bias reaches 65504, at the edge of float16",
        "blocks.4.attn.proj.bias holds NaN or infinite values (float16 overflow?)",
        "every norm of the blocks is 1: it looks untrained",
    ):
        assert sign in signs, (sign, signs)
    assert findings.command is None
    assert "NaN or infinite" in findings.load[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_recognised(name, tmp_path, monkeypatch):
    """With its own spec under a name of that shape, each is loaded, and the account names its layout."""
    case = layout(name)
    monkeypatch.setattr(inspect_module, "resolve", lambda _: case.spec)
    torch.save(case.content, tmp_path / "file.pth")
    findings = inspect_module.inspect(tmp_path / "file.pth", backbone="this")
    assert f"layout: {case.reader}" in findings.about
    assert "--backbone this --checkpoint" in findings.command
    assert findings.load[0].startswith(f"{case.spec.name}: ")
    architecture = next(line for line in findings.about if line.startswith("architecture"))
    assert "embed dim 32, depth 2" in architecture
    for sign, extra in (
        ("LayerScale", "LayerScale"),
        ("registers", "tokens beside"),
        ("BEiT", "relative position table"),
    ):
        assert sign not in name or extra in architecture


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("vit_small_patch14_reg4_dinov2.lvd142m", "timm:vit_small_patch14_reg4_dinov2.lvd142m"),
        ("vit_small_patch14_dinov2.lvd142m", "timm:vit_small_patch14_dinov2.lvd142m"),
        ("deit_tiny_patch16_224.fb_in1k", "sup_vit_ti"),
    ],
)
def test_real_sizes_get_a_name(tag, expected, tmp_path):
    model = timm.create_model(tag, img_size=56 if "14" in tag else 224)
    state = dict(model.state_dict())
    if "dinov2" in tag:
        state["mask_token"] = torch.zeros(1, 384)
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), state["pos_embed"]], 1)
    torch.save(state, tmp_path / "file.pth")
    findings = inspect_module.inspect(tmp_path / "file.pth")
    assert findings.backbone == expected
    if "deit" in tag:
        assert "of the same shape: mae_vit_ti" in "\n".join(findings.load)


def test_a_file_of_dinov3_gets_a_name(tmp_path):
    """EUPE's tiny one, which has DINOv3's layout: no bias of the keys, three heads by the periods."""
    model = timm.create_model("vit_tiny_patch16_dinov3_qkvb", num_classes=0)
    state = {key.replace("gamma_", "ls"): tensor for key, tensor in model.state_dict().items()}
    state = {f"{key}.gamma" if key.endswith((".ls1", ".ls2")) else key: tensor for key, tensor in state.items()}
    state["storage_tokens"] = state.pop("reg_token")
    for i in range(12):
        q, v = (state.pop(f"blocks.{i}.attn.{part}_bias") + 1 for part in "qv")
        state[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.zeros(192), v])
    state["rope_embed.periods"] = 100.0 ** (torch.arange(16) / 16)
    torch.save(state, tmp_path / "file.pth")
    findings = inspect_module.inspect(tmp_path / "file.pth")
    assert "layout: DINOv3" in findings.about
    assert findings.backbone == "timm:vit_tiny_patch16_dinov3_qkvb"
    assert "3 heads" in "\n".join(findings.about)


@pytest.mark.parametrize(
    ("init", "model", "side"),
    [
        ("dinov3", "vit_small_plus_patch16_dinov3", 0),
        ("dinov3", "vit_huge_plus_patch16_dinov3", 0),
        ("dinov3", "vit_7b_patch16_dinov3", 0),
        ("eva02", "eva02_base_patch14_448", 32),
        ("eva02", "eva02_tiny_patch14_336", 24),
        ("eva02", "eva02_large_patch14_clip_336", 24),
        ("pe", "vit_pe_core_base_patch16_224", 14),
        ("pe", "vit_pe_spatial_large_patch14_448", 32),
        ("pe", "vit_pe_lang_large_patch14_448", 32),
    ],
)
def test_the_models_of_rotary_files_are_found_by_their_shapes(init, model, side):
    with torch.device("meta"):
        tensors = timm.create_model(model).state_dict()
    pooled = {key: "pooling" for key in tensors if key.startswith("attn_pool.")}
    patch = tensors["patch_embed.proj.weight"].shape[-1]
    assert guess(init, Converted(tensors, pooled), (side, side) if side else None, patch) == [f"timm:{model}"]


def test_a_run_folder_gives_its_own_options(tmp_path):
    options = {"window_size": 3, "num_global_blocks": 2, "rel_pos": True}
    encoder = load_backbone("mae_vit_nano", weights="random", **options)
    (tmp_path / "checkpoints").mkdir()
    state = {f"encoder.{key}": t for key, t in encoder.state_dict().items()}
    torch.save({"step": 1, "model": state, "optimizer": {}, "ema": None}, tmp_path / "checkpoints" / "step_00000001.pt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"backbone": {"name": "mae_vit_nano", **options}}))
    findings = inspect_module.inspect(tmp_path)
    overrides = "backbone.window_size=3 backbone.num_global_blocks=2 backbone.rel_pos=true"
    assert findings.command.endswith(f"--backbone mae_vit_nano --checkpoint {tmp_path} {overrides}")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"backbone": {"name": "random_vit_nano", **options}}))
    assert "--backbone vit_nano " in inspect_module.inspect(tmp_path).command, "its weights are the run's, not MAE's"
    (tmp_path / "config.yaml").write_text("backbone: 3")
    with pytest.raises(UserError, match="config.yaml: not the configuration of a run"):
        inspect_module.inspect(tmp_path)
    (tmp_path / "config.yaml").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"config\.yaml is not UTF-8"):
        inspect_module.inspect(tmp_path)


# --- exports


def official(tmp_path, dtype=torch.float32):
    path = tmp_path / "official.pth"
    torch.save({"model": {key: t.to(dtype) for key, t in nano().state_dict().items()}}, path)
    return path, torch.load(path, weights_only=True)["model"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_official_comes_back_bit_for_bit(tmp_path, dtype, main, capsys):
    path, before = official(tmp_path, dtype)
    out = tmp_path / "again.pth"
    assert main([str(path), "--backbone", "mae_vit_nano", "--export", "official", str(out)]) == 0
    assert f"written: {out} (official, {len(before)} tensors)" in capsys.readouterr().out
    after = torch.load(out, weights_only=True)
    assert list(after) == ["model"]
    assert list(after["model"]) == list(before)
    for key, tensor in before.items():
        assert after["model"][key].dtype == tensor.dtype
        assert torch.equal(after["model"][key], tensor), key


def test_pixio_is_named_with_its_patch_and_positions(tmp_path, main, capsys):
    state = dict(nano(patch_size=8, reg_tokens=7).state_dict())
    state["cls_token"] = torch.cat([state["cls_token"], state.pop("reg_token")], dim=1)
    torch.save(state, tmp_path / "pixio.pth")
    assert main([str(tmp_path / "pixio.pth")]) == 0
    out = capsys.readouterr().out
    parts = ("layout: Pixio", "7 tokens beside the class token", "patch 8, grid 8x8 (64 px)", "--backbone vit_nano_p8 ")
    for part in parts:
        assert part in out, (part, out)


@pytest.mark.parametrize("via", ["timm", "hf"])
def test_official_comes_back_through_another_naming(tmp_path, via):
    path, before = official(tmp_path)
    middle = tmp_path / ("folder" if via == "hf" else "timm.safetensors")
    export_module.export(path, "mae_vit_nano", via, middle)
    export_module.export(middle, "mae_vit_nano", "official", tmp_path / "again.pth")
    after = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_exports_load_strictly_in_timm_and_transformers(tmp_path):
    path, _ = official(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    source = nano()
    with torch.no_grad():
        expected = source.forward_features(images)
        export_module.export(path, "mae_vit_nano", "timm", tmp_path / "timm.safetensors")
        again = nano()
        again.load_state_dict(load_file(tmp_path / "timm.safetensors"), strict=True)
        assert torch.equal(again.forward_features(images), expected)
        export_module.export(path, "mae_vit_nano", "hf", tmp_path / "hf")
        model, info = transformers.ViTModel.from_pretrained(
            tmp_path / "hf", add_pooling_layer=False, output_loading_info=True
        )
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        torch.testing.assert_close(model.eval()(images).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
        assert tuple(processor.image_mean) == registry.IMAGENET_MEAN


@pytest.mark.parametrize(("name", "form"), [("BEiT timm", "hf"), ("DeiT-III", "official"), ("DeiT distilled", "hf")])
def test_what_a_format_has_no_place_for(name, form, tmp_path, monkeypatch):
    case = layout(name)
    monkeypatch.setattr(export_module, "resolve", lambda _: case.spec)
    torch.save(case.content, tmp_path / "file.pth")
    with pytest.raises(UserError, match=f"--export {form}: has no place for"):
        export_module.export(tmp_path / "file.pth", "this", form, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_module.export(tmp_path / "file.pth", "this", "timm", tmp_path / "out.pth")
    exported = torch.load(tmp_path / "out.pth", weights_only=True)
    # timm's Beit has its final norm under another name where it pools the patches
    kept = {key.replace("fc_norm", "norm"): t for key, t in case.model.state_dict().items() if "head" not in key}
    assert exported.keys() == kept.keys()
    assert all(torch.equal(exported[key], kept[key]) for key in kept)


def test_other_layouts_export_their_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "resolve", lambda _: dataclasses.replace(PLAIN))
    for name in ("HF ViT", "MoCo v3", "AugReg", "MAE training"):
        case = layout(name)
        torch.save(case.content, tmp_path / "file.pth")
        lines = export_module.export(tmp_path / "file.pth", "this", "official", tmp_path / "out.pth")
        exported = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
        assert {"norm.weight", "norm.bias", "cls_token", "blocks.1.mlp.fc2.bias"} < exported.keys()
        assert ("eps 1e-12" in "\n".join(lines)) == (name == "HF ViT")
        assert "normalised" not in "\n".join(lines)
    halves = dataclasses.replace(PLAIN, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    monkeypatch.setattr(export_module, "resolve", lambda _: halves)
    lines = export_module.export(tmp_path / "file.pth", "this", "official", tmp_path / "out.pth")
    assert "normalised by mean (0.5, 0.5, 0.5) and std (0.25, 0.25, 0.25), which the file does not say" in lines[-1]
