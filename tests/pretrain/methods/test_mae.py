"""The masked autoencoder against the formulas written out (mae_reference.py), Hugging Face's, and closed forms."""

import math

import numpy as np
import pytest
import torch
from support.mae_reference import loss_of, patches_of, predict, sin_cos
from support.pretraining import gradients, loss_and_gradients, resolve_pretrain
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mae_transfer.backbones.checkpoints.export import export
from mae_transfer.backbones.checkpoints.own import facts_of
from mae_transfer.backbones.load import load_backbone
from mae_transfer.config.schedule import make_schedule
from mae_transfer.engine.optim import param_groups
from mae_transfer.engine.rng import seed_for_model
from mae_transfer.errors import UserError
from mae_transfer.pretrain.methods import mae

TINY = ("data.image_size=32", "model.decoder_depth=2", "model.decoder_width=32", "model.decoder_heads=4")
TOLERANCE = 1e-6


def config_of(*overrides: str, backbone: str = "vit_nano_p8"):
    return resolve_pretrain("mae", backbone, data="synthetic", overrides=[*TINY, *overrides])


def model_of(*overrides: str, backbone: str = "vit_nano_p8") -> mae.MaskedAutoencoder:
    config = config_of(*overrides, backbone=backbone)
    seed_for_model(0)
    method = mae.MaeMethod(config)
    model = method.build_model(method.build_encoder(), None)
    with torch.no_grad():  # biases and norms that are not zeros and ones, so that each of them counts
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
            elif parameter.requires_grad and name.endswith("_token"):
                parameter.normal_(std=0.5)
    return model


def batch_of(model: mae.MaskedAutoencoder, images: int = 3, channels: int = 3, size: tuple[int, int] = (32, 32)):
    rng = np.random.default_rng(1)
    pixels = torch.from_numpy(rng.integers(0, 256, (images, channels, *size), dtype=np.uint8))
    return {"images": pixels, "noise": torch.from_numpy(rng.random((images, model.num_patches), dtype=np.float32))}


def normalised(model: mae.MaskedAutoencoder, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (model.encoder.mean, model.encoder.std))
    return (images.float() / 255 - mean) / std


def agree(a: Tensor, b: Tensor) -> bool:
    """To 1e-6, and to 2e-6 of the tensor's own largest entry: what float32 sums of these lengths can keep."""
    with torch.no_grad():
        largest, difference = b.abs().max().item(), (a - b).abs().max().item()
    return difference <= max(TOLERANCE * min(1.0, 2 * largest), TOLERANCE * largest)


VARIANTS = [
    pytest.param(("model.target=pixel",), {"normalised": False}, id="pixel"),
    pytest.param(("model.target=norm_pixel",), {"normalised": True}, id="norm_pixel"),
    pytest.param(("model.target=pixel", "model.loss_on=all"), {"normalised": False, "on_all": True}, id="all"),
    pytest.param(
        ("model.target=norm_pixel", "model.mask_token=encoder"),
        {"normalised": True, "mask_in_encoder": True},
        id="mask_in_encoder",
    ),
    pytest.param(("model.target=pixel", "model.decoder_depth=1", "mask.ratio=0.4"), {"normalised": False}, id="one"),
    pytest.param(
        ("model.class_tokens=3", "model.positions=learned", "mask.patch_grid=2"),
        {"normalised": True, "classes": 3, "learned": True},
        id="pixio",
    ),
    pytest.param(("model.class_tokens=2",), {"normalised": True, "classes": 2}, id="class_tokens"),
    pytest.param(
        ("model.decoder_depth=0", "model.mask_token=encoder", "model.target=mean_color", "model.class_tokens=2"),
        {"normalised": False, "mask_in_encoder": True, "decoder": False, "colors": True, "classes": 2},
        id="early_failures",
    ),
]


