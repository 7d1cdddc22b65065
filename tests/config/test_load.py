"""Recipe files, presets, overrides and the errors they give."""

import contextlib
import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from mae_transfer.config.load import dump_config
from mae_transfer.config.overrides import leaf_keys, override_texts
from mae_transfer.config.recipe import config_folder, read_recipe
from mae_transfer.config.yaml import dump_yaml, parse_yaml
from mae_transfer.errors import UserError
from mae_transfer.runs.plan import plan_runs
from mae_transfer.runs.resolve import load_config
from mae_transfer.runs.tasks import task_cards
from mae_transfer.tasks.coco.config import CocoConfig

RECIPES = sorted(path for path in config_folder().glob("*/*.yaml") if path.parent.name != "suites")
BACKBONES = ["mae_vit_b", "mae_vit_l", "mae_vit_h", "mocov3_vit_b", "random_vit_ti", "timm:vit_small_patch16_224.dino"]


@pytest.mark.parametrize("path", [path for path in RECIPES if path.parent.name != "pretrain"], ids=lambda p: p.stem)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_recipe_and_preset_resolves(path: Path, backbone: str) -> None:
    task = next(card.name for card in task_cards(transfers=True) if card.folder == path.parent.name)
    recipe = read_recipe(path.parent.name, path.stem)
    overrides = [f"recipe={path.stem}"] + ["model.blocks=1"] * (recipe["base"].get("protocol") == "partial")
    for preset in recipe["presets"]:
        config = load_config(task, backbone, preset=preset, overrides=overrides)
        assert config.backbone.name == backbone
        again = type(config).model_validate(yaml.safe_load(dump_config(config)))
        assert again == config, "a printed configuration must read back as itself"


@pytest.mark.parametrize("path", [path for path in RECIPES if path.parent.name == "pretrain"], ids=lambda p: p.stem)
@pytest.mark.parametrize("backbone", ["vit_ti", "vit_b", "vit_l", "vit_h", "vit_s_p8"])
def test_every_recipe_of_pretraining_resolves(path: Path, backbone: str) -> None:
    for preset in read_recipe("pretrain", path.stem)["presets"]:
        config = load_config("pretrain", backbone, preset=preset, overrides=[f"recipe={path.stem}"])
        assert config.backbone.name == backbone
        again = type(config).model_validate(yaml.safe_load(dump_config(config)))
        assert again == config, "a printed configuration must read back as itself"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_value_carries_a_source(path: Path) -> None:
    """Each value of the base recipe has a comment in its line or stands under a section that has one."""
    text = path.read_text()
    base = text[text.index("\nbase:") :].split("\npresets:")[0].splitlines()
    section_sourced = False
    follows_source = False
    for line in base:
        if (
            line.strip().endswith(":")
            or line.strip().endswith(":  ")
            or (line.strip() and ": " not in line and "#" in line)
        ):
            section_sourced, follows_source = "#" in line, False
            continue
        if ":" not in line or line.lstrip().startswith(("#", "protocol:", "method:")):  # what it is for is no value
            continue
        if line.rstrip().endswith(":"):
            section_sourced = False
        follows_source = follows_source or "#" in line
        assert "#" in line or section_sourced or follows_source, f"no source: {line}"


def test_layers_win_in_order() -> None:
    base = load_config("coco", "mae_vit_b")
    assert (base.backbone.drop_path, base.optim.lr, base.schedule.epochs) == (0.1, 8e-5, 100)
    large = load_config("coco", "mae_vit_l")
    assert large.backbone.drop_path == 0.3
    random = load_config("coco", "mae_vit_b", options={"backbone.weights": "random"})
    assert (random.optim.lr, random.optim.weight_decay) == (1.6e-4, 0.2)
    assert load_config("coco", "random_vit_b").optim == random.optim
    assert load_config("coco", "random_vit_b").backbone.weights == "random"
    assert load_config("coco", "mocov3_vit_b").optim.lr == 1.6e-4
    override = load_config("coco", "mocov3_vit_b", preset="mini", overrides=["optim.lr=4e-6", "optim.lr=5e-6"])
    assert override.optim.lr == 5e-6


