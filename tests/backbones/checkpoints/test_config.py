"""What a configuration beside a file states: taken over, checked against the backbone, or refused in one line."""

import dataclasses
import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from support.layouts import DIM, HF, PLAIN, SIZE, hooked, randomise, vit

from mae_transfer.backbones.checkpoints import files, hf_config, loader, position_grid
from mae_transfer.backbones.checkpoints.fixed_position import table
from mae_transfer.backbones.checkpoints.own import facts_of
from mae_transfer.backbones.load import load_backbone
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.errors import UserError


def write(folder, state, config=None, processor=None, name="model.safetensors", encoding="utf-8"):
    folder.mkdir(exist_ok=True)
    save_file({key: t.contiguous() for key, t in state.items()}, folder / name)
    for file, content in (("config.json", config), ("preprocessor_config.json", processor)):
        if content is not None:
            (folder / file).write_text(json.dumps(content), encoding=encoding)
    return folder


def load(folder, spec=PLAIN, **options):
    path = files.find(folder)
    return loader.load(spec, files.read(path), str(path), config=hf_config.beside(path), **options)


def refusal(folder, spec=PLAIN):
    with pytest.raises(UserError) as error:
        load(folder, spec)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- transformers


@pytest.fixture(scope="module")
def hugging_face():
    model = randomise(transformers.ViTModel(transformers.ViTConfig(**HF)))
    keys = {"model_type": "vit", "num_attention_heads": 4, "layer_norm_eps": 1e-6, "image_size": SIZE}
    return model.state_dict(), keys | {"hidden_act": "gelu"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"layer_norm_eps": -1e-6}, "layer_norm_eps is -1e-06"),
        ({"layer_norm_eps": False}, "layer_norm_eps is False"),
        ({"layer_norm_eps": 10**400}, "layer_norm_eps is 1000"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_attention_heads": 4.0}, "num_attention_heads is 4.0"),
        ({"num_attention_heads": 2}, "has 2 heads, tiny has 4"),
        ({"hidden_act": "gelu_new"}, "has hidden_act 'gelu_new', tiny has gelu"),
        ({"hidden_act": ["gelu"]}, "has hidden_act ['gelu'], tiny has gelu"),
        ({"image_size": 48}, "position_embeddings has 16 positions, its config.json states a grid of 6x6"),
        ({"image_size": [32]}, "image_size is [32]"),
        ({"image_size": "32"}, "image_size is '32'"),
        ({"hidden_size": 2 * DIM}, f"says hidden_size {2 * DIM} and its weights have {DIM} channels"),
        ({"num_hidden_layers": 12}, f"says num_hidden_layers 12 and its weights have {HF['num_hidden_layers']} blocks"),
        ({"num_hidden_layers": "12"}, "num_hidden_layers is '12'"),
        ({"patch_size": 16}, "says patch_size 16x16 and its weights have 8x8 pixels a patch"),
        ({"patch_size": [8, 16]}, "says patch_size 8x16 and its weights have 8x8 pixels a patch"),
        ({"patch_size": "8"}, "patch_size is '8'"),
    ],
    ids=str,
)
def test_values_that_no_model_has(hugging_face, tmp_path, change, told):
    state, config = hugging_face
    assert told in refusal(write(tmp_path, state, config | change))


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"image_mean": 0.5, "image_std": [0.25]}, (0.5,) * 3, (0.25,) * 3),
        ({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, (0.0,) * 3, (1.0,) * 3),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5}, (0.25,) * 3, (0.25,) * 3),
        ({"do_normalize": False, "rescale_factor": 2 / 255}, (0.0,) * 3, (0.5,) * 3),
    ],
    ids=str,
)
def test_normalisation_is_the_processors(hugging_face, tmp_path, processor, mean, std):
    """transformers gives (pixel * rescale_factor - image_mean) / image_std; here (pixel / 255 - mean) / std."""
    _, report = load(write(tmp_path, *hugging_face, processor))
    assert report.spec.mean == pytest.approx(mean)
    assert report.spec.std == pytest.approx(std)
    pixels = torch.randint(256, (3, 4, 4)).float()
    theirs = transformers.ViTImageProcessor(**{"do_resize": False, "do_convert_rgb": False} | processor)
    out = torch.as_tensor(
        theirs(pixels.byte(), input_data_format="channels_first", return_tensors="pt").pixel_values[0]
    )
    ours = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    if "image_std" not in processor or (isinstance(processor["image_std"], list) and len(processor["image_std"]) == 3):
        torch.testing.assert_close(out, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("processor", "told"),
    [
        ({"image_std": [0.5, 0.0, 0.5]}, "image std is [0.5, 0.0, 0.5]; give numbers above 0"),
        ({"image_std": 0}, "image std is 0; give numbers above 0"),
        ({"image_std": [float("nan")] * 3}, "image std is [nan, nan, nan]"),
        ({"image_std": [True] * 3}, "image std is [True, True, True]"),
        ({"image_mean": [0.5, 0.5]}, "image mean is [0.5, 0.5]; give a number for each of 3 channels"),
        ({"image_mean": [123.675, 116.28, 103.53]}, "for pixels of 0 to 255; divide it by 255"),
        ({"image_mean": "0.5"}, "image mean is '0.5'"),
        ({"do_rescale": False}, "do_rescale is false"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is true, so that the weights are for BGR images"),
        ({"do_normalize": 0}, "do_normalize is 0; give true or false"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
    ],
    ids=str,
)
def test_normalisations_that_are_none(hugging_face, tmp_path, processor, told):
    assert told in refusal(write(tmp_path, *hugging_face, processor))


def test_what_a_configuration_without_the_name_of_its_model_states_is_heeded(hugging_face, tmp_path):
    state, config = hugging_face
    config = {key: value for key, value in config.items() if key != "model_type"}
    assert load(write(tmp_path, state, config | {"layer_norm_eps": 0.03}))[1].spec.eps == 0.03
    assert "has 2 heads, tiny has 4" in refusal(write(tmp_path, state, config | {"num_attention_heads": 2}))


def test_json_with_a_byte_order_mark_is_read_and_what_is_none_refused(hugging_face, tmp_path):
    state, config = hugging_face
    for encoding in ("utf-8-sig", "utf-16"):
        write(tmp_path, state, config | {"layer_norm_eps": 0.03}, encoding=encoding)
        assert load(tmp_path)[1].spec.eps == 0.03
    for text, told in (
        ("[" * 100000, "nested deeper than 100 levels"),
        ("[1]", "holds a list"),
        ('{"a": 1' + "0" * 5000 + "}", "a number has 5001 digits"),
    ):
        (tmp_path / "config.json").write_text(text)
        assert told in refusal(tmp_path)


# --- timm and OpenCLIP


def of_small(args, architecture="vit_small_patch16_224"):
    """A configuration of timm that changes an architecture to the sizes here, but for `args`."""
    return {"architecture": architecture, "model_args": {"embed_dim": DIM, "depth": 2, "patch_size": 8} | args}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_args": {"num_heads": 8}}, "has 8 heads, tiny has 4"),
        ({"model_args": {"num_heads": 4, "act_layer": "relu"}}, "has act_layer 'relu', tiny has gelu"),
        ({"model_args": {"num_heads": 4, "act_layer": "quick_gelu"}}, "has act_layer 'quick_gelu', tiny has gelu"),
        ({"architecture": "vit_small_patch16_224"}, "vit_small_patch16_224, whose embed_dim is 384 and its weights"),
        (of_small({}), "has 6 heads, tiny has 4"),
        (of_small({"num_heads": 4, "depth": 3}), "says depth 3 and its weights have 2 blocks"),
        (of_small({"num_heads": 4, "patch_size": 16}), "says patch_size 16x16 and its weights have 8x8 pixels"),
        (of_small({"num_heads": 4}, "vit_small_patch16_rope_ape_224"), "positions are rotary"),
        ({"model_args": {"num_heads": 4, "img_size": 48}}, "16 positions, its config.json states a grid of 6x6"),
        ({"model_args": {"num_heads": "4"}}, "model_args num_heads is '4'"),
        ({"model_args": [4]}, "model_args and pretrained_cfg are no objects"),
        ({"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5, 0.5, -1]}}, "pretrained_cfg std"),
    ],
    ids=str,
)
def test_timms_arguments_of_the_model(tmp_path, change, told):
    config = {"architecture": "mine", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    assert told in refusal(write(tmp_path, vit().state_dict(), config | change))
    write(
        tmp_path, vit().state_dict(), config | {"model_args": {"num_heads": 4, "act_layer": "gelu", "img_size": SIZE}}
    )
    assert load(tmp_path)[1].spec.mean == (0.5, 0.5, 0.5)
    write(tmp_path, vit().state_dict(), {"architecture": "mine", "mean": [0.4] * 3, "std": [0.5] * 3})
    assert load(tmp_path)[1].spec.mean == (0.4, 0.4, 0.4), "timm's early form"


def test_quick_gelu_of_open_clip(tmp_path):
    from support.layouts import layout

    case = layout("CLIP")
    write(tmp_path, case.state, name="open_clip_model.safetensors")
    vision = {"image_size": SIZE, "width": DIM, "head_width": DIM // 4, "patch_size": 8}
    model = {"embed_dim": 12, "vision_cfg": vision}
    config = {"model_cfg": model, "preprocess_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}

    def state(change):
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config | {"model_cfg": model | change}))

    state({})
    _, report = load(tmp_path, case.spec)
    assert report.spec.std == (0.2, 0.2, 0.2)
    assert not report.warnings  # the configuration says what the tensors do not
    for change, told in (
        ({"quick_gelu": True}, "has quick_gelu 'quick_gelu', timm:vit_tiny_clip has gelu"),
        ({"quick_gelu": 1}, "quick_gelu is 1; give true or false"),
        ({"vision_cfg": vision | {"head_width": 16}}, "has 2 heads"),
        ({"vision_cfg": vision | {"width": 2 * DIM}}, f"says width {2 * DIM} and its weights have {DIM} channels"),
        ({"vision_cfg": vision | {"layers": 3}}, "says layers 3 and its weights have 2 blocks"),
        ({"vision_cfg": vision | {"patch_size": 16}}, "says patch_size 16x16 and its weights have 8x8 pixels"),
        ({"vision_cfg": None}, "has no model_cfg with a vision_cfg"),
    ):
        state(change)
        assert told in refusal(tmp_path, case.spec)


# --- grids that are no square


def test_relative_tables_of_another_image_size(tmp_path):
    from support.layouts import layout

    case = layout("HF BEiT")
    load(write(tmp_path, case.state, {"image_size": SIZE}), case.spec)
    told = refusal(write(tmp_path, case.state, {"image_size": 48}), case.spec)
    assert "tables of relative positions have 52 rows, its config.json states a grid of 6x6" in told


@pytest.mark.parametrize("size", [(64, 16), (16, 64), (64, 144), (24, 56)], ids=str)
def test_a_grid_that_is_no_square_is_the_configurations(tmp_path, size):
    """2 x 8 is as many as 4 x 4: with image_size the encoder's output is the source's, at that size and at another."""
    images = torch.randn(1, 3, *size)
    model = randomise(transformers.ViTModel(transformers.ViTConfig(**HF | {"image_size": list(size)})))
    model.save_pretrained(tmp_path / "hf")
    state = vit(img_size=size).state_dict()
    pretrained = {"input_size": [3, *size], "mean": [0.5] * 3, "std": [0.5] * 3}
    write(tmp_path / "args", state, {"model_args": {"img_size": list(size), "num_heads": 4}, "pretrained_cfg": {}})
    write(tmp_path / "input", state, {"pretrained_cfg": pretrained})
    for folder in ("hf", "args", "input"):
        loaded, report = load(tmp_path / folder)
        assert loaded.patch_embed.grid_size == (size[0] // 8, size[1] // 8)
        encoder = ViTEncoder(loaded, report.spec, taps=(0, 1)).eval()
        expected = hooked(model, model.layers, 1)(images) if folder == "hf" else None
        with torch.no_grad():
            for ours, theirs in zip(encoder(images), expected or [], strict=folder == "hf"):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_grid_that_nothing_states_is_told_by_its_values_or_said(tmp_path):
    torch.manual_seed(1)
    for grid in ((2, 8), (8, 18), (6, 4)):
        for columns_first in (True, False):
            assert position_grid.by_values(table(grid, 32, columns_first=columns_first)[0, 1:]) == grid
        rows, columns = torch.randn(2, max(grid), 32).cumsum(1)  # learned: neighbours are alike
        learned = (rows[: grid[0], None] + columns[None, : grid[1]]).flatten(0, 1)
        assert position_grid.by_values(learned) == grid
        assert position_grid.by_values(torch.randn(grid[0] * grid[1], 32)) is None
    torch.manual_seed(0)
    for _ in range(20):
        rows, columns = torch.randn(2, 14, 32).cumsum(1)
        assert position_grid.by_values((rows[:, None] + columns).flatten(0, 1)) is None  # a square stays one
    state = vit(img_size=(16, 64)).state_dict()
    loaded, report = loader.load(PLAIN, state, "some.pth", img_size=(16, 64))
    assert loaded.patch_embed.grid_size == (4, 4)
    assert "pos_embed: 16 positions are read as 4x4, not 2x8" in report.warnings[0]
    state = vit(img_size=(16, 48)).state_dict()  # no square: the size that it is loaded at, or the advice
    assert loader.load(PLAIN, state, "some.pth", img_size=(16, 48))[0].patch_embed.grid_size == (2, 6)
    with pytest.raises(UserError, match=r"pos_embed is \(1, 13, 32\).* takes image_size in a config\.json"):
        loader.load(PLAIN, state, "some.pth")


# --- runs of this project at another size


@pytest.mark.parametrize("stored", ["now", "as earlier code stored it"])
@pytest.mark.parametrize("size", [48, (48, 80)], ids=str)
def test_a_run_at_another_size_than_its_pretraining_is_loaded(tmp_path, size, stored):
    """The position embedding was resampled once, to the fine-tuning's grid; earlier code stored the old size."""
    encoder = load_backbone("random_vit_nano", img_size=size, pos_embed="resized").eval()
    facts = facts_of(encoder)
    assert facts["img_size"] == list((size, size) if isinstance(size, int) else size)
    if stored != "now":
        facts["img_size"] = 224
    origin = {"encoder": facts}
    model = {f"encoder.{key}": t for key, t in encoder.state_dict().items()}
    torch.save({"step": 3, "model": model, "optimizer": {}, "ema": None, "origin": origin}, tmp_path / "run.pt")
    again = load_backbone("vit_nano", checkpoint=tmp_path / "run.pt", img_size=size).eval()
    assert again.native_grid == encoder.pos_grid
    images = torch.randn(1, 3, *((size, size) if isinstance(size, int) else size))
    with torch.no_grad():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(again(images), encoder(images), strict=True))


@pytest.mark.parametrize("name", ["vit_nano", "mae_vit_nano"])
def test_a_run_keeps_what_its_first_weights_said(tmp_path, name):
    """Mean, std and eps stand in no tensor: a run that began from such weights hands them on, under any name."""
    encoder = load_backbone("random_vit_nano", img_size=32).eval()
    told = {"mean": (0.1, 0.2, 0.3), "std": (0.9, 0.8, 0.7), "eps": 0.05}
    encoder.spec = dataclasses.replace(encoder.spec, **told)
    origin = {"encoder": facts_of(encoder)}
    model = {f"encoder.{key}": t for key, t in encoder.state_dict().items()}
    torch.save({"step": 3, "model": model, "optimizer": {}, "ema": None, "origin": origin}, tmp_path / "run.pt")
    again = load_backbone(name, checkpoint=tmp_path / "run.pt", img_size=32)
    assert {key: getattr(again.spec, key) for key in told} == told
    assert (again.mean, again.vit.blocks[0].norm1.eps) == (told["mean"], 0.05)
    assert "  from the file: LayerNorm eps 0.05" in again.load_report.lines()


@pytest.mark.parametrize("origin", [5, {"encoder": None}, {"encoder": [1]}, {"encoder": {"trained_by": 3}}], ids=str)
def test_what_a_run_says_of_itself_is_checked(tmp_path, origin):
    model = {f"encoder.{key}": t for key, t in load_backbone("random_vit_nano").state_dict().items()}
    torch.save({"step": 3, "model": model, "optimizer": {}, "ema": None, "origin": origin}, tmp_path / "run.pt")
    with pytest.raises(UserError, match="take another checkpoint"):
        load_backbone("vit_nano", checkpoint=tmp_path / "run.pt")