@pytest.mark.parametrize(("overrides", "options"), VARIANTS)
def test_loss_and_gradients_are_those_of_the_formulas(overrides, options) -> None:
    model = model_of(*overrides)
    batch = batch_of(model)
    loss, ours = loss_and_gradients(model, batch, "loss_mae")
    weights = dict(model.named_parameters())
    shape = {"patch": 8, "keep": model.len_keep, "heads": 4, "decoder_heads": 4}
    expected = loss_of(normalised(model, batch["images"]), batch["noise"], weights, **shape, **options)
    assert abs(loss.item() - expected.item()) <= TOLERANCE * expected.item()
    expected.backward()
    theirs = gradients(model)
    assert ours.keys() == theirs.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name in ours if not agree(ours[name], theirs[name])] == []
    assert max(float(gradient.abs().max()) for gradient in ours.values()) > 1e-2
    assert [name for name, gradient in ours.items() if not gradient.any()] == []


def test_reconstruction_is_that_of_the_formulas() -> None:
    model = model_of("model.target=pixel").eval()
    batch = batch_of(model)
    images = normalised(model, batch["images"])
    with torch.no_grad():
        predicted = model.predictions(batch)
        for i in range(3):
            expected, masked = predict(
                images[i],
                batch["noise"][i],
                dict(model.named_parameters()),
                patch=8,
                keep=model.len_keep,
                heads=4,
                decoder_heads=4,
            )
            assert len(masked) == 12
            assert agree(predicted[i], expected)


def test_evaluation_gives_each_image_its_loss_and_that_of_its_patches_means() -> None:
    model = model_of("model.target=pixel")
    batch = batch_of(model)
    with torch.no_grad():
        training = model.train()(batch)["loss_mae"]
        values = model.eval()(batch)
    assert values["loss"].shape == (3,)
    assert values["loss"].mean().item() == pytest.approx(training.item(), rel=1e-6)
    images = normalised(model, batch["images"])
    for i in range(3):
        order = np.argsort(batch["noise"][i].numpy())
        pixels = patches_of(images[i], 8)[torch.from_numpy(order[model.len_keep :])].numpy()
        assert values["patch_mean"][i].item() == pytest.approx(pixels.var(axis=1).mean(), rel=1e-5)


def test_loss_does_not_depend_on_how_a_batch_is_cut() -> None:
    model = model_of().train()
    batch = batch_of(model, images=4)
    with torch.no_grad():
        whole = model(batch)["loss_mae"]
        parts = [model({name: value[i : i + 1] for name, value in batch.items()})["loss_mae"] for i in range(4)]
    assert whole.item() == pytest.approx(sum(parts).item() / 4, rel=1e-6)


def test_any_shape_of_image_and_number_of_channels() -> None:
    overrides = (
        "data.image_size=[16,40]",
        "data.channels=5",
        "data.mean=[.1,.2,.3,.4,.5]",
        "data.std=[.1,.2,.3,.2,.1]",
    )
    model = model_of(*overrides)
    batch = batch_of(model, channels=5, size=(16, 40))
    loss = model.train()(batch)["loss_mae"]
    options = {"patch": 8, "keep": model.len_keep, "heads": 4, "decoder_heads": 4, "normalised": True}
    expected = loss_of(
        normalised(model, batch["images"]), batch["noise"], dict(model.named_parameters()), **options
    ).item()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    images = normalised(model, batch["images"])
    patches = model.patchify(batch["images"])
    assert torch.allclose(patches[1], patches_of(images[1], 8), atol=1e-5)
    assert torch.allclose(255 * model.unpatchify(patches), batch["images"].float(), atol=1e-2)


