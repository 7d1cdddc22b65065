"""Pre-training of encoders with rotary positions: each visible patch is rotated by its own row and column.

Angles are written out for each token from the public code of each kind, not from timm's.
"""

import math

import numpy as np
import pytest
import torch
from support.layouts.case import GRID, tiny_arch
from support.layouts.rotary import DINOV3
from support.mae_reference import loss_of
from support.pretraining import gradients, loss_and_gradients, resolve_pretrain
from timm.models.eva import Eva
from torch import Tensor

from mae_transfer.backbones.checkpoints.own import facts_of
from mae_transfer.backbones.load import load_backbone
from mae_transfer.engine.optim import param_groups
from mae_transfer.engine.rng import seed_for_model
from mae_transfer.errors import UserError
from mae_transfer.pretrain.card import METHODS
from mae_transfer.tasks.card import load_object

TINY = ("model.decoder_depth=1", "model.decoder_width=32", "model.decoder_heads=4", "mask.ratio=0.5")
SIDE = 8  # channels of a head
ROPE = {"attn_type": "rope", "use_rot_pos_emb": True, "use_abs_pos_emb": False, "init_values": 0.1}
AXIAL = ROPE | {"rope_grid_indexing": "xy", "rope_temperature": 100.0}
KINDS: dict[str, dict[str, object]] = {
    "axial": AXIAL,
    "absolute": AXIAL | {"use_abs_pos_emb": True, "no_embed_class": True},
    "mixed": ROPE | {"rope_type": "mixed", "rope_grid_indexing": "xy", "rope_temperature": 10.0},
    "dinov3": DINOV3,
    "eva02": {"use_rot_pos_emb": True, "ref_feat_shape": (GRID, GRID)},
}


def name_of(kind: str) -> str:
    options = KINDS.get(kind, AXIAL | {"class_token": False, "num_reg_tokens": 1})
    tiny_arch(f"eva_pretrained_{kind}", Eva, **options)
    return f"timm:eva_pretrained_{kind}"


def method_of(kind: str, *overrides: str, method: str = "mae"):
    options = ["data.image_size=[16,40]", *(TINY if method == "mae" else ()), *overrides]
    config = resolve_pretrain(method, name_of(kind), data="synthetic", overrides=options)
    return load_object({card.name: card.code for card in METHODS}[method])(config)


def model_of(kind: str, *overrides: str):
    method = method_of(kind, *overrides)
    seed_for_model(0)
    model = method.build_model(method.build_encoder(), None)
    with torch.no_grad():  # biases and norms that are not zeros and ones, so that each of them counts
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
            elif name.endswith(("qkv.weight", "q_proj.weight", "k_proj.weight")):
                parameter.mul_(3)  # attention that differs from token to token
    return model


def batch_of(model) -> dict[str, Tensor]:
    rng = np.random.default_rng(1)
    pixels = torch.from_numpy(rng.integers(0, 256, (2, 3, 16, 40), dtype=np.uint8))
    return {"images": pixels, "noise": torch.from_numpy(rng.random((2, model.num_patches), dtype=np.float32))}