def test_smoke_says_random_and_a_named_checkpoint_wins() -> None:
    assert load_config("coco", "mae_vit_l", preset="smoke").backbone.weights == "random"
    named = load_config("coco", "mae_vit_l", preset="smoke", options={"backbone.checkpoint": "x.pth"})
    assert named.backbone.weights == "pretrained"


def test_weights_as_override_are_as_by_flag() -> None:
    flag = load_config("coco", "mae_vit_b", options={"backbone.weights": "random"})
    assert load_config("coco", "mae_vit_b", overrides=["backbone.weights=random"]) == flag
    smoke = load_config("coco", "mae_vit_b", preset="smoke", overrides=["backbone.checkpoint=x.pth"])
    assert smoke.backbone.weights == "pretrained"


def test_one_length_replaces_the_other() -> None:
    assert load_config("coco", "mae_vit_b", overrides=["schedule.steps=7"]).schedule.epochs is None
    assert load_config("coco", "mae_vit_b", preset="smoke", overrides=["schedule.epochs=2"]).schedule.steps is None
    warm = load_config("coco", "mae_vit_b", preset="smoke", overrides=["schedule.warmup_epochs=0.5"]).schedule
    assert (warm.warmup_epochs, warm.warmup_steps) == (0.5, None)
    with pytest.raises(UserError, match="exactly one"):
        load_config("coco", "mae_vit_b", overrides=["schedule.steps=7", "schedule.epochs=2"])