def hugging_face(model: mae.MaskedAutoencoder, norm_pix: bool):
    """transformers' model with the weights of ours."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        intermediate_size=256,
        layer_norm_eps=1e-6,
        image_size=32,
        patch_size=8,
        decoder_num_attention_heads=4,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_intermediate_size=128,
        mask_ratio=0.75,
        norm_pix_loss=norm_pix,
    )
    theirs = ViTMAEForPreTraining(config)
    state = {}
    for name, tensor in model.state_dict().items():
        places = [(name, tensor)]
        if ".attn.qkv." in name:
            names = [name.replace("attn.qkv", f"attention.{part}_proj") for part in "qkv"]
            places = list(zip(names, tensor.chunk(3), strict=True))
        for new, part in places:
            for old, replacement in (
                ("encoder.vit.blocks.", "vit.layers."),
                ("encoder.vit.cls_token", "vit.embeddings.cls_token"),
                ("encoder.vit.pos_embed", "vit.embeddings.position_embeddings"),
                ("encoder.vit.patch_embed.proj", "vit.embeddings.patch_embeddings.projection"),
                ("encoder.norm", "vit.layernorm"),
                ("decoder_blocks.", "decoder.decoder_layers."),
                ("attn.proj", "attention.o_proj"),
                ("norm1", "layernorm_before"),
                ("norm2", "layernorm_after"),
            ):
                new = new.replace(old, replacement)
            inside = new.startswith(("vit.", "decoder."))
            state[new if inside else f"decoder.{new}"] = part.clone()
    theirs.load_state_dict(state, strict=True)
    return theirs.train(), state


@pytest.mark.parametrize("norm_pix", [False, True])
def test_loss_and_gradients_are_those_of_hugging_face(norm_pix: bool) -> None:
    model = model_of(f"model.target={'norm_pixel' if norm_pix else 'pixel'}")
    theirs, _ = hugging_face(model, norm_pix)
    batch = batch_of(model)
    loss = model.train()(batch)["loss_mae"]
    loss.backward()
    output = theirs(normalised(model, batch["images"]), noise=batch["noise"])
    output.loss.backward()
    assert abs(loss.item() - output.loss.item()) <= TOLERANCE * output.loss.item()
    with torch.no_grad():
        assert agree(model.predictions(batch), output.logits)
    ours = gradients(model)
    found = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    checked = 0
    for name in ("blocks.0", "blocks.7"):
        part = ours[f"encoder.vit.{name}.attn.qkv.weight"].chunk(3)
        layer = name.replace("blocks", "vit.layers")
        for piece, side in zip(part, "qkv", strict=True):
            checked += agree(piece, found[f"{layer}.attention.{side}_proj.weight"])
    pairs = {
        "encoder.vit.cls_token": "vit.embeddings.cls_token",
        "encoder.vit.patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
        "encoder.norm.weight": "vit.layernorm.weight",
        "mask_token": "decoder.mask_token",
        "decoder_embed.weight": "decoder.decoder_embed.weight",
        "decoder_blocks.1.mlp.fc1.weight": "decoder.decoder_layers.1.mlp.fc1.weight",
        "decoder_blocks.1.norm1.bias": "decoder.decoder_layers.1.layernorm_before.bias",
        "decoder_pred.weight": "decoder.decoder_pred.weight",
    }
    checked += sum(agree(ours[mine], found[other]) for mine, other in pairs.items())
    assert checked == 6 + len(pairs)


def test_encoder_of_all_patches_is_the_one_that_transfers() -> None:
    """Nothing masked, the masked forward gives the tokens that the transfer tasks get."""
    model = model_of()
    batch = batch_of(model)
    places = torch.arange(model.num_patches).expand(3, -1)
    with torch.no_grad():
        visible = model.encoder.visible_tokens(model.patchify(batch["images"]), places)
        (tokens,) = model.encoder.tokens(normalised(model, batch["images"]), (7,))
    assert torch.allclose(visible, tokens, atol=1e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    plain, saving = model_of(), model_of("backbone.grad_checkpointing=true")
    batch = batch_of(plain)
    for model in (plain, saving):
        model.train()(batch)["loss_mae"].backward()
    ours, theirs = gradients(plain), gradients(saving)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_loss_and_targets_are_float32_under_autocast() -> None:
    model = model_of()
    batch = batch_of(model)
    plain = model.train()(batch)["loss_mae"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(batch)["loss_mae"]
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(plain.item(), rel=2e-2)
    assert mixed.item() != plain.item()


def test_position_embeddings_are_the_published_tables() -> None:
    model = model_of("data.image_size=[16,40]")
    for position, width in ((model.encoder.vit.pos_embed, 64), (model.decoder_pos_embed, 32)):
        assert not position.requires_grad
        assert np.abs(position[0].detach().numpy() - sin_cos((2, 5), width)).max() < 1e-6


def test_initial_weights_are_those_of_the_released_code() -> None:
    config = config_of("data.image_size=64", backbone="vit_ti_p8")
    seed_for_model(0)
    method = mae.MaeMethod(config)
    model = method.build_model(method.build_encoder(), None)
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
            assert bool((parameter == 1).all()), name
        elif name == "encoder.vit.patch_embed.proj.bias":  # torch's own: uniform in -+ 1 / sqrt(fan in)
            bound = 1 / math.sqrt(3 * 8 * 8)
            assert 0.5 * bound < float(parameter.abs().max()) <= bound
        elif leaf == "bias":
            assert not bool(parameter.any()), name
        elif leaf.endswith("_token"):
            assert parameter.detach().std().item() == pytest.approx(0.02, rel=0.3), name
        elif leaf == "weight":  # xavier_uniform of the flattened matrix
            rows, columns = parameter.flatten(1).shape
            bound = math.sqrt(6 / (rows + columns))
            assert float(parameter.abs().max()) <= bound, name
            assert float(parameter.abs().max()) > 0.98 * bound, name
            assert parameter.detach().std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
        else:
            assert leaf.endswith("pos_embed"), name


def test_parameter_groups_are_those_of_the_released_code() -> None:
    """timm's add_weight_decay: nothing of one dimension and no bias is decayed; the tokens are, positions are fixed."""
    model = model_of()
    groups = param_groups(model, config_of().optim)
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    expected = {
        name: 0.0 if parameter.ndim <= 1 or name.endswith(".bias") else 0.05
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert decay == expected
    assert {decay["encoder.vit.cls_token"], decay["mask_token"]} == {0.05}
    assert not any("pos_embed" in name for name in decay)
    assert {group["lr_scale"] for group in groups} == {1.0}


def test_an_encoder_of_several_class_tokens_transfers_with_nothing_else_to_say(tmp_path) -> None:
    model = model_of("model.class_tokens=3", "model.positions=learned").eval()
    origin = {"encoder": facts_of(model.encoder)}
    torch.save({"step": 1, "model": model.state_dict(), "optimizer": {}, "ema": None, "origin": origin}, tmp_path / "r")
    encoder = load_backbone("vit_nano_p8", checkpoint=tmp_path / "r", final_norm=True, img_size=32).eval()
    images = normalised(model, batch_of(model)["images"])
    with torch.no_grad():
        (ours,), (theirs,) = encoder.tokens(images, (7,)), model.encoder.tokens(images, (7,))
    assert torch.equal(ours, theirs)
    assert ours.shape == (3, 3 + 16, 64)
    assert torch.allclose(encoder.class_token(ours), (ours[:, 0] + ours[:, 1] + ours[:, 2]) / 3, atol=1e-6)
    windowed = load_backbone("vit_nano_p8", checkpoint=tmp_path / "r", window_size=2, img_size=64)
    assert (windowed.prefix, windowed.vit.pos_embed.shape) == (0, (1, 16, 64))
    export(tmp_path / "r", "vit_nano_p8", "timm", tmp_path / "timm.pth")
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 8, "num_heads": 4, "num_classes": 0}
    timms = VisionTransformer(**shape, reg_tokens=2).eval()
    timms.load_state_dict(torch.load(tmp_path / "timm.pth", weights_only=True), strict=True)
    with torch.no_grad():
        assert torch.allclose(timms.forward_features(images), encoder.norm(ours), atol=1e-5)
    with pytest.raises(UserError, match=r"no place for .*reg_token"):
        export(tmp_path / "r", "vit_nano_p8", "official", tmp_path / "official.pth")