def turn(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def rotation_of(kind: str, model):
    """Angles of a token's pairs of channels, as support/mae_reference.py asks for them."""
    if kind in ("axial", "absolute"):  # naver-ai/rope-vit models/vit_rope.py compute_axial_cis, theta 100
        bands = [100 ** (-4 * k / SIDE) for k in range(SIDE // 4)]
        return lambda row, column, *_: [turn(place * band) for place in (column, row) for band in bands]
    if kind == "eva02":  # baaivision/EVA EVA-02 rope.py VisionRotaryEmbeddingFast: half of a head for each direction
        bands = [10000 ** (-2 * k / (SIDE // 2)) for k in range(SIDE // 4)]
        return lambda row, column, grid, *_: [
            turn(place / side * GRID * band) for place, side in ((row, grid[0]), (column, grid[1])) for band in bands
        ]
    if kind == "dinov3":  # facebookresearch/dinov3 dinov3/layers/rope_position_encoding.py, base 100, "separate"
        periods = [100 ** (2 * k / (SIDE // 2)) for k in range(SIDE // 4)]
        return lambda row, column, grid, *_: [
            turn(2 * math.pi * (2 * (place + 0.5) / side - 1) / period)
            for place, side in ((row, grid[0]), (column, grid[1]))
            for period in periods
        ]
    freqs = model.encoder.vit.rope.freqs  # rope-vit compute_mixed_cis: learned, of x and of y, each block and head
    return lambda row, column, grid, block, head: list(column * freqs[0, block, head] + row * freqs[1, block, head])


@pytest.mark.parametrize(
    ("kind", "overrides"), [*((kind, ()) for kind in KINDS), ("mixed", ("model.mask_token=encoder",))], ids=str
)
def test_loss_and_gradients_are_those_of_rotations_per_token(kind: str, overrides: tuple[str, ...]) -> None:
    model = model_of(kind, *overrides)
    batch = batch_of(model)
    loss, ours = loss_and_gradients(model, batch, "loss_mae")
    weights = dict(model.named_parameters())
    for name in [name for name in weights if name.endswith("attn.q_bias")]:
        q, v = weights[name], weights[name.replace("q_bias", "v_bias")]
        weights[name.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.zeros_like(q), v])
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (model.encoder.mean, model.encoder.std))
    expected = loss_of(
        (batch["images"].float() / 255 - mean) / std,
        batch["noise"],
        weights,
        patch=8,
        keep=model.len_keep,
        heads=4,
        decoder_heads=4,
        normalised=True,
        classes=model.encoder.prefix,
        rotation=rotation_of(kind, model),
        halves=kind == "dinov3",
        mask_in_encoder=bool(overrides),
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    theirs = gradients(model)
    assert ours.keys() == theirs.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in theirs.items():
        assert gradient.any(), name
        assert (ours[name] - gradient).abs().max() <= 2e-5 * gradient.abs().max(), name


def test_rotations_of_the_first_patches_are_wrong() -> None:
    """The fault that the test above is for: kept patches rotated as if they were the first of the grid."""
    model = model_of("axial").eval()
    batch = batch_of(model)
    with torch.no_grad():
        right = model(batch)["loss"]
        own = model.encoder.position.of_kept
        model.encoder.position.of_kept = lambda encoder, keep: own(encoder, torch.arange(keep.shape[1]).expand_as(keep))
        wrong = model(batch)["loss"]
    assert (right - wrong).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["mixed", "dinov3", "absolute"])
def test_the_checkpoint_goes_on_into_transfer(kind: str, tmp_path) -> None:
    """The tokens that fine-tuning and probes get of the run's checkpoint are those of the pre-trained encoder."""
    model = model_of(kind, "data.mean=[.1,.2,.3]", "data.std=[.3,.2,.1]").eval()
    origin = {"encoder": facts_of(model.encoder)}
    content = {"step": 1, "model": model.state_dict(), "optimizer": {}, "ema": None, "origin": origin}
    torch.save(content, tmp_path / "run.pt")
    encoder = load_backbone(name_of(kind), checkpoint=tmp_path / "run.pt", final_norm=True, img_size=(16, 40)).eval()
    batch = batch_of(model)
    images = model.encoder.normalise(batch["images"])
    assert torch.equal(encoder.normalise(batch["images"]), images)
    with torch.no_grad():
        (ours,), (theirs,) = encoder.tokens(images, (1,)), model.encoder.tokens(images, (1,))
        assert torch.equal(encoder.norm(ours), model.encoder.norm(theirs))
        places = torch.arange(model.num_patches).expand(2, -1)
        visible = model.encoder.visible_tokens(model.patchify(batch["images"]), places)
    assert ours.shape == (2, encoder.prefix + 10, 32)
    torch.testing.assert_close(visible, ours, rtol=1e-5, atol=1e-5)


def test_weight_decay_is_the_released_codes_and_timms() -> None:
    """MAE's code decays nothing of one dimension; timm's Eva exempts learned frequencies (`no_weight_decay`)."""
    method = method_of("mixed")
    model = method.build_model(method.build_encoder(), None)
    groups = param_groups(model, method.config.optim)
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    expected = {name for name, p in model.named_parameters() if p.requires_grad and p.ndim > 1}
    assert decayed == expected - {"encoder.vit.rope.freqs"}


def test_supervised_trains_them_and_others_refuse() -> None:
    method = method_of("mixed", method="supervised")
    model = method.build_model(method.build_encoder(), 3).train()
    images = torch.randint(0, 256, (2, 3, 16, 40), dtype=torch.uint8)
    sum(model({"images": images, "labels": torch.tensor([0, 1])}).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    for other in ("mocov3", "beit"):
        options = ("tokenizer.kind=kmeans",) if other == "beit" else ()
        with pytest.raises(
            UserError, match=f"--method {other} is not written for; pre-train vit_b, or use --method mae"
        ):
            method_of("mixed", *options, method=other).build_encoder()


def test_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(UserError, match=r"model\.class_tokens=2: .* has the prefix tokens of its architecture; use 1"):
        method_of("axial", "model.class_tokens=2").build_encoder()
    for name, error in (
        (
            "vit_small_patch16_dinov3.lvd1689m",
            "weights that are there already; pre-train timm:vit_small_patch16_dinov3$",
        ),
        ("vit_base_patch16_224", "weights that are there already; pre-train vit_b$"),
    ):
        with pytest.raises(UserError, match=error):
            load_object(METHODS[0].code)(resolve_pretrain("mae", f"timm:{name}", data="synthetic")).spec()
    config = resolve_pretrain("mae", "timm:vit_pe_spatial_tiny_patch16_512", data="synthetic")
    with pytest.raises(UserError, match="has no norm after its blocks, which --method mae needs"):
        load_object(METHODS[0].code)(config).build_encoder()
    with pytest.raises(UserError, match="eval.knn reads the class token, and .* has none; set eval.knn=null"):
        method_of("no_class_token", "eval.knn=5").build_encoder()
