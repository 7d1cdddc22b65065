"""MoCo v3 against the published code's formulas written out, and its runs: resume, ranks, transfer, bad input."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.mae_reference import block, layer_norm, patches_of, sin_cos
from support.pretraining import resolve_pretrain
from support.ranks import spawn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mae_transfer.config.schedule import make_schedule
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.engine.distributed import make_fabric
from mae_transfer.engine.optim import build_optimizer, param_groups
from mae_transfer.engine.rng import seed_for_model
from mae_transfer.engine.step import _settle_buckets
from mae_transfer.errors import UserError
from mae_transfer.pretrain.methods import mocov3
from mae_transfer.run_folder.checkpoints import list_checkpoints, load_checkpoint
from mae_transfer.run_folder.metrics import read_metrics
from mae_transfer.runs.api import run_pretrain, run_transfer

SMALL = ("data.image_size=32", "model.mlp_dim=24", "model.dim=12")
CHECKED = ("loss", "grad_norm", "eval")


def config_of(*overrides: str, backbone: str = "vit_nano_p8"):
    return resolve_pretrain("mocov3", backbone, data="synthetic", overrides=[*SMALL, *overrides])


def model_of(*overrides: str, backbone: str = "vit_nano_p8") -> mocov3.MoCoV3:
    """In float64, with a momentum encoder of other weights, and no biases and norms of zeros and ones: each counts."""
    seed_for_model(0)
    method = mocov3.MocoMethod(config_of(*overrides, backbone=backbone))
    model = method.build_model(method.build_encoder(), None).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            moves = parameter.ndim == 1 or name.startswith("momentum") or name.endswith("cls_token")
            if moves and not name.endswith("pos_embed"):
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def batch_of(images: int = 5, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (images, 3, 32, 32)
    return {n: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for n in ("images", "second")}


# --- the formulas


def features(images: Tensor, w: dict[str, Tensor]) -> Tensor:
    """The class token of vits.py's ViT, an image at a time; w: weights named as `vit.` and `norm.`."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    position = torch.from_numpy(sin_cos((4, 4), 64))
    position = torch.cat([position[:, 32:], position[:, :32]], dim=1)  # the row, then the column
    found = []
    for image in images:
        pixels = patches_of((image.double() / 255 - mean[:, None, None]) / std[:, None, None], 8)
        kernel = w["vit.patch_embed.proj.weight"].permute(0, 2, 3, 1).flatten(1)
        x = torch.cat([w["vit.cls_token"][0], pixels @ kernel.T + w["vit.patch_embed.proj.bias"]]) + position
        for i in range(8):
            x = block(x, w, f"vit.blocks.{i}", 4)
        found.append(layer_norm(x, w["norm.weight"], w["norm.bias"])[0])
    return torch.stack(found)


def head(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """`_build_mlp`: linear without bias, batch norm, ReLU; after the last linear layer a norm without weights."""
    count = max(int(name.split(".")[0]) for name in w) + 1
    for i in range(0, count, 3):
        x = x @ w[f"{i}.weight"].T
        x = (x - x.mean(0)) / torch.sqrt(((x - x.mean(0)) ** 2).mean(0) + 1e-5)
        if f"{i + 1}.weight" in w:
            x = torch.relu(x * w[f"{i + 1}.weight"] + w[f"{i + 1}.bias"])
    return x


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """-log of the softmax share of each query's own key, times 2 T, summed up number by number."""
    total = 0.0
    for i, query in enumerate(queries):
        scores = [torch.exp(query @ key / (query.norm() * key.norm()) / temperature) for key in keys]
        total = total - torch.log(scores[i] / sum(scores))
    return 2 * temperature * total / len(queries)


def expected_loss(batch: dict[str, Tensor], weights: dict[str, Tensor], momentum: float) -> Tensor:
    """moco/builder.py `forward`: queries, the momentum update, keys, both losses."""

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}."): t for key, t in weights.items() if key.startswith(f"{name}.")}

    queries = [head(head(features(batch[n], part("encoder")), part("projector")), part("predictor")) for n in batch]
    slow = {}
    for own, its in (("momentum_encoder", "encoder"), ("momentum_projector", "projector")):
        slow[own] = {n: t * momentum + part(its)[n].detach() * (1 - momentum) for n, t in part(own).items()}
    with torch.no_grad():
        keys = [head(features(batch[n], slow["momentum_encoder"]), slow["momentum_projector"]) for n in batch]
    return info_nce(queries[0], keys[1], 0.2) + info_nce(queries[1], keys[0], 0.2)


