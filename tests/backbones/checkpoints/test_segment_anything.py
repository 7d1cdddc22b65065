"""Segment Anything's encoder in this project's own: windows, what reads a class token, the file's account."""

import pytest
import torch
from support.layouts import layout
from support.layouts.case import randomise
from support.layouts.segment_anything import WINDOW, model, official
from timm.models.vision_transformer_sam import VisionTransformerSAM

from mae_transfer.backbones import registry
from mae_transfer.backbones.checkpoints import export, loader
from mae_transfer.backbones.checkpoints.hf_config import HFConfig
from mae_transfer.backbones.checkpoints.inspect import inspect
from mae_transfer.backbones.load import load_backbone
from mae_transfer.backbones.timm_vit import new_final_norm
from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.features.frozen import FrozenFeatures


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file of the size of vit_nano: blocks 1, 3, 5 and 7 attend to the whole grid of 4 x 4."""
    file = tmp_path_factory.mktemp("sam") / "sam_vit_nano.pth"
    torch.save(official(model(depth=8, dim=64, heads=4, size=64, patch=16).vision_encoder), file)
    return file


def test_windows_of_the_weights_are_kept(path):
    options = {"window_size": WINDOW, "num_global_blocks": 4, "rel_pos": True, "final_norm": True}
    encoder = load_backbone("vit_nano", checkpoint=path, img_size=64, **options)
    report = encoder.load_report
    assert not report.resized
    assert not any("windows" in line for line in report.warnings)
    assert [tuple(block.attn.rel_pos_h.shape) for block in encoder.vit.blocks] == [(5, 16), (7, 16)] * 4
    assert not encoder.has_class_token
    assert encoder.norm is None
    assert (encoder.mean, encoder.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_other_windows_are_told(path):
    report = load_backbone("vit_nano", checkpoint=path, img_size=64).load_report
    assert report.resized["blocks.0.attn.rel_pos_h"] == "5 -> 7 rows, linear"
    assert [line for line in report.warnings if "windows" in line] == [
        "blocks 0, 2, 4, 6 attend to other windows than in the weights' own training, and their tables of relative "
        "positions are resized; backbone.window_size=3 backbone.num_global_blocks=4 are those of the weights"
    ]
    one_window = load_backbone("vit_nano", checkpoint=path, img_size=WINDOW * 16)
    assert not any("windows" in line for line in one_window.load_report.warnings)
    FrozenFeatures(one_window, 1, ("cls",))
    assert "no class token: the probe reads the average of the patch tokens" in one_window.load_report.warnings


def test_the_account(path, tmp_path):
    found = inspect(path)
    text = "\n".join(found.lines())
    assert found.backbone == "vit_nano"
    for part in (
        "layout: Segment Anything",
        "4 heads, patch 16, grid 4x4 (64 px)",
        "no class token, two tables of decomposed positions per block",
        "image_encoder.neck.0.weight, image_encoder.neck.2.weight and 4 more: neck of Segment Anything",
    ):
        assert part in text
    with pytest.raises(UserError, match=r"--export timm: has no place for blocks\.0\.attn\.rel_pos_h"):
        export.export(path, "vit_nano", "timm", tmp_path / "out.pth")


def test_heads_are_those_of_the_file():
    case = layout("HF Segment Anything")
    config = HFConfig({"vision_config": {"num_attention_heads": 8}})
    with pytest.raises(UserError, match="has 8 heads, tiny has 4"):
        loader.load(case.spec, case.content, "some.pth", config=config)
    tables = {key: t[:, :4] if "rel_pos" in key else t for key, t in case.state.items()}
    with pytest.raises(UserError, match="has 8 heads, tiny has 4"):
        loader.load(case.spec, tables, "some.pth")


def test_final_norm_of_a_neck_of_one_norm_is_timms():
    """Its eps is not that of the blocks: seen where the tokens vary little."""
    case = layout("timm Segment Anything, one window")
    _, report = loader.load(case.spec, case.content, "some.pth")
    norm = new_final_norm(report.spec)
    norm.load_state_dict({key.removeprefix("norm."): tensor for key, tensor in report.final_norm.items()})
    tokens = 1e-3 * torch.randn(2, case.spec.embed_dim, 4, 4)
    expected = case.model.neck(tokens).permute(0, 2, 3, 1)
    torch.testing.assert_close(norm(tokens.permute(0, 2, 3, 1)), expected, rtol=1e-5, atol=1e-5)


def test_a_table_of_another_size_is_named():
    small = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 8, "num_heads": 4, "use_rel_pos": True}
    model = VisionTransformerSAM(**small, window_size=4, global_attn_indexes=(3, 7), use_abs_pos=False, neck_chans=None)
    state = randomise(model).state_dict()
    spec = registry.find("vit_nano")
    assert loader.load(spec, state, "some.pth")[1].spec.img_size == (64, 64)
    for key in ("blocks.0.attn.rel_pos_h", "blocks.7.attn.rel_pos_w"):
        with pytest.raises(UserError, match=rf"{key} is \(5, 16\), not \(7, 16\)"):
            loader.load(spec, state | {key: state[key][:-2]}, "some.pth")
