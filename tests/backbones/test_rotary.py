"""Encoders with rotary positions: timm's Eva in all that an encoder does, and the two readings of windows.

That maps are timm's at its own and at other grids is in `checkpoints/test_layouts.py`, for one model of each kind.
"""

import itertools
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support.layouts import randomise, tiny_arch
from support.layouts.case import DEPTH, DIM, GRID, PATCH, SHAPE, SIZE
from support.layouts.rotary import DINOV3, EVA02, PE, ROPE, SWIGLU
from timm.layers import RmsNorm
from timm.models.eva import Eva, EvaBlockPostNorm
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mae_transfer.backbones.checkpoints import loader
from mae_transfer.backbones.flops import encoder_flops
from mae_transfer.backbones.load import load_backbone
from mae_transfer.backbones.vit import ViTEncoder
from mae_transfer.config.sections import OptimConfig
from mae_transfer.engine.optim import param_groups
from mae_transfer.errors import UserError

NUMBERS = itertools.count()
BARE = {"class_token": False, "num_reg_tokens": 0, "use_abs_pos_emb": False}
AXIAL = {**ROPE, "attn_type": "rope", "rope_grid_indexing": "xy"}
MIXED = {"use_rot_pos_emb": True, "attn_type": "rope", "rope_type": "mixed", "init_values": 0.1}
SAPIENS2 = DINOV3 | {
    "attn_type": "rope",
    "qkv_fused": False,
    "num_kv_heads": (4, 2),
    "qk_norm": True,
    "swiglu_mlp": True,
    "attn_only_layer_scale": True,
    "norm_layer": partial(RmsNorm, eps=1e-6),
}
KINDS = {
    "DINOv3": DINOV3,
    "DINOv3 SwiGLU": DINOV3 | SWIGLU | {"qkv_bias": False},
    "EVA-02": EVA02,
    "Perception Encoder": PE,
    "axial": AXIAL | {"no_embed_class": True, "init_values": 0.1},
    "mixed": MIXED | {"no_embed_class": True},
    "registers alone": ROPE | BARE | {"num_reg_tokens": 2, "init_values": 0.1},
    "Sapiens2": SAPIENS2,
    "EVA, without rope": {},
}


def images(height, width, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(2))


def model_of(kind):
    return randomise(Eva(**{**SHAPE, **kind}), 0.3)


def encoder_of(kind, model=None, **options):
    """The encoder of the model's own saved weights, through the loader, as a run has it."""
    spec = tiny_arch(f"eva_of_a_test_{next(NUMBERS)}", Eva, **kind)
    drop_path = options.pop("drop_path", 0.0)
    vit, report = loader.load(spec, (model or model_of(kind)).state_dict(), "own.pth", drop_path=drop_path)
    return ViTEncoder(vit, report.spec, report, **{"taps": (0, 1), **options}).eval()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@torch.no_grad()