def test_loss_gradients_and_momentum_are_those_of_the_formulas() -> None:
    model, batch = model_of(), batch_of()
    model.total_steps, model.steps_done = 40, torch.tensor(13)
    momentum = 1 - 0.5 * (1 + math.cos(math.pi * 13 / 40)) * (1 - 0.99)
    weights = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in model.named_parameters()}
    expected = expected_loss(batch, weights, momentum)
    expected.backward()
    loss = model.train()(batch)["loss_moco"]
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # the loss itself is in float32
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if name in trained:
            scale = weights[name].grad.abs().max()
            assert (parameter.grad - weights[name].grad).abs().max() <= 1e-5 * scale + 1e-12, name
        elif name.startswith("momentum"):
            its = weights[name.removeprefix("momentum_")].detach()
            torch.testing.assert_close(parameter, weights[name] * momentum + its * (1 - momentum), rtol=1e-9, atol=0)
        else:
            assert torch.equal(parameter, weights[name]), name
    frozen = {"encoder.vit.pos_embed", "encoder.vit.patch_embed.proj.weight", "encoder.vit.patch_embed.proj.bias"}
    assert frozen == {n for n in weights if not n.startswith("momentum")} - trained
    assert model.steps_done == 14


def test_ranks_compare_with_all_keys() -> None:
    """Two ranks' mean of losses and gradients, each by its own piece of the queries, is the loss of the whole."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(6, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    queries.requires_grad_()
    whole = mocov3.contrastive_loss(queries, keys, 0, 0.2)
    pieces = [mocov3.contrastive_loss(queries[r : r + 3], keys, r, 0.2) for r in (0, 3)]
    (wanted,), (found,) = (torch.autograd.grad(loss, queries) for loss in (whole, sum(pieces) / 2))
    assert sum(pieces).item() / 2 == pytest.approx(whole.item(), rel=1e-12)
    assert whole.item() == pytest.approx(info_nce(queries, keys, 0.2).item(), rel=1e-12)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("first", [0.99, 0.9])
def test_momentum_rises_by_a_cosine_to_one(first: float) -> None:
    """adjust_moco_momentum, by the share of a lone weight that is left at each step; constant without a length."""
    model = model_of(f"model.momentum={first}")
    followed = [*model.encoder.parameters(), *model.projector.parameters()]
    following = [*model.momentum_encoder.parameters(), *model.momentum_projector.parameters()]
    for total, steps in ((7, range(7)), (None, range(2))):
        model.total_steps, model.steps_done = total, torch.tensor(0)
        for step in steps:
            with torch.no_grad():
                for mine, theirs in zip(following, followed, strict=True):
                    mine.fill_(1.0), theirs.fill_(0.0)
            model.follow()
            m = 1 - 0.5 * (1 + math.cos(math.pi * step / total)) * (1 - first) if total else first
            assert all(torch.allclose(p, torch.full_like(p, m), rtol=1e-12, atol=0) for p in following)


def test_weights_that_are_equal_stay_equal() -> None:
    model = model_of().float()
    model.momentum_encoder.load_state_dict(model.encoder.state_dict())
    model.follow()
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(model.momentum_encoder.state_dict()[name], tensor), name


def test_a_pass_that_is_thrown_away_changes_nothing() -> None:
    """DDP's first backward pass (engine/step.py): else a resumed run of several ranks would move twice."""
    model = model_of().float().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.total_steps = 9
    model(batch_of())
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"steps_done", "momentum_encoder.norm.weight", "momentum_projector.1.running_mean"} <= changed
    model.load_state_dict(before)
    _settle_buckets(make_fabric("cpu", "fp32"), model, model, batch_of())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_evaluation_gives_each_image_its_similarity() -> None:
    model, batch = model_of().eval(), batch_of()
    with torch.no_grad():
        found = model(batch)
        alone = model({name: images[2:3] for name, images in batch.items()})
        views = [model.encoder.normalise(images) for images in batch.values()]
        query, key = model.query(views[0])[1], model.key(views[1])[1]
    assert found.keys() == {"similarity"}
    assert found["similarity"][1].item() == pytest.approx(float(query @ key / query.norm() / key.norm()), rel=1e-5)
    torch.testing.assert_close(found["similarity"][2:3], alone["similarity"])
    assert model.steps_done == 0


