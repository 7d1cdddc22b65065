"""Which fields of a configuration are settings, and their id."""

from mae_transfer.run_folder.settings import settings_id
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
    name = "timm:vit_tiny_patch16_dinov3_qkvb"
    ids = {}
    for value in ("window", "image"):
        config = load_config("coco", name, overrides=[f"backbone.window_rope={value}"])
        settings = make_settings(config, data_fingerprint="f", norm_batch=8)
        ids[value] = settings_id(settings)
        assert settings.get("backbone.window_rope") == (None if value == "window" else "image")
    assert ids["window"] != ids["image"]


def test_recipes_turn_tables_off_beside_rotary_positions() -> None:
    name = "timm:vit_tiny_patch16_dinov3_qkvb"
    for task, recipe, usual in (
        ("coco", "mask_rcnn_li2021", True),
        ("coco", "vitdet_cascade", "decomposed"),
        ("ade20k", "upernet_mae", "per_block"),
    ):
        assert load_config(task, "mae_vit_b", overrides=[f"recipe={recipe}"]).backbone.rel_pos == usual
        assert load_config(task, name, overrides=[f"recipe={recipe}"]).backbone.rel_pos is False
    assert load_config("coco", name, overrides=["backbone.rel_pos=true"]).backbone.rel_pos is True, "refused when built"