@pytest.mark.parametrize(
    ("task", "backbone", "preset", "overrides", "expected"),
    [
        ("cocoo", "mae_vit_b", "full", [], "unknown task 'cocoo', did you mean coco?"),
        ("COCO", "mae_vit_b", "full", [], "unknown task 'COCO', did you mean coco?"),
        ("coco", "mae_vit_bb", "full", [], "mae_vit_b"),
        ("coco", "mae_vit_b", "smok", [], "did you mean smoke?"),
        ("coco", "mae_vit_b", "full", ["lr=1"], "unknown config key 'lr', did you mean optim.lr?"),
        ("coco", "mae_vit_b", "full", ["optim.lrr=1"], "did you mean optim.lr"),
        ("coco", "mae_vit_b", "full", ["optim.lr=-1"], "'optim.lr': Input should be greater than 0, got -1"),
        ("coco", "mae_vit_b", "full", ["optim.betas=0.9"], r"'optim.betas': give a list, such as \[0.9\], got 0.9"),
        ("coco", "mae_vit_b", "full", ["optim.lr=fast"], "'optim.lr': .*got 'fast'"),
        (
            "coco",
            "mae_vit_b",
            "full",
            ["schedule.kind=linear"],
            "schedule.kind.*'step', 'poly' or 'one_cycle'",
        ),
        ("coco", "mae_vit_b", "full", ["optim.lr"], "not an override"),
        ("coco", "mae_vit_b", "full", ["optim.lr=[1"], "not valid YAML"),
        ("coco", "mae_vit_b", "full", ["recipe=mask_rcnn_li"], "did you mean mask_rcnn_li2021?"),
        ("coco", "random_vit_b", "full", ["backbone.weights=pretrained"], "has no pretrained weights"),
        ("coco", "mae_vit_b", "full", ["engine=torchvision"], "key 'engine'; --engine or model.implementation= names"),
        ("ade20k", "mae_vit_b", "full", ["engine=torchvision"], "unknown config key 'engine'"),
        ("coco", "mae_vit_b", "full", ["data.scale_min=3"], "data.scale_min.*scale_max"),
        ("coco", "mae_vit_b", "full", ["optim.lr=1e300"], "'optim.lr': .*less than or equal to 10+, got 1e"),
        ("coco", "mae_vit_b", "full", ["data.workers=100000"], "'data.workers.*less than or equal to 512"),
        ("imagenet", "mae_vit_b", "full", ["data.image_size=100000"], "'data.image_size': .*equal to 8192"),
        ("imagenet", "mae_vit_b", "full", ["eval.crop_pct=1e-9"], "'eval.crop_pct': .*equal to 0.1"),
        ("coco", "mae_vit_b", "full", ["data.scale_max=1e4"], "scale_max=10000 times .*image_size=1024 is above 32768"),
        ("coco", "mae_vit_b", "full", ["model.fpn_channels=1e12"], "'model.fpn_channels': .*less than or equal to 6"),
        ("coco", "mae_vit_b", "full", ["model.mask_convs=1e6"], "'model.mask_convs': .*less than or equal to 256"),
        ("ade20k", "mae_vit_b", "full", ["data.ratio_max=1e9"], "short_side 512 at ratio 1e.09 is above 32768 pixels"),
        ("ade20k", "mae_vit_b", "full", ["data.short_side=1e6", "data.long_side=1e6"], "short_side 1000000 .*above 3"),
        ("ade20k", "mae_vit_b", "full", ["eval.ratios=[1,1e9]"], "short_side 512 at eval.ratios 1e.09 is above 32768"),
        ("imagenet", "mae_vit_b", "full", ["recipe=logreg", "probe.c_count=1e9"], "'probe.c_count': .*equal to 1000"),
        ("imagenet", "mae_vit_b", "full", ["recipe=logreg", "probe.c_powers=[-6,400]"], "'probe.c_powers.1': .* 300"),
    ],
)
def test_bad_configuration_is_one_line(
    task: str, backbone: str, preset: str, overrides: list[str], expected: str
) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        load_config(task, backbone, preset=preset, overrides=overrides)
    assert "\n" not in str(caught.value)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    recipe = read_recipe("coco", "mask_rcnn_li2021")
    recipe["base"]["optim"]["lr"] = 3e-5
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe))
    mine = load_config("coco", "mae_vit_b", overrides=[f"recipe={path}"])
    assert mine.optim.lr == 3e-5
    assert mine.recipe == "mask_rcnn_li2021", "the recipe's name is in the file, not in its path"
    recipe["base"]["optim"]["nesterov"] = True
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match="'optim.nesterov'"):
        load_config("coco", "mae_vit_b", overrides=[f"recipe={path}"])


def test_every_field_is_reachable_by_an_override() -> None:
    keys = leaf_keys(CocoConfig)
    assert {"optim.lr", "data.train_json", "train.micro_batch", "seed"} <= set(keys)
    assert len(keys) == len(set(keys))