# --- initial weights and recipe


def test_initial_weights_are_those_of_the_released_code() -> None:
    seed_for_model(0)
    method = mocov3.MocoMethod(resolve_pretrain("mocov3", "vit_ti_p8", data="x", overrides=["data.image_size=64"]))
    model = method.build_model(method.build_encoder(), None).requires_grad_(False)
    for name, tensor in model.encoder.named_parameters():
        if name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")):
            fan_out, fan_in = len(tensor) // (3 if "qkv" in name else 1), tensor[0].numel()
            bound = math.sqrt(6 / (fan_in + fan_out))
            assert 0.99 * bound < tensor.abs().max() <= bound, name
            assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03), name
        elif name.endswith("bias"):
            assert not tensor.any(), name
    assert model.encoder.vit.cls_token.std().item() == pytest.approx(1e-6, rel=0.2)
    position = torch.from_numpy(sin_cos((8, 8), 192)).float()
    swapped = torch.cat([position[:, 96:], position[:, :96]], dim=1)
    torch.testing.assert_close(model.encoder.vit.pos_embed[0], swapped)
    for own, its in ((model.momentum_encoder, model.encoder), (model.momentum_projector, model.projector)):
        assert all(map(torch.equal, own.parameters(), its.parameters()))
    shapes = [[tuple(p.shape) for p in part.parameters()] for part in (model.projector, model.predictor)]
    norms = [(4096,), (4096,)]
    assert shapes[0] == [(4096, 192), *norms, (4096, 4096), *norms, (256, 4096)]
    assert shapes[1] == [(4096, 256), *norms, (256, 4096)]
    assert model.projector[0].weight.abs().max() <= 1 / math.sqrt(192)  # torch's own


def test_full_recipe_is_that_of_the_command_for_vit_b() -> None:
    config = resolve_pretrain("mocov3", "vit_b", data="x")
    assert config.optim.lr == pytest.approx(1.5e-4 * 4096 / 256, rel=1e-12)
    assert (config.optim.weight_decay, config.train.global_batch, config.schedule.epochs) == (0.1, 4096, 300)
    model = config.model
    assert (model.temperature, model.momentum, model.mlp_dim, model.dim) == (0.2, 0.99, 4096, 256)
    assert (config.data.scale_min, config.data.flip, config.data.augmentation) == (0.08, 0.5, "full")
    schedule = make_schedule(config.schedule, 4096 * 5, 4096)  # adjust_learning_rate
    for step in range(0, schedule.total, 7):
        epoch = step / 5
        expected = epoch / 40 if epoch < 40 else 0.5 * (1 + math.cos(math.pi * (epoch - 40) / 260))
        assert schedule.factor(step) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    groups = param_groups(model_of(), config.optim)  # torch.optim.AdamW(model.parameters()): all are decayed
    assert {(group["weight_decay"], group["lr_scale"]) for group in groups} == {(0.1, 1.0)}


# --- runs


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return make_classification(tmp_path_factory.mktemp("data") / "set", "folder", train_images=3, val_images=2)


def pretrain(images: Path, output: Path, *overrides: str, **options):
    overrides = [*SMALL, *overrides]
    return run_pretrain(
        "mocov3", "vit_nano_p8", preset="smoke", data=images, output=output, overrides=overrides, **options
    )