def test_learned_positions_are_drawn_and_decayed_as_pixios() -> None:
    """models_pixio.py initialize_weights; util/optim_factory.py: all of two dimensions or more but biases decays."""
    config = config_of("model.class_tokens=8", "model.positions=learned", "data.image_size=128")
    seed_for_model(0)
    method = mae.MaeMethod(config)
    model = method.build_model(method.build_encoder(), None)
    vit = model.encoder.vit
    for tensor in (vit.pos_embed, model.decoder_pos_embed, vit.reg_token):
        assert tensor.requires_grad
        assert tensor.std().item() == pytest.approx(0.02, rel=0.1)
    decay = {name: group["weight_decay"] for group in param_groups(model, config.optim) for name in group["names"]}
    assert [decay[f"encoder.vit.{name}"] for name in ("pos_embed", "cls_token", "reg_token")] == [0.05] * 3
    fixed = model_of("model.class_tokens=3")
    assert not fixed.encoder.vit.pos_embed[0, :3].any()
    assert torch.equal(fixed.encoder.vit.pos_embed[0, 2:], model_of().encoder.vit.pos_embed[0])


def test_full_recipe_of_pixio_is_that_of_its_script() -> None:
    config = resolve_pretrain("mae", "vit_h_p16", data="x", overrides=["recipe=pixio"])
    assert config.optim.lr == pytest.approx(2.5e-5 * 8192 / 256, rel=1e-12)
    assert (config.train.global_batch, config.data.size, config.backbone.drop_path) == (8192, (256, 256), 0.4)
    assert (config.mask.patch_grid, config.mask.ratio, config.model.class_tokens) == (4, 0.75, 8)
    model = config.model
    assert (model.decoder_depth, model.decoder_width, model.decoder_heads) == (32, 512, 16)
    assert mae.MaeViews(config).grid == (16, 16)


