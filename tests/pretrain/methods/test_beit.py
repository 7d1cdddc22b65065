"""BEiT-style pre-training against the formulas written out, Hugging Face BEiT, and closed forms of BEiT's code."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.pretraining import gradients, resolve_pretrain
from torch import Tensor

from mae_transfer.backbones.load import load_backbone
from mae_transfer.config.schedule import make_schedule
from mae_transfer.engine.optim import param_groups
from mae_transfer.engine.rng import seed_for_model
from mae_transfer.errors import UserError
from mae_transfer.pretrain.methods import beit
from mae_transfer.pretrain.tokenizers.dalle import DalleTokenizer
from mae_transfer.pretrain.tokenizers.kmeans import KMeansTokenizer
from mae_transfer.pretrain.tokenizers.load import save_tokenizer

TINY = ("data.image_size=32", "mask.min_patches=2", "tokenizer.vocab_size=11", "backbone.drop_path=0")
GRID, PATCH, HEADS, DEPTH = (4, 4), 8, 4, 8


def config_of(*overrides: str, backbone: str = "vit_nano_p8", tokenizer: str = "kmeans"):
    return resolve_pretrain("beit", backbone, data="synthetic", tokenizer=tokenizer, overrides=[*TINY, *overrides])


def model_of(*overrides: str, backbone: str = "vit_nano_p8") -> beit.Beit:
    """All that starts as zeros, ones or one constant away from it, so that each parameter counts."""
    config = config_of(*overrides, backbone=backbone)
    seed_for_model(0)
    method = beit.BeitMethod(config)
    model = method.build_model(method.build_encoder(), None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
            elif "rel_pos" in name or name.endswith(("_token", "pos_embed")):
                parameter.normal_(std=0.5)
            else:
                parameter.mul_(5)
    centres = torch.rand(11, 3 * PATCH**2, generator=torch.Generator().manual_seed(3))
    model.tokens.tokenizer = KMeansTokenizer(centres, patch_size=PATCH)
    return model


def batch_of(images: int = 3, grid: tuple[int, int] = GRID):
    """Masks of different numbers of patches."""
    rng = np.random.default_rng(1)
    h, w = grid
    pixels = rng.integers(0, 256, (images, 3, h * PATCH, w * PATCH), dtype=np.uint8)
    mask = np.zeros((images, h * w), dtype=bool)
    for i in range(images):
        mask[i, rng.permutation(h * w)[: 3 + i]] = True
    return {"images": torch.from_numpy(pixels), "mask": torch.from_numpy(mask)}


# --- the definition, an image at a time ------------------------------------------------------------------------------


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    mean = x.sum(-1, keepdim=True) / x.shape[-1]
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / x.shape[-1]
    return (x - mean) / torch.sqrt(variance + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def bias_of(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """(heads, 1 + L, 1 + L): an entry for each offset of query and key, and three for pairs with the class token."""
    h, w = grid
    places = [(y, x) for y in range(h) for x in range(w)]
    class_to_patch, patch_to_class, class_to_class = table[-3], table[-2], table[-1]
    rows = [torch.stack([class_to_class, *[class_to_patch for _ in places]])]
    for y, x in places:
        offsets = [table[(y - v + h - 1) * (2 * w - 1) + x - u + w - 1] for v, u in places]
        rows.append(torch.stack([patch_to_class, *offsets]))
    return torch.stack(rows).permute(2, 0, 1)


def image_loss(image: Tensor, mask: Tensor, w: dict[str, Tensor], tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean cross-entropy of the masked patches of a normalised image (3, H, W)."""
    kernel, shift = w["encoder.vit.patch_embed.proj.weight"], w["encoder.vit.patch_embed.proj.bias"]
    x = [w["encoder.vit.cls_token"][0, 0]]
    for place in range(grid[0] * grid[1]):
        top, left = place // grid[1] * PATCH, place % grid[1] * PATCH
        patch = image[:, top : top + PATCH, left : left + PATCH]
        x.append(w["mask_token"][0, 0] if mask[place] else (kernel * patch).sum((1, 2, 3)) + shift)
    x = torch.stack(x)
    if "encoder.vit.pos_embed" in w:
        x = x + w["encoder.vit.pos_embed"][0]
    width = x.shape[1] // HEADS
    bias = bias_of(w["encoder.rel_pos_global"], grid) if "encoder.rel_pos_global" in w else None
    for number in range(DEPTH):
        name = f"encoder.vit.blocks.{number}"
        y = norm(x, w, f"{name}.norm1")
        qkv = y @ w[f"{name}.attn.qkv.weight"].T + w[f"{name}.attn.qkv.bias"]
        out = []
        for head in range(HEADS):
            q, k, v = (part[:, head * width : (head + 1) * width] for part in qkv.chunk(3, 1))
            scores = q @ k.T / math.sqrt(width)
            scores = torch.exp(scores if bias is None else scores + bias[head])
            out.append(scores / scores.sum(1, keepdim=True) @ v)
        y = torch.cat(out, 1) @ w[f"{name}.attn.proj.weight"].T + w[f"{name}.attn.proj.bias"]
        x = x + y * w.get(f"{name}.ls1.gamma", 1.0)
        y = norm(x, w, f"{name}.norm2") @ w[f"{name}.mlp.fc1.weight"].T + w[f"{name}.mlp.fc1.bias"]
        y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        y = y @ w[f"{name}.mlp.fc2.weight"].T + w[f"{name}.mlp.fc2.bias"]
        x = x + y * w.get(f"{name}.ls2.gamma", 1.0)
    logits = norm(x, w, "encoder.norm")[1:] @ w["lm_head.weight"].T + w["lm_head.bias"]
    losses = [torch.log(torch.exp(logits[i]).sum()) - logits[i, tokens[i]] for i in range(len(mask)) if mask[i]]
    return sum(losses) / len(losses)