@pytest.fixture(scope="module")
def run(images, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(images, output, "eval.knn=3", "train.checkpoint_every=1", "train.keep_checkpoints=9")
    return output


def content(run: Path):
    return load_checkpoint(list_checkpoints(run / "checkpoints")[-1])


def test_a_resumed_run_is_an_unstopped_one_to_the_last_bit(images, run, tmp_path) -> None:
    shutil.copytree(run, tmp_path / "cut")
    for path in list_checkpoints(tmp_path / "cut" / "checkpoints")[1:]:
        path.unlink()
    (tmp_path / "cut" / "record.json").unlink()
    every = ["eval.knn=3", "train.checkpoint_every=1", "train.keep_checkpoints=9"]
    pretrain(images, tmp_path / "cut", *every, resume=True)
    ours, theirs = content(tmp_path / "cut"), content(run)
    assert ours["model"].keys() == theirs["model"].keys()
    assert all(torch.equal(ours["model"][name], tensor) for name, tensor in theirs["model"].items())
    assert theirs["model"]["steps_done"] == 3
    moved = theirs["model"]["momentum_encoder.vit.blocks.0.mlp.fc1.weight"]
    assert not torch.equal(moved, theirs["model"]["encoder.vit.blocks.0.mlp.fc1.weight"])
    lines = [[{k: line[k] for k in CHECKED if k in line} for line in read_metrics(r)] for r in (run, tmp_path / "cut")]
    assert lines[0] == lines[1]


def test_the_encoder_transfers_with_nothing_else_to_say(images, run, tmp_path) -> None:
    record = json.loads((run / "record.json").read_text())
    assert record["metrics"].keys() == {"val_similarity", "knn_top1"}
    assert -1 <= record["metrics"]["val_similarity"] <= 1
    transferred = run_transfer(
        *("folder", "vit_nano_p8"),
        protocol="knn",
        checkpoint=run,
        preset="smoke",
        data=images,
        output=tmp_path / "knn",
        overrides=["data.image_size=32"],
    )
    assert transferred["backbone"]["init"] == "MoCo v3 (this project)"
    assert transferred["backbone"]["trained_as"] == record["settings_id"]
    assert transferred["backbone"]["fingerprint"] is not None


def test_bad_input_is_one_line(images, tmp_path) -> None:
    bad = {
        "train.micro_batch=2": "train.micro_batch=2 is not train.global_batch=4: --method mocov3 compares all images",
        "train.global_batch=1": "--method mocov3 tells images of a step from each other and needs at least 2",
        "data.image_size=33": "data.image_size=33x33",
        "data.augmentation=none": "data.augmentation",
        "data.color_jitter=0.4": "data.color_jitter and data.randaugment are not of --method mocov3",
        "model.temperature=0": "model.temperature",
        "model.momentum=1": "model.momentum",
    }
    for override, message in bad.items():
        with pytest.raises(UserError) as caught:
            pretrain(images, tmp_path / "none", override)
        assert message in str(caught.value), override
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="data.augmentation=full is for RGB images"):
        config_of("data.channels=1", "data.mean=[0.5]", "data.std=[0.2]")
    assert not (tmp_path / "none").exists()


# --- ranks


def two_steps(model: torch.nn.Module, part: slice) -> dict[str, Tensor]:
    """Losses, gradients of the second step, and all weights after it."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    inner.train().total_steps = 5
    optimizer = build_optimizer(inner, config_of().optim)
    found = {}
    for step in range(2):
        optimizer.zero_grad()
        batch = {name: images[part] for name, images in batch_of(6, seed=step).items()}
        loss = model(batch)["loss_moco"]
        loss.backward()
        found[f"loss {step}"] = loss.detach()
        for group in optimizer.param_groups:
            group["lr"] = 1e-5
        optimizer.step()
    found |= {f"gradient {name}": p.grad for name, p in inner.named_parameters() if p.grad is not None}
    return found | {name: tensor.clone() for name, tensor in inner.state_dict().items()}


def rank_work(rank: int) -> dict[str, Tensor]:
    return two_steps(DistributedDataParallel(model_of()), slice(3 * rank, 3 * rank + 3))


@pytest.mark.process
def test_two_ranks_do_what_one_does(tmp_path) -> None:
    """Keys of all ranks, batch norm over all of them, and equal momentum encoders."""
    one, (a, b) = two_steps(model_of(), slice(None)), spawn(rank_work, tmp_path)
    assert a.keys() == b.keys() == one.keys()
    for name, wanted in one.items():
        if name.startswith("loss"):
            torch.testing.assert_close((a[name] + b[name]) / 2, wanted, rtol=1e-6, atol=0)
            assert not np.isclose(a[name].item(), b[name].item(), rtol=1e-6)
            continue
        assert torch.equal(a[name], b[name]), name
        scale = float(wanted.abs().max())
        assert float((a[name] - wanted).abs().max()) <= 1e-5 * scale + 1e-12, name