def test_no_decoder_needs_mask_tokens_in_the_encoder() -> None:
    with pytest.raises(UserError, match="model.decoder_depth=0 leaves masked patches without a look"):
        config_of("model.decoder_depth=0")


@pytest.mark.parametrize("backbone", ["vit_b", "vit_l", "vit_h"])
def test_full_recipe_is_that_of_table_8(backbone: str) -> None:
    config = resolve_pretrain("mae", backbone, data="x")
    assert config.optim.lr == pytest.approx(1.5e-4 * 4096 / 256, rel=1e-12)
    assert (config.optim.weight_decay, config.optim.betas) == (0.05, (0.9, 0.95))
    assert (config.train.global_batch, config.schedule.epochs, config.schedule.warmup_epochs) == (4096, 1600, 40)
    assert (config.mask.kind, config.mask.ratio, config.data.scale_min) == ("random", 0.75, 0.2)
    model = config.model
    assert (model.decoder_depth, model.decoder_width, model.decoder_heads) == (8, 512, 16)


def test_learning_rate_at_every_step_is_the_released_codes() -> None:
    """util/lr_sched.py, called with a fractional epoch at each iteration: blr * batch / 256 times the factor."""
    config = resolve_pretrain("mae", "vit_b", data="x", overrides=["schedule.epochs=20", "schedule.warmup_epochs=4"])
    images, batch = 4096 * 25, config.train.global_batch
    schedule = make_schedule(config.schedule, images, batch)
    assert schedule.total == 20 * 25
    peak = 1.5e-4 * batch / 256
    for step in range(schedule.total):
        epoch = step / 25
        lr = peak * (epoch / 4 if epoch < 4 else 0.5 * (1 + math.cos(math.pi * (epoch - 4) / (20 - 4))))
        assert config.optim.lr * schedule.factor(step) == pytest.approx(lr, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("autocast", [False, True])
def test_lean_mlp_is_timms_to_the_bit(autocast: bool) -> None:
    from timm.layers import Mlp

    from mae_transfer.backbones.lean_mlp import LeanMlp

    torch.manual_seed(0)
    theirs, ours = Mlp(16, 64), LeanMlp(16, 64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 16)
    inputs = [x.clone().requires_grad_() for _ in "ab"]
    saved: list[list[int]] = [[], []]
    for mlp, given, sizes in zip((theirs, ours), inputs, saved, strict=True):
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
            torch.autograd.graph.saved_tensors_hooks(
                lambda t, sizes=sizes: (sizes.append(t.shape[-1]), t)[1], lambda t: t
            ),
        ):
            output = mlp(given)
        (output * torch.arange(16)).sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    wide = [sum(width == 64 for width in sizes) for sizes in saved]
    assert wide[1] < wide[0]