def test_maps_and_tokens_are_timms(kind):
    model = model_of(kind)
    encoder = encoder_of(kind, model=model)
    for height, width in ((SIZE, SIZE), (24, 56)) if model.pos_embed is None else ((SIZE, SIZE),):
        resized = model_of(kind)
        resized.set_input_size(img_size=(height, width))
        resized.load_state_dict(model.state_dict())
        options = {"norm": False, "intermediates_only": True, "return_prefix_tokens": bool(encoder.prefix)}
        expected = resized.forward_intermediates(images(height, width), [0, 1], **options)
        for i, (ours, tokens) in enumerate(
            zip(encoder(images(height, width)), encoder.tokens(images(height, width), (0, 1)), strict=True)
        ):
            theirs, prefix = expected[i] if encoder.prefix else (expected[i], torch.empty(2, 0, DIM))
            assert theirs.std() > 0.1
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(tokens, torch.cat([prefix, theirs.flatten(2).mT], 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "differ"), [(DINOV3, True), (ROPE, True), (MIXED, False)], ids=["DINOv3", "EVA-02", "mixed"]
)
@torch.no_grad()
def test_a_window_is_an_image_of_its_own(kind, differ):
    """Windows in every block: as if timm's encoder was run on each window alone. The image's rotations are others,
    but for mixed frequencies, whose coordinates are plain counts of tokens."""
    kind, side = kind | BARE, 2
    model = model_of(kind)
    windowed = {"window_size": side, "num_global_blocks": 0, "img_size": SIZE}
    ours = encoder_of(kind, model=model, **windowed)(images(SIZE, SIZE))[1]
    shared = encoder_of(kind, model=model, window_rope="image", **windowed)(images(SIZE, SIZE))[1]
    alone = model_of(kind)
    alone.set_input_size(img_size=side * PATCH)
    alone.load_state_dict(model.state_dict())
    for y in range(0, SIZE, side * PATCH):
        for x in range(0, SIZE, side * PATCH):
            window = images(SIZE, SIZE)[:, :, y : y + side * PATCH, x : x + side * PATCH]
            (theirs,) = alone.forward_intermediates(window, [1], norm=False, intermediates_only=True)
            place = (..., slice(y // PATCH, y // PATCH + side), slice(x // PATCH, x // PATCH + side))
            torch.testing.assert_close(ours[place], theirs, rtol=1e-5, atol=1e-5)
            assert bool((shared[place] - theirs).abs().max() > 1e-2) == differ


@torch.no_grad()
def test_the_images_rotations_in_windows_are_the_whole_images():
    """`window_rope=image`: attention in a window is attention over the image with all others masked out."""
    model = model_of(DINOV3 | BARE)
    encoder = encoder_of(DINOV3 | BARE, model=model, window_size=2, num_global_blocks=0, window_rope="image")
    number = torch.arange(GRID**2).view(GRID, GRID)
    window = (number // GRID // 2) * GRID + number % GRID // 2
    mask = window.flatten()[:, None] == window.flatten()
    expected = model.forward_intermediates(
        images(SIZE, SIZE), [0, 1], norm=False, intermediates_only=True, attn_mask=mask
    )
    for ours, theirs in zip(encoder(images(SIZE, SIZE)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"window_rope=image: an image of 1x4 tokens has no window of 2"):
        encoder(images(PATCH, SIZE))


@pytest.mark.parametrize("kind", [DINOV3, MIXED, SAPIENS2], ids=["DINOv3", "mixed", "Sapiens2"])
@pytest.mark.parametrize("options", [{}, {"window_size": 3, "num_global_blocks": 1}], ids=str)
def test_checkpointing_is_exact_and_every_parameter_is_used(kind, options):
    def gradients(checkpointing):
        torch.manual_seed(0)
        encoder = encoder_of(kind, drop_path=0.5, grad_checkpointing=checkpointing, **options).train()
        sum(m.square().sum() for m in encoder(images(24, 40, batch=4))).backward()
        return {name: p.grad for name, p in encoder.named_parameters()}

    plain, checkpointed = gradients(False), gradients(True)
    assert [name for name, grad in plain.items() if grad is None] == []
    for name, grad in plain.items():
        torch.testing.assert_close(grad, checkpointed[name], rtol=1e-4, atol=1e-5, msg=name)


def test_layer_ids_weight_decay_and_freezing():
    encoder = encoder_of(MIXED | {"num_reg_tokens": 2})
    ids = {name.removeprefix("vit."): encoder.layer_id(name) for name, _ in encoder.named_parameters()}
    assert {name for name, i in ids.items() if i == 0} == {
        *("cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    }
    assert ids["blocks.1.gamma_1"] == ids["blocks.1.attn.qkv.weight"] == 2
    assert ids["rope.freqs"] == DEPTH + 1
    holder = torch.nn.Module()
    holder.encoder = encoder
    kinds = ("norm", "bias", "pos_embed", "layer_scale", "token")
    values = {"kind": "adamw", "lr": 1.0, "weight_decay": 0.1, "layer_decay": 0.5, "no_weight_decay": kinds}
    groups = param_groups(holder, OptimConfig(**values))
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert all(name.endswith(".weight") for name in decayed)
    assert not any("norm" in name or "freqs" in name for name in decayed)
    encoder.freeze(0.5)
    learning = {name.removeprefix("vit.blocks.1.") for name, p in encoder.named_parameters() if p.requires_grad}
    assert learning == {"norm2.weight", "norm2.bias", "gamma_2"} | {
        f"mlp.{part}.{end}" for part in ("fc1", "fc2") for end in ("weight", "bias")
    }
    sum(m.square().sum() for m in encoder.train()(images(SIZE, SIZE))).backward()


@pytest.mark.parametrize("kind", [DINOV3, EVA02, SAPIENS2], ids=["DINOv3", "EVA-02", "Sapiens2"])
def test_operations_are_those_that_torch_counts(kind):
    for options in ({"img_size": (24, 40)}, {"window_size": 3, "num_global_blocks": 1}):
        encoder = encoder_of(kind, **options)
        height, width = (side * PATCH for side in encoder.global_grid)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            encoder(torch.zeros(1, 3, height, width))
        assert encoder_flops(encoder) == counter.get_total_flops()


def test_new_layer_scale_and_what_does_not_fit():
    encoder = encoder_of(EVA02, layer_scale=0.5)
    assert {float(block.gamma_2[0]) for block in encoder.vit.blocks} == {0.5}
    assert "blocks.*.gamma_1, blocks.*.gamma_2" in encoder.load_report.new
    for rel_pos in (True, "per_block", "decomposed"):
        with pytest.raises(UserError, match=r"rel_pos=\w+: .* has rotary positions, .* set backbone.rel_pos=false"):
            encoder_of(EVA02, rel_pos=rel_pos, window_size=2, num_global_blocks=0)
    with pytest.raises(UserError, match="not EvaBlock; set backbone.rel_pos=false"):
        encoder_of({}, rel_pos=True)
    with pytest.raises(UserError, match="not EvaBlockPostNorm; set backbone.window_size=0"):
        encoder_of({"use_post_norm": True}, window_size=2, num_global_blocks=0)
    assert type(encoder_of({"use_post_norm": True}).vit.blocks[0]) is EvaBlockPostNorm
    for name, options, lacks in (
        ("timm:vit_tiny_patch16_dinov3_qkvb", {}, "no windows"),
        ("random_vit_nano", {"window_size": 2}, "no rotary positions"),
    ):
        with pytest.raises(UserError, match=f"window_rope=image: has no effect, .* has {lacks}"):
            load_backbone(name, weights="random", window_rope="image", **options)


@pytest.mark.parametrize("options", [{}, {"window_size": 2, "num_global_blocks": 1}], ids=["global", "windows"])
@torch.no_grad()
def test_a_runs_weights_come_back(options, tmp_path):
    """A native file whose biases are zero loses them; the run's own checkpoint is then read as it was trained."""
    for kind in (DINOV3 | {"qkv_bias": False}, EVA02, MIXED):
        encoder = encoder_of(kind, **options)
        state = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
        vit, report = loader.load(encoder.spec, state, "run.pt")
        again = ViTEncoder(vit, report.spec, report, taps=(0, 1), **options).eval()
        for ours, theirs in zip(again(images(24, 40)), encoder(images(24, 40)), strict=True):
            assert torch.equal(ours, theirs)


def test_new_weights_as_beit_draws_them():
    encoder = load_backbone("timm:vit_tiny_patch16_dinov3_qkvb", weights="random", random_init="beit")
    weights = [
        p for name, p in encoder.named_parameters() if name.endswith(("qkv.weight", "proj.weight", "fc1.weight"))
    ]
    assert {float(p.abs().max()) <= 0.02 for p in weights} == {True}


def test_export_is_timms_own_file(tmp_path):
    from mae_transfer.backbones.checkpoints.export import export

    name = "vit_tiny_patch16_dinov3_qkvb"
    state = timm.create_model(name, num_classes=0).state_dict()
    save_file(state, tmp_path / "own.safetensors")
    export(tmp_path / "own.safetensors", f"timm:{name}", "timm", tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], state[key]) for key in state)
    with pytest.raises(UserError, match="--export hf: has no place for blocks of timm's Eva"):
        export(tmp_path / "own.safetensors", f"timm:{name}", "hf", tmp_path / "folder")
