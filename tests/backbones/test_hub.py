"""Published weights: from the local hub cache without network, and a quick plain error where there is neither."""

import os
import subprocess
import sys

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from mae_transfer.backbones.load import load_backbone
from mae_transfer.errors import UserError


def cached(folder, model):
    """Put a model's weights where huggingface_hub's cache has them."""
    repo = folder / f"models--{model.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    save_file(model.state_dict(), repo / "snapshots" / "abc" / "model.safetensors")
    return repo / "snapshots" / "abc" / "model.safetensors"


def test_cached_weights_need_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "model_info", None)  # asking the hub would fail
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224.fb_in1k").eval()
    path = cached(tmp_path, model)
    for name in ("sup_vit_ti", "timm:deit_tiny_patch16_224"):
        encoder = load_backbone(name).eval()
        images = torch.randn(1, 3, 224, 224)
        expected = model.forward_intermediates(images, [2, 5, 8, 11], norm=False, intermediates_only=True)
        for ours, theirs in zip(encoder(images), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert encoder.load_report.source == "hub timm/deit_tiny_patch16_224.fb_in1k"
        assert encoder.load_report.ignored["head.weight"] == "classifier"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model.safetensors of timm/deit_tiny\S* cannot be loaded .* delete it"):
        load_backbone("sup_vit_ti")


NOT_HERE = "backbone 'mae_vit_b': its weights timm/vit_base_patch16_224.mae are not in the local hub cache"


def test_in_offline_mode_the_error_is_plain(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"{NOT_HERE} .*OfflineModeIsEnabled"):
        load_backbone("mae_vit_b")


def test_without_network_the_error_is_quick_and_plain(tmp_path):
    """In a process of its own, since the hub's address is read at import: a port where nothing listens."""
    code = (
        "import time\n"
        "from mae_transfer.backbones.load import load_backbone\n"
        "from mae_transfer.errors import UserError\n"
        "start = time.time()\ntry:\n    load_backbone('mae_vit_b')\nexcept UserError as error:\n    print(error)\n"
        "print(time.time() - start)"
    )
    hub = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, env={**os.environ, **hub}, capture_output=True, text=True, check=True)
    message, seconds = result.stdout.splitlines()
    assert message.startswith(NOT_HERE)
    assert message.endswith("pass --checkpoint PATH, or --weights random.")
    assert float(seconds) < 10
