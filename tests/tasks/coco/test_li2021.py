"""The encoder of `mask_rcnn_li2021` against Li et al. 2021 (arXiv 2111.11429), sections 2.1, 3 and 3.1(2), written out.

"we include both relative position biases and absolute position embeddings in all detection models ... For BEiT, we
transfer the pre-trained biases and randomly initialize the absolute position embeddings. For all other methods, we
zero-initialize the relative position biases and transfer the pre-trained absolute position embeddings. Relative
position biases are shared across windowed attention blocks and (separately) shared across global attention blocks. When
there is a spatial dimension mismatch between pre-training and fine-tuning, we resize the pre-trained parameters".
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mae_transfer.backbones import registry
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.tasks import make_task
from mae_transfer.tasks.coco.config import ModelConfig

WIDTH, DEPTH, HEADS = 64, 8, 4  # of the registered size `nano`
PRETRAINED, TUNED, WINDOW = 14, 20, 14  # tokens a side; a window is as large as the pre-training's grid
GLOBAL = {1, 3, 5, 7}  # the last block of each quarter


@pytest.fixture(autouse=True)
def small_beit(monkeypatch: pytest.MonkeyPatch) -> None:
    """`beit_vit_nano`: `beit_vit_b` but for its size."""
    small, beit = registry.find("mae_vit_nano"), registry.find("beit_vit_b")
    sizes = {name: getattr(small, name) for name in ("size", "embed_dim", "depth", "num_heads", "patch_size")}
    monkeypatch.setitem(registry._SPECS, "beit_vit_nano", dataclasses.replace(beit, name="beit_vit_nano", **sizes))


def encoder_of(backbone: str, *overrides: str, side: int = TUNED, **options: Any) -> ViTEncoder:
    """As a run of the recipe makes it, for images of so many tokens a side."""
    overrides = (*overrides, f"data.image_size={16 * side}")
    config = resolve_config("coco", backbone, data="synthetic", overrides=overrides, **options)
    torch.manual_seed(0)
    return make_task(config).build_encoder()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape)


def vit_file(path: Path, name: str = "vit.pth", **extra: Tensor) -> Path:
    """A plain ViT as MAE, DeiT and BEiT write it, by their common names, without positions."""
    torch.manual_seed(1)
    state = {
        "cls_token": normal(1, 1, WIDTH),
        "patch_embed.proj.weight": normal(WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": normal(WIDTH),
        "norm.weight": normal(WIDTH),
        "norm.bias": normal(WIDTH),
    }
    for i in range(DEPTH):
        for part, shape in {
            "norm1": (WIDTH,),
            "norm2": (WIDTH,),
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (4 * WIDTH, WIDTH),
            "mlp.fc2": (WIDTH, 4 * WIDTH),
        }.items():
            state[f"blocks.{i}.{part}.weight"] = normal(*shape)
            state[f"blocks.{i}.{part}.bias"] = normal(shape[0])
    torch.save({"model": state | extra}, path / name)
    return path / name


def beit_file(path: Path, name: str = "beit.pth", **tables: Tensor) -> Path:
    """BEiT's names: no key bias, LayerScale, no absolute positions, and the tables that are given."""
    state = torch.load(vit_file(path, name))["model"]
    for i in range(DEPTH):
        bias = state.pop(f"blocks.{i}.attn.qkv.bias")
        state[f"blocks.{i}.attn.q_bias"], state[f"blocks.{i}.attn.v_bias"] = bias[:WIDTH], bias[2 * WIDTH :]
        state[f"blocks.{i}.gamma_1"], state[f"blocks.{i}.gamma_2"] = normal(WIDTH), normal(WIDTH)
    torch.save({"model": state | tables}, path / name)
    return path / name