def test_overrides_may_be_a_mapping() -> None:
    texts = load_config("coco", "mae_vit_b", overrides=["optim.lr=4e-5", "data.flip=0"])
    assert load_config("coco", "mae_vit_b", overrides={"optim.lr": 4e-5, "data.flip": 0.0}) == texts
    nested = {"optim": {"lr": 4e-5}, "data": {"flip": 0.0, "train_json": Path("a.json")}}
    of_nested = load_config("coco", "mae_vit_b", overrides=nested)
    assert of_nested == load_config("coco", "mae_vit_b", overrides=[*override_texts(nested)])
    assert of_nested.optim == texts.optim
    for odd in ({"optim.lrr": 1}, {"optim": {"lrr": 1}}):
        with pytest.raises(UserError, match="'optim.lrr', did you mean optim.lr"):
            load_config("coco", "mae_vit_b", overrides=odd)
    with pytest.raises(UserError, match="is one text; give a list of key=value, or a mapping"):
        load_config("coco", "mae_vit_b", overrides="optim.lr=4e-5")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"base: {a: no, a: 1}\n", "the key 'a' is there twice"),
        (b"extends: mine\n", "extends has to name another recipe"),
        (b"extends: [1]\n", "extends has to name another recipe"),
        (b"base: &x [*x]\n", "holds itself"),
        (b"[" * 5000, "more than 40 levels"),
        (b"base: !!python/object:os.system x\n", "could not determine a constructor"),
        (b"\xff\xfeb\x00", "is not UTF-8"),
        (b"base: {}\npresets: {full: 3}\n", "mine.yaml: presets.full has to be a mapping of keys to values, but is 3"),
        (b"base: {}\npresets: {1: {}}\n", "mine.yaml: presets: the key 1 has to be a word"),
        (b"base: {}\npresets: {full: {backbone: random}}\n", "presets.full.backbone has to be a mapping .* 'random'"),
        (b"base: {optim: 3}\npresets: {full: }\n", "mine.yaml: base.optim has to be a mapping of keys to values"),
        (b"base: {optim: }\npresets: {full: }\n", "base.optim has to be a mapping of keys to values, but is None"),
        (b"base: {}\npresets: {full: }\nsizes: {h: {data: [1]}}\n", "sizes.h.data has to be a mapping"),
        (b"base: {}\npresets: {full: }\nsearch: {full: 3}\n", "mine.yaml: search.full has to be a mapping"),
        (b"base: {}\npresets: {full: }\nsearch: {random: 5}\n", "mine.yaml: search.random has to be a mapping"),
        (b"base: {}\npresets: {full: }\nsearch: {random: {full: 5}}\n", "search.random.full has to be a mapping"),
        (b"base: {}\npresets: {full: }\nsearch: {full: {optim.lr: 1}}\n", "search.full.optim.lr has to be a list of"),
        (b"base: {}\npresets: {full: }\nrecipe: [1]\n", "mine.yaml: recipe has to be a name, but is"),
        (
            b"extends: mask_rcnn_li2021\nbase: {optim: {betas: 3}}\n",
            "mine.yaml: config key 'optim.betas': give a list, such",
        ),
        (b"base: {}\npresets: {}\nprests: {}\n", "unknown section 'prests', did you mean presets"),
        (b"base: 3\npresets: {}\n", "mine.yaml: base has to be a mapping of keys to values, but is 3"),
        (b"- 1\n", "no mapping of keys to values"),
    ],
)
def test_an_odd_recipe_file_is_one_line(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content.replace(b"extends: mine", f"extends: {path}".encode()))
    with pytest.raises(UserError, match=expected) as caught:
        load_config("coco", "mae_vit_b", overrides=[f"recipe={path}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["!!bool x", "!!timestamp x", "!!timestamp 2024-01-01", "!!set {a}", "!!map xy", "!!int x", "!!null x"]
)
def test_a_tag_that_its_value_does_not_fit_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="override 'seed=!!.* the value is not valid YAML: ") as caught:
        load_config("coco", "mae_vit_b", overrides=[f"seed={text}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["|", ">", " |-", ">+"])
def test_an_override_holds_no_block_of_text(text: str) -> None:
    with pytest.raises(UserError, match="begins a block of text in YAML; put the value in quotes"):
        load_config("coco", "mae_vit_b", overrides=[f"backbone.checkpoint_key={text}"])
    quoted = load_config("coco", "mae_vit_b", overrides=[f"backbone.checkpoint_key='{text}'"])
    assert quoted.backbone.checkpoint_key == text


@pytest.mark.parametrize(
    "text", ["optim.lr=true", "seed=false", "optim.betas=[false, 0.9]", "backbone.checkpoint_key=true"]
)
def test_true_is_no_number(text: str) -> None:
    with pytest.raises(UserError, match="Input should not be true or false") as caught:
        load_config("coco", "mae_vit_b", overrides=[text])
    assert text.partition("=")[0] in str(caught.value)


ODD = (3, "x", [], {}, None, True, ["finetune"], [1, [2]], {3: 4}, {"a": {"b": 1}}, [{}], 10**30, float("nan"))


def test_any_value_of_a_recipe_may_be_odd(tmp_path: Path) -> None:
    """The loop over all of `configs/` found no traceback; here each place of two recipes meets one odd value."""
    path, refused = tmp_path / "mine.yaml", 0
    for task, name in (("coco", "coco/mask_rcnn_li2021"), ("folder", "classification/linear_mae")):
        tree = yaml.safe_load((config_folder() / f"{name}.yaml").read_text())
        for number, place in enumerate(places(tree)):
            odd = copy.deepcopy(tree)
            above: Any = odd
            for key in place[:-1]:
                above = above[key]
            above[place[-1]] = ODD[number % len(ODD)]
            path.write_text(dump_yaml(odd))
            with contextlib.suppress(UserError):
                refused += 1
                plan_runs(task, "random_vit_nano", search=task == "coco", output=tmp_path, overrides=[f"recipe={path}"])
                refused -= 1
    assert refused > 100


def places(tree: object) -> list[tuple[Any, ...]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in pairs for place in ((key,), *((key, *inner) for inner in places(value)))]


TEXTS = (
    *("yes", "no", "on", "y", "1e5", "0x10", "0o17", "1_000", "012", "1:30", "~", "null", "true", "2024-01-01", ".inf"),
    *("", " ", " a", "a ", ":", "a: b", "a #b", "#", "- x", "-", "?", "'", '"', "\\", "%", "@", "`", "[", "{}", "!x"),
    *("&a", "*a", "|", ">", "<<", "=", "---", "...", "a\nb", "\n", "1\n", "\t", "\r", "\0", "\x85", "\u2028", "\ufeff"),
    *("é", "日本", "\U0001f600", "\ud800", "a " * 100, "9" * 500),
)


def test_what_is_written_as_yaml_is_read_as_it_was() -> None:
    draw, letters = random.Random(0), "ab01 :-_.~#'\"\\\n\t?[]{},!&*|>%@<=+eExonyNO\x85é\ud800"
    drawn = ["".join(draw.choices(letters, k=draw.randrange(8))) for _ in range(3000)]
    for text in (*TEXTS, *drawn):
        values = {"a": text, "b": [text, {text: text}]}
        assert parse_yaml(dump_yaml(values)) == values
        assert yaml.safe_load(dump_yaml(values)) == values, "readers of YAML 1.1 find the same"
    shared = [1.0, 1e-5, 1e22, 7, True, None]
    assert repr(parse_yaml(dump_yaml({"a": shared, "b": shared}))) == repr({"a": shared, "b": shared})


def test_a_text_that_looks_like_a_number_stays_one_in_a_stored_configuration() -> None:
    config = load_config("coco", "mae_vit_b", options={"backbone.checkpoint": "1e5"})
    assert parse_yaml(dump_config(config))["backbone"]["checkpoint"] == "1e5"


def test_merge_keys() -> None:
    text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\nc: {<<: [*a, {z: 4}], x: 5}\n"
    assert parse_yaml(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 5, "y": 2, "z": 4}}
    assert parse_yaml("a: {<<: &b {<<: {x: 1}, x: 2}}\nd: *b") == {"a": {"x": 2}, "d": {"x": 2}}
    for odd, expected in (
        ("a: {<<: 3}", "expected a mapping or list of mappings for merging"),
        ("a: {<<: {x: 1}, <<: {y: 1}}", "the key '<<' is there twice"),
        ("a: &a {<<: *a}", "holds itself"),
    ):
        with pytest.raises(ValueError, match=expected):
            parse_yaml(odd)


def test_yaml_is_read_as_its_second_version_says() -> None:
    assert parse_yaml("a: no\nb: 1:30\nc: 2024-02-30\nd: 1e-3\ne: 007") == {
        **{"a": "no", "b": "1:30", "c": "2024-02-30", "d": 0.001, "e": 7}
    }
