"""Which fields of a configuration are settings, and their id."""

from pathlib import Path

import pytest
import torch
from support.layouts.pretraining import dino_head
from timm.models.vision_transformer import VisionTransformer

from mae_transfer import run_transfer
from mae_transfer.backbones.load import load_backbone
from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.errors import UserError
from mae_transfer.run_folder.settings import settings_id
from mae_transfer.runs.names import default_output
from mae_transfer.runs.resolve import load_config
from mae_transfer.runs.settings import make_settings

OVERRIDES = ["data.shots=5", "data.draw=3", "seed=1", "train.micro_batch=2", "backbone.checkpoint=x.pth"]


def test_settings_leave_out_what_is_compared_and_what_cannot_matter() -> None:
    config = load_config("folder", "mae_vit_b", protocol="linear", overrides=[*OVERRIDES, "data.train_list=x"])
    settings = make_settings(config, data_fingerprint="f", norm_batch=8)
    for key in (
        *("seed", "device", "data.root", "data.train_list", "data.workers", "data.draw", "data.imagenet_a"),
        *("backbone.name", "backbone.checkpoint", "backbone.weights", "train.micro_batch", "train.log_every"),
        *("eval.batch_size", "eval.pictures", "eval.per_class", "probe.cache", "backbone.grad_checkpointing"),
    ):
        assert key not in settings, key
    assert settings["data.shots"] == 5
    assert settings["eval.mask_classes"] is True, "how a run is evaluated is a setting"
    assert settings["backbone.drop_path"] == 0.0
    assert (settings["data_fingerprint"], settings["norm_batch"]) == ("f", 8)
    assert settings_id(settings) == settings_id(dict(reversed(settings.items())))
    assert settings_id(settings) != settings_id(settings | {"norm_batch": 4})


def test_rotations_of_windows_are_a_setting_that_leaves_earlier_ids_as_they_were() -> None:
    name = "timm:vit_small_patch16_dinov3_qkvb"
    ids = {}
    for value in ("window", "image"):
        config = load_config("coco", name, overrides=[f"backbone.window_rope={value}"])
        settings = make_settings(config, data_fingerprint="f", norm_batch=8)
        ids[value] = settings_id(settings)
        assert settings.get("backbone.window_rope") == (None if value == "window" else "image")
    assert ids["window"] != ids["image"]
    with pytest.raises(UserError, match="has no effect"):
        load_backbone("mae_vit_b", weights="random", window_rope="image")


def test_the_stop_of_logreg_is_a_setting_of_logreg_alone() -> None:
    """Its records of before, which have none, are of scikit-learn's fits and share no column with those of now."""
    for task in ("folder", "ade20k"):
        for protocol in ("knn", "logreg"):
            config = load_config(task, "mae_vit_b", protocol=protocol)
            settings = make_settings(config, data_fingerprint="f", norm_batch=1)
            assert settings.get("probe.tolerance") == (1e-4 if protocol == "logreg" else None)


def test_options_of_maes_successors_leave_earlier_ids_as_they_were() -> None:
    ids = set()
    for key, usual, other in (
        ("mask.patch_grid", "1", "2"),
        ("model.class_tokens", "1", "8"),
        ("model.positions", "sincos", "learned"),
    ):
        for value in (usual, other):
            config = load_config("pretrain", "vit_b", protocol="mae", overrides=[f"{key}={value}"])
            settings = make_settings(config, data_fingerprint="f", norm_batch=8)
            assert (key in settings) == (value == other)
            ids.add(settings_id(settings))
    assert len(ids) == 4


def test_sets_given_by_other_files_have_other_folders() -> None:
    """A root alone names its run as ever; of a set that is given by a list the list counts."""
    folders = {
        default_output(load_config("folder", "mae_vit_b", protocol="knn", overrides=[f"data.train_list={name}.txt"]))
        for name in ("a", "b")
    }
    assert len(folders) == 2


def test_recipes_turn_tables_off_beside_rotary_positions() -> None:
    name = "timm:vit_small_patch16_dinov3_qkvb"
    for task, recipe, usual in (
        ("coco", "mask_rcnn_li2021", True),
        ("coco", "vitdet_cascade", "decomposed"),
        ("ade20k", "upernet_mae", "per_block"),
    ):
        assert load_config(task, "mae_vit_b", overrides=[f"recipe={recipe}"]).backbone.rel_pos == usual
        assert load_config(task, name, overrides=[f"recipe={recipe}"]).backbone.rel_pos is False
    assert load_config("coco", name, overrides=["backbone.rel_pos=true"]).backbone.rel_pos is True, "refused when built"


def test_the_rule_of_resampled_positions_is_a_setting_where_it_is_not_maes() -> None:
    for name, size, rule in (
        ("mae_vit_b", 448, None),
        ("dino_vit_b", 224, None),
        ("dino_vit_b", 448, "offset"),
        ("timm:vit_small_patch14_dinov2", 518, None),
        ("timm:vit_small_patch14_dinov2", 224, "offset"),
        ("timm:vit_small_patch14_reg4_dinov2.lvd142m", 224, "antialias"),
    ):
        config = load_config("folder", name, protocol="knn", overrides=[f"data.image_size={size}"])
        settings = make_settings(config, data_fingerprint="f", norm_batch=1, spec=resolve(name))
        assert settings.get("pos_resampling") == rule, (name, size)
        before = make_settings(config, data_fingerprint="f", norm_batch=1)  # as earlier versions wrote them
        assert (settings_id(settings) == settings_id(before)) == (rule is None)


def test_the_padding_of_swins_windows_is_a_setting_off_the_native_size() -> None:
    for name, size, rule in (
        ("timm:swin_tiny_patch4_window7_224", 224, None),
        ("timm:swin_tiny_patch4_window7_224", 512, "before_shift"),
        ("timm:swinv2_tiny_window8_256", 512, None),
    ):
        config = load_config("folder", name, protocol="knn", overrides=[f"data.image_size={size}"])
        settings = make_settings(config, data_fingerprint="f", norm_batch=1, spec=resolve(name))
        assert settings.get("window_padding") == rule, (name, size)


def test_a_record_has_the_rule_of_its_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(patch_size=16, embed_dim=64, depth=8, num_heads=4, num_classes=0)
    teacher = {f"backbone.{key}": value for key, value in vit.state_dict().items()} | dino_head(width=64)
    torch.save({"teacher": teacher, "dino_loss": {"center": torch.ones(1, 40)}}, tmp_path / "dino.pth")
    for size, rule in ((32, "offset"), (224, None)):
        record = run_transfer(
            *("folder", "vit_nano"),
            checkpoint=tmp_path / "dino.pth",
            protocol="knn",
            preset="smoke",
            device="cpu",
            output=tmp_path / str(size),
            overrides=[f"data.image_size={size}", "eval.pictures=0"],
        )
        assert record["settings"].get("pos_resampling") == rule


def test_options_of_segmentation_leave_earlier_ids_as_they_were() -> None:
    for protocol, key, usual, other in (
        ("upernet", "eval.resize", "opencv", "pillow"),
        ("linear", "eval.resize", "opencv", "pillow"),
        ("trained", "model.layers", None, "last"),
    ):
        for value in (usual, other):
            config = load_config("ade20k", "mae_vit_b", protocol=protocol, overrides={key: value})
            settings = make_settings(config, data_fingerprint="f", norm_batch=8)
            assert (key in settings) == (value == other)
            assert "model.classifier" not in settings, "known by its fingerprint"