def cubic(t: float) -> float:
    """Keys' kernel with a = -0.75, which torch's bicubic interpolation has."""
    t, a = abs(t), -0.75
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def resampling(old: int, new: int) -> Tensor:
    """(new, old): bicubic weights of one axis, pixel centres aligned, the border repeated."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            weights[i, min(max(j, 0), old - 1)] += cubic(place - j)
    return weights


def test_positions_are_resized_once_and_trained_at_the_fine_tuning_grid(tmp_path: Path) -> None:
    pretrained = torch.randn(1, 1 + PRETRAINED**2, WIDTH)
    encoder = encoder_of("mae_vit_nano", checkpoint=vit_file(tmp_path, pos_embed=pretrained))
    axis = resampling(PRETRAINED, TUNED)
    grid = pretrained[0, 1:].double().reshape(PRETRAINED, PRETRAINED, WIDTH)
    expected = torch.einsum("ia,jb,abc->ijc", axis, axis, grid).reshape(1, TUNED**2, WIDTH)
    assert isinstance(encoder.vit.pos_embed, torch.nn.Parameter)
    torch.testing.assert_close(encoder.vit.pos_embed.double(), expected, rtol=0, atol=1e-5)
    assert encoder.vit.pos_embed.requires_grad
    # and the forward adds exactly this parameter, whose gradient is that of the tokens
    images = torch.randn(1, 3, 16 * TUNED, 16 * TUNED)
    seen: list[Tensor] = []
    encoder.vit.norm_pre.register_forward_hook(lambda module, inputs, output: seen.append(output))
    encoder(images)
    torch.testing.assert_close(seen[0], encoder.vit.patch_embed(images).flatten(1, 2) + encoder.vit.pos_embed)
    seen[0].sum().backward()
    assert torch.equal(encoder.vit.pos_embed.grad, torch.ones_like(encoder.vit.pos_embed))
    assert "14x14 -> 20x20, bicubic once" in " ".join(encoder.load_report.lines())


def test_positions_stay_as_they_are_at_the_pre_trainings_grid(tmp_path: Path) -> None:
    pretrained = torch.randn(1, 1 + PRETRAINED**2, WIDTH)
    encoder = encoder_of("mae_vit_nano", side=PRETRAINED, checkpoint=vit_file(tmp_path, pos_embed=pretrained))
    assert torch.equal(encoder.vit.pos_embed, pretrained[:, 1:])


def test_tables_are_zero_and_two(tmp_path: Path) -> None:
    file = vit_file(tmp_path, pos_embed=torch.randn(1, 1 + PRETRAINED**2, WIDTH))
    encoder = encoder_of("mae_vit_nano", checkpoint=file)
    assert encoder.global_blocks == GLOBAL
    tables = {name: p for name, p in encoder.named_parameters() if "rel_pos" in name}
    assert {name: tuple(p.shape) for name, p in tables.items()} == {
        "rel_pos_window": ((2 * WINDOW - 1) ** 2, HEADS),
        "rel_pos_global": ((2 * TUNED - 1) ** 2, HEADS),
    }
    assert not any(bool(p.any()) for p in tables.values())
    encoder(torch.randn(1, 3, 16 * TUNED, 16 * TUNED))[-1].square().sum().backward()
    assert all(bool(p.grad.any()) for p in tables.values())


def test_beit_brings_its_table_and_gets_random_positions(tmp_path: Path) -> None:
    """Its one table has the last three rows for the class token, which is dropped. A window is as large as its grid."""
    offsets = torch.randn((2 * PRETRAINED - 1) ** 2, HEADS)
    table = torch.cat([offsets, torch.randn(3, HEADS)])
    file = beit_file(tmp_path, **{"rel_pos_bias.relative_position_bias_table": table})
    encoder = encoder_of("beit_vit_nano", checkpoint=file)
    tables = {name: p for name, p in encoder.named_parameters() if "rel_pos" in name}
    assert tables.keys() == {"rel_pos_window", "rel_pos_global"}
    assert torch.equal(tables["rel_pos_window"], offsets)
    assert tables["rel_pos_global"].shape == ((2 * TUNED - 1) ** 2, HEADS)
    middle = {name: p[len(p) // 2] for name, p in tables.items()}  # no offset: the same at any grid
    torch.testing.assert_close(middle["rel_pos_global"], middle["rel_pos_window"], rtol=1e-4, atol=1e-4)

    position = encoder.vit.pos_embed
    assert position.shape == (1, TUNED**2, WIDTH)
    assert_cut_normal(position, 1.0)
    lines = " ".join(encoder.load_report.lines())
    assert "new: pos_embed: 20x20, normal" in lines
    assert "resized: rel_pos_global: 14x14 -> 20x20, geometric" in lines
    encoder(torch.randn(1, 3, 16 * TUNED, 16 * TUNED))[-1].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in (*tables.values(), position))


def test_a_beit_that_was_fine_tuned_keeps_its_blocks_tables_and_says_so(tmp_path: Path) -> None:
    """BEiT's fine-tuning gives each block a table of its own; Li et al. had weights of the pre-training alone."""
    rows = (2 * PRETRAINED - 1) ** 2 + 3
    own = {f"blocks.{i}.attn.relative_position_bias_table": torch.randn(rows, HEADS) for i in range(DEPTH)}
    encoder = encoder_of("beit_vit_nano", checkpoint=beit_file(tmp_path, **own))
    names = [name for name, _ in encoder.named_parameters() if "rel_pos" in name]
    assert names == [f"vit.blocks.{i}.attn.rel_pos_table" for i in range(DEPTH)]
    assert "warning: relative position tables differ by block" in " ".join(encoder.load_report.lines())
    assert encoder.vit.pos_embed.shape == (1, TUNED**2, WIDTH)