def normalised(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def nearest(model: beit.Beit, image: Tensor, grid: tuple[int, int]) -> Tensor:
    centres = model.tokens.tokenizer.centres.view(-1, 3, PATCH, PATCH)
    found = []
    for place in range(grid[0] * grid[1]):
        top, left = place // grid[1] * PATCH, place % grid[1] * PATCH
        patch = image[:, top : top + PATCH, left : left + PATCH].float() / 255
        found.append(((centres - patch) ** 2).sum((1, 2, 3)).argmin())
    return torch.stack(found)


def far_apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    """Names of gradients that differ by more than float32 sums can: 1e-5 of the tensor's largest entry, and 1e-7."""
    assert ours.keys() == theirs.keys()
    return [
        name
        for name, theirs_of in theirs.items()
        if (ours[name] - theirs_of).abs().max() > 1e-7 + 1e-5 * theirs_of.abs().max()
    ]


VARIANTS = [
    pytest.param((), GRID, id="beit"),
    pytest.param(("model.rel_pos=false", "model.abs_pos=true", "model.layer_scale=null"), GRID, id="plain"),
    pytest.param(("model.abs_pos=true", "data.image_size=[16,40]"), (2, 5), id="both-positions-2x5"),
]


@pytest.mark.parametrize(("overrides", "grid"), VARIANTS)
def test_loss_and_gradients_are_those_of_the_formulas(overrides, grid) -> None:
    model = model_of(*overrides)
    names = {name for name, _ in model.named_parameters()}
    assert ("encoder.rel_pos_global" in names) == ("model.rel_pos=false" not in overrides)
    assert ("encoder.vit.pos_embed" in names) == ("model.abs_pos=true" in overrides)
    assert ("encoder.vit.blocks.0.ls1.gamma" in names) == ("model.layer_scale=null" not in overrides)
    batch = batch_of(grid=grid)
    loss = model.train()(batch)["loss_beit"]
    loss.backward()
    ours = gradients(model)
    model.zero_grad()
    images, weights = normalised(batch["images"]), dict(model.named_parameters())
    parts = [
        image_loss(images[i], batch["mask"][i], weights, nearest(model, batch["images"][i], grid), grid)
        for i in range(3)
    ]
    expected = sum(parts) / 3
    assert abs(loss.item() - expected.item()) <= 1e-6 * expected.item()
    expected.backward()
    theirs = gradients(model)
    assert ours.keys() == names
    assert far_apart(ours, theirs) == []
    assert min(float(g.abs().max()) for name, g in ours.items() if "qkv.bias" not in name) > 1e-4
    with torch.no_grad():
        assert torch.allclose(model.eval()(batch)["loss"], torch.stack(parts), rtol=1e-6)


def test_loss_and_gradients_are_those_of_hugging_face() -> None:
    """One image at a time: over more, Hugging Face takes the mean over all masked patches of the batch."""
    from transformers import BeitConfig, BeitForMaskedImageModeling

    model = model_of()
    theirs = BeitForMaskedImageModeling(
        BeitConfig(
            vocab_size=11,
            hidden_size=64,
            num_hidden_layers=8,
            num_attention_heads=4,
            intermediate_size=256,
            image_size=32,
            patch_size=8,
            layer_norm_eps=1e-6,
            use_mask_token=True,
            use_shared_relative_position_bias=True,
            use_absolute_position_embeddings=False,
            use_mean_pooling=True,  # else there is a norm more
            layer_scale_init_value=0.1,
            drop_path_rate=0.0,
        )
    ).train()
    with torch.no_grad():  # Hugging Face's keys have no bias
        for block in model.encoder.vit.blocks:
            block.attn.qkv.bias[64:128] = 0
    names = (
        ("encoder.vit.blocks.", "beit.layers."),
        ("encoder.vit.cls_token", "beit.embeddings.cls_token"),
        ("encoder.vit.patch_embed.proj", "beit.embeddings.patch_embeddings.projection"),
        ("encoder.rel_pos_global", "beit.shared_position_bias.relative_position_bias_table"),
        ("encoder.norm", "layernorm"),
        ("attn.proj", "attention.o_proj"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("ls1.gamma", "lambda_1"),
        ("ls2.gamma", "lambda_2"),
    )

    def renamed(tensors):
        found = {}
        for name, tensor in tensors.items():
            for old, new in names:
                name = name.replace(old, new)
            name = "beit.embeddings.mask_token" if name == "mask_token" else name
            if ".attn.qkv." in name:
                for side, part in zip("qkv", tensor.chunk(3), strict=True):
                    if not (side == "k" and name.endswith("bias")):
                        found[name.replace("attn.qkv", f"attention.{side}_proj")] = part.clone()
            else:
                found[name] = tensor.clone()
        return found

    theirs.load_state_dict(renamed(model.state_dict()), strict=True)
    batch = batch_of()
    for i in range(3):
        one = {name: value[i : i + 1] for name, value in batch.items()}
        model.zero_grad()
        theirs.zero_grad()
        loss = model.train()(one)["loss_beit"]
        loss.backward()
        wanted = model.tokens(one)[one["mask"]]
        output = theirs(normalised(one["images"]), bool_masked_pos=one["mask"], labels=wanted)
        output.loss.backward()
        assert abs(loss.item() - output.loss.item()) <= 1e-6 * loss.item()
        assert far_apart(renamed(gradients(model)), gradients(theirs)) == []


def test_loss_does_not_depend_on_how_a_batch_is_cut() -> None:
    model = model_of().train()
    batch = batch_of(4)
    with torch.no_grad():
        whole = model(batch)["loss_beit"]
        parts = [model({name: value[i : i + 1] for name, value in batch.items()})["loss_beit"] for i in range(4)]
    assert len({int(n) for n in batch["mask"].sum(1)}) == 4
    assert whole.item() == pytest.approx(sum(parts).item() / 4, rel=1e-6)


def test_evaluation_gives_the_share_of_tokens_that_are_right() -> None:
    model = model_of().eval()
    batch = batch_of()
    ids = model.tokens(batch)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[ids[0, batch["mask"][0]][0]] = 5.0  # always this one
        expected = [float((ids[i][batch["mask"][i]] == ids[0, batch["mask"][0]][0]).float().mean()) for i in range(3)]
        assert model(batch)["accuracy"].tolist() == pytest.approx([100 * share for share in expected])
    assert expected[0] > 0


def test_initial_weights_are_those_of_the_released_code() -> None:
    config = config_of("data.image_size=64", "model.abs_pos=true", "mask.min_patches=8", backbone="vit_ti_p8")
    seed_for_model(0)
    method = beit.BeitMethod(config)
    model = method.build_model(method.build_encoder(), None).requires_grad_(False)
    # a normal distribution cut at one standard deviation has a deviation of 0.5396
    deviation = 0.02 * 0.5396
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight") or (".norm" in name and name.endswith("weight")):
            assert bool((parameter == 1).all()), name
        elif "gamma" in name:
            assert bool((parameter == 0.1).all()), name
        elif name.endswith("bias") or "rel_pos" in name:
            assert not bool(parameter.any()), name
        else:
            rescaled = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
            by = math.sqrt(2.0 * (int(name.split(".")[3]) + 1)) if rescaled else 1.0
            assert float(parameter.abs().max()) <= 0.02 / by * 1.0001, name
            assert parameter.detach().std().item() == pytest.approx(deviation / by, rel=0.15), name
            if parameter.numel() > 10_000:
                assert parameter.detach().std().item() == pytest.approx(deviation / by, rel=0.02), name
                assert float(parameter.abs().max()) > 0.99 * 0.02 / by, name


def test_parameter_groups_are_those_of_the_released_code() -> None:
    """optim_factory.py: no decay in one dimension, for biases, and what the model names: class token and positions."""
    model = model_of("model.abs_pos=true")
    config = resolve_pretrain("beit", "vit_b", data="x", tokenizer="kmeans")
    decay = {name: g["weight_decay"] for g in param_groups(model, config.optim) for name in g["names"]}
    expected = {
        name: 0.0 if p.ndim == 1 or name.endswith((".bias", "cls_token", "pos_embed")) else 0.05
        for name, p in model.named_parameters()
    }
    assert decay == expected
    assert decay["mask_token"] == decay["encoder.rel_pos_global"] == 0.05


def test_full_recipe_is_beits() -> None:
    """BEiT Table 12; run_beit_pretraining.py (its README sets no betas) and datasets.py (jitter)."""
    for backbone, scale, clip in (("vit_b", 0.1, 3.0), ("vit_l", 1e-5, 1.0)):
        config = resolve_pretrain("beit", backbone, data="x", tokenizer="kmeans")
        assert config.model.layer_scale == scale
        assert (config.train.global_batch, config.schedule.epochs, config.schedule.warmup_epochs) == (2048, 800, 10)
        assert (config.optim.lr, config.optim.betas, config.optim.clip_grad) == (1.5e-3, (0.9, 0.999), clip)
        assert (config.backbone.drop_path, config.optim.weight_decay) == (0.1, 0.05)
        assert config.data.color_jitter == 0.4
        assert beit.num_masked(config) == 75
        assert (config.mask.min_patches, config.tokenizer.vocab_size) == (16, 8192)


def test_learning_rate_at_every_step_is_the_released_codes() -> None:
    """utils.cosine_scheduler: from 0 in a straight line, then half a cosine to min_lr. Its warm-up has one step less
    to climb (np.linspace), which is the only difference."""
    overrides = ["schedule.epochs=20", "schedule.warmup_epochs=4"]
    config = resolve_pretrain("beit", "vit_b", data="x", tokenizer="kmeans", overrides=overrides)
    schedule = make_schedule(config.schedule, 2048 * 25, 2048)
    warmup, total, low, peak = 100, 500, 1e-5, 1.5e-3
    assert schedule.total == total
    for step in range(total):
        lr = config.optim.lr * schedule.factor(step)
        if step < warmup:
            assert lr == pytest.approx(peak * step / warmup, abs=1e-12)
            assert abs(lr - np.linspace(0, peak, warmup)[step]) <= peak / (warmup - 1)
        else:
            share = (step - warmup) / (total - warmup)
            assert lr == pytest.approx(low + 0.5 * (peak - low) * (1 + math.cos(math.pi * share)), rel=1e-4)


class Draws:
    """A generator that gives what it is told: an order, then factors; all later draws are of a real one."""

    def __init__(self, order: list[int], factors: list[float]) -> None:
        self.order, self.factors, self.rng = order, factors, np.random.default_rng(0)

    def permutation(self, n: int) -> np.ndarray:
        assert n == len(self.order)
        return np.array(self.order)

    def uniform(self, low: float, high: float) -> float:
        if not self.factors:
            return self.rng.uniform(low, high)
        assert (low, high) == (0.6, 1.4)
        return self.factors.pop(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rng, name)


def test_the_whole_image_is_jittered_before_the_crop() -> None:
    """unilm beit/datasets.py: ColorJitter(0.4, 0.4, 0.4), then flip and crop. Contrast is about the mean of the whole
    image, here half black and half white; a crop of one half alone has another mean, and contrast would leave it."""
    config = config_of("mask.ratio=0.4", "data.flip=0")
    views = beit.BeitViews(config)
    halves = torch.zeros(3, 50, 60, dtype=torch.uint8)
    halves[:, :, 30:] = 200
    views._crop = lambda image, rng: image[:, 5:15, 0:10]  # black alone
    order = [1, 0, 2]  # contrast, brightness, saturation
    image = views.train(halves, Draws(order, [0.8, 1.1, 1.0]))["image"]
    # contrast 0.8 about the mean of 100: 0 -> 20; brightness 1.1: 22, but for two roundings to uint8; grey stays grey
    (value,) = image.unique().tolist()
    assert 20 <= value <= 22


def test_samples_have_their_own_mask_and_view() -> None:
    views = beit.BeitViews(config_of("mask.ratio=0.4"))
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    first, again, other = (views.train(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first["mask"].shape == (16,)
    assert 0 < int(first["mask"].sum()) <= 6
    assert (first["mask"] == again["mask"]).all()
    assert (first["mask"] != other["mask"]).any()
    assert set(first) == {"image", "mask"}


def test_a_tokenizer_of_another_size_gets_a_view_of_the_same_crop(tmp_path) -> None:
    """BEiT: the tokenizer sees the crop resized by Lanczos to 8 pixels a patch, here of an encoder with 16."""
    save_tokenizer(DalleTokenizer(hidden=8, vocab_size=6), tmp_path / "t.safetensors")
    config = config_of("data.image_size=64", backbone="vit_nano", tokenizer=str(tmp_path / "t.safetensors"))
    views = beit.BeitViews(config)
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    seen = []
    views._sample = lambda region, rng, inner=views._sample: seen.append(region) or inner(region, rng)
    sample = views.train(image, np.random.default_rng(0))
    assert sample["image"].shape == (3, 64, 64)
    (region,) = seen
    expected = Image.fromarray(region.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(sample["token_view"].permute(1, 2, 0).numpy(), np.asarray(expected))
    method = beit.BeitMethod(config)
    model = method.build_model(method.build_encoder(), None)
    assert model.lm_head.out_features == 6
    model.tokens.tokenizer = DalleTokenizer(hidden=8, vocab_size=6)
    batch = {"images": sample["image"][None], "token_view": sample["token_view"][None]}
    assert model.tokens(batch).shape == (1, 16)


def test_bad_input_is_one_line(tmp_path) -> None:
    for ratio, message in (("0.01", "masks no patch of 4x4"), ("0.1", "mask.min_patches=2: no such block")):
        with pytest.raises(UserError, match=message):
            beit.BeitViews(config_of(f"mask.ratio={ratio}"))
    with pytest.raises(UserError, match=r"mask.min_patches=16: no such block fits into the 6 patches to mask of 4x4"):
        beit.BeitViews(config_of("mask.min_patches=16"))
    save_tokenizer(KMeansTokenizer(torch.rand(5, 3 * 256), patch_size=16), tmp_path / "p16.safetensors")
    with pytest.raises(
        UserError, match=r"tokenizer kmeans has patches of 16 pixels and the encoder of 8, so their grids"
    ):
        beit.BeitViews(config_of(tokenizer=str(tmp_path / "p16.safetensors")))
    save_tokenizer(KMeansTokenizer(torch.rand(5, 64), patch_size=8), tmp_path / "grey.safetensors")
    with pytest.raises(UserError, match=r"grey\.safetensors is for images of 1 channels, not 3"):
        beit.BeitViews(config_of(tokenizer=str(tmp_path / "grey.safetensors")))
    with pytest.raises(UserError, match=r"--tokenizer dvae: train one first, by mae-transfer pretrain --method dvae"):
        beit.BeitViews(config_of(tokenizer="dvae"))
    with pytest.raises(UserError, match=r"--tokenizer dalle: pass the path of OpenAI's encoder\.pkl"):
        beit.BeitViews(config_of(tokenizer="dalle"))
    with pytest.raises(UserError, match=r"need a tokenizer: --tokenizer kmeans"):
        beit.BeitViews(resolve_pretrain("beit", "vit_b", data="synthetic"))


@pytest.mark.parametrize("overrides", [(), ("model.rel_pos=false", "model.abs_pos=true", "model.layer_scale=null")])
def test_encoder_of_a_run_transfers_with_nothing_else_to_say(overrides, tmp_path) -> None:
    """The tokens of the encoder in pre-training, unmasked, are those of `vit_nano_p8` from its checkpoint."""
    from mae_transfer.backbones.checkpoints.own import facts_of

    model = model_of(*overrides).eval()
    model.encoder.load_report.trained_by = "BEiT-style (this project)"
    content = {
        "step": 1,
        "model": model.state_dict(),
        "optimizer": {},
        "ema": None,
        "origin": {"encoder": facts_of(model.encoder)},
    }
    torch.save(content, tmp_path / "step_00000001.pt")
    encoder = load_backbone(
        "vit_nano_p8", checkpoint=tmp_path / "step_00000001.pt", final_norm=True, img_size=32
    ).eval()
    images = normalised(batch_of()["images"])
    with torch.no_grad():
        (theirs,), (ours,) = model.encoder.tokens(images, (7,)), encoder.tokens(images, (7,))
        assert torch.allclose(encoder.norm(ours), model.encoder.norm(theirs), rtol=1e-5, atol=1e-5)
    assert encoder.load_report.trained_by == "BEiT-style (this project)"
    ignored = set(encoder.load_report.ignored)
    assert {"mask_token", "lm_head.weight", "lm_head.bias"} <= ignored
    if not overrides:
        assert {name for name in ignored if name.startswith("encoder.")} == set()
        larger = load_backbone("vit_nano_p8", checkpoint=tmp_path / "step_00000001.pt", img_size=64)
        assert larger(torch.zeros(1, 3, 64, 64))[-1].shape == (1, 64, 8, 8)
        missing = dict(content, model={k: t for k, t in model.state_dict().items() if k != "encoder.rel_pos_global"})
        torch.save(missing, tmp_path / "step_00000002.pt")
        with pytest.raises(UserError, match=r"step_00000002\.pt.*missing encoder\.vit\.blocks\.0\.attn\.rel_pos_table"):
            load_backbone("vit_nano_p8", checkpoint=tmp_path / "step_00000002.pt")


def test_a_run_exports_to_timms_beit(tmp_path) -> None:
    from timm.models.beit import Beit

    from mae_transfer.backbones.checkpoints.export import export
    from mae_transfer.backbones.checkpoints.own import facts_of

    model = model_of().eval()
    content = {"step": 1, "model": model.state_dict(), "optimizer": {}, "ema": None}
    torch.save(content | {"origin": {"encoder": facts_of(model.encoder)}}, tmp_path / "run.pt")
    export(tmp_path / "run.pt", "vit_nano_p8", "timm", tmp_path / "timm.pth")
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 8, "num_heads": 4, "num_classes": 0}
    theirs = Beit(**shape, init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=True, global_pool="").eval()
    theirs.load_state_dict(torch.load(tmp_path / "timm.pth", weights_only=True), strict=True)
    images = normalised(batch_of()["images"])
    with torch.no_grad():
        (ours,) = model.encoder.tokens(images, (7,))
        torch.testing.assert_close(theirs.forward_features(images), model.encoder.norm(ours), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="--export official: has no place for"):
        export(tmp_path / "run.pt", "vit_nano_p8", "official", tmp_path / "official.pth")