def assert_cut_normal(weight: Tensor, by: float) -> None:
    """Normal of deviation 0.02 / by, cut at one deviation: that leaves 0.5396 of the deviation."""
    assert weight.abs().max().item() <= 0.02 / by * 1.0001
    assert weight.abs().max().item() > 0.95 * 0.02 / by
    assert weight.std().item() == pytest.approx(0.5396 * 0.02 / by, rel=0.04)


def test_random_weights_are_initialised_as_beits() -> None:
    """beit/modeling_pretrain.py: `_init_weights`, then `fix_init_weight` by sqrt(2 n)."""
    encoder = encoder_of("random_vit_nano")
    assert encoder.vit.pos_embed.shape == (1, TUNED**2, WIDTH)
    assert_cut_normal(encoder.vit.pos_embed, 1.0)
    assert_cut_normal(encoder.vit.patch_embed.proj.weight, 1.0)
    for n, block in enumerate(encoder.vit.blocks, 1):
        assert_cut_normal(block.attn.qkv.weight, 1.0)
        assert_cut_normal(block.mlp.fc1.weight, 1.0)
        assert_cut_normal(block.attn.proj.weight, math.sqrt(2 * n))
        assert_cut_normal(block.mlp.fc2.weight, math.sqrt(2 * n))
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            assert not layer.bias.any()
        for norm in (block.norm1, block.norm2):
            assert (norm.weight == 1).all()
            assert not norm.bias.any()
    assert not encoder.rel_pos_window.any()
    assert not encoder.rel_pos_global.any()
    lines = " ".join(encoder.load_report.lines())
    assert "new: every weight: as BEiT's code initialises it" in lines
    assert "bicubic" not in lines


def test_vitdet_keeps_the_pre_trainings_grid_and_timms_weights(tmp_path: Path) -> None:
    """detectron2's ViT has `pos_embed` of 224 px, which `get_abs_pos` resamples at every forward, and initialises by a
    normal of 0.02 that is not cut."""
    pretrained = torch.randn(1, 1 + PRETRAINED**2, WIDTH)
    encoder = encoder_of("mae_vit_nano", "recipe=vitdet_mask_rcnn", checkpoint=vit_file(tmp_path, pos_embed=pretrained))
    assert torch.equal(encoder.vit.pos_embed, pretrained[:, 1:])
    random = encoder_of("random_vit_nano", "recipe=vitdet_mask_rcnn")
    assert random.vit.blocks[0].mlp.fc1.weight.abs().max() > 0.04


def test_a_runs_encoder_is_read_again(tmp_path: Path) -> None:
    """What the recipe made of a MAE and of a BEiT loads again with every tensor."""
    mae = vit_file(tmp_path, pos_embed=torch.randn(1, 1 + PRETRAINED**2, WIDTH))
    table = torch.randn((2 * PRETRAINED - 1) ** 2 + 3, HEADS)
    beit = beit_file(tmp_path, **{"rel_pos_bias.relative_position_bias_table": table})
    for backbone, file in (("mae_vit_nano", mae), ("beit_vit_nano", beit)):
        encoder = encoder_of(backbone, checkpoint=file)
        for parameter in encoder.parameters():
            parameter.data += 0.01
        saved = tmp_path / f"{backbone}.pth"
        torch.save(encoder.state_dict(), saved)
        again = encoder_of(backbone, checkpoint=saved)
        assert again.state_dict().keys() == encoder.state_dict().keys()
        assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_configuration_from_before_these_fields_means_what_ran_then() -> None:
    """A run folder of then is read with the defaults, and goes on with them."""
    model = ModelConfig()
    assert (model.pos_embed, model.abs_pos, model.random_init) == ("native", False, "timm")
