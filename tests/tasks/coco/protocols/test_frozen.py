"""COCO with a frozen encoder: its maps against timm's, no graph through it, no change of it; partial fine-tuning."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.coco_command import BASE, TINY
from support.command_line import transfer, weights
from torch import Tensor

from mae_transfer.backbones.load import load_backbone
from mae_transfer.cli.transfer import main
from mae_transfer.config.schedule import make_schedule
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.engine.optim import param_groups
from mae_transfer.run_folder.record import read_record
from mae_transfer.run_folder.settings import settings_id
from mae_transfer.runs.plan import plan_runs
from mae_transfer.runs.resolve import load_config
from mae_transfer.runs.settings import make_settings
from mae_transfer.tasks.card import load_object
from mae_transfer.tasks.coco.card import CARDS
from mae_transfer.tasks.coco.model import MaskRCNN

SMALL = [option for option in TINY if not option.startswith("backbone")]
DEPTH = 8


def build(protocol: str, *overrides: str) -> tuple[MaskRCNN, Any]:
    config = load_config("coco", "random_vit_nano", protocol=protocol, overrides=[*SMALL, *overrides])
    card = CARDS[0].protocol(protocol)
    assert card is not None
    of_run = load_object(card.code)(config)
    torch.manual_seed(0)
    backbone = config.backbone
    encoder = load_backbone(
        "random_vit_nano", window_size=backbone.window_size, rel_pos=backbone.rel_pos, **of_run.encoder_options(16)
    )
    return of_run.build_model(encoder, 3, masks=True), config


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(256, (3, 64, 48), generator=generator, dtype=torch.uint8) for _ in range(2)]
    square = [[8.0, 8.0, 40.0, 8.0, 40.0, 40.0, 8.0, 40.0]]
    target = {
        "boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]),
        "classes": torch.tensor([1]),
        "masks": [[torch.tensor(points, dtype=torch.float64).numpy() for points in square]],
    }
    return {
        "images": images,
        "file_names": ["a", "b"],
        "targets": [target | {"seed": 3}, target | {"seed": 4}],
    }


def inputs_of_the_pyramid(model: MaskRCNN) -> list[Tensor]:
    seen: list[Tensor] = []
    model.pyramid.register_forward_pre_hook(lambda module, arguments: seen.extend(arguments[0]))
    sum(model.train()(batch()).values()).backward()
    return seen


@pytest.mark.parametrize(
    ("recipe", "layers", "blocks"),
    [
        ("frozen_li2021", "four_even", (1, 3, 5, 7)),
        ("frozen_li2021", "last", (7, 7, 7, 7)),
        ("frozen_li2021", "[0,2,4,6]", (0, 2, 4, 6)),
        ("frozen_vitdet", "last", (7,)),
    ],
)
def test_the_pyramid_reads_timms_maps_and_no_graph(recipe: str, layers: str, blocks: tuple[int, ...]) -> None:
    model, config = build("frozen", f"recipe={recipe}", f"probe.layers={layers}", "model.pos_embed=native")
    with torch.no_grad():
        model.encoder.vit.pos_embed.zero_()  # timm resamples positions by another rule
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        maps = inputs_of_the_pyramid(model)
    assert len(maps) == len(blocks)
    assert all(x.grad_fn is None and not x.requires_grad for x in maps)
    of_encoder = {p.data_ptr() for p in model.encoder.parameters()}
    assert saved
    assert not of_encoder & set(saved), "no layer of the encoder keeps anything for a backward pass"
    assert all(p.grad is None and not p.requires_grad for p in model.encoder.parameters())
    assert not any(part.training for part in model.encoder.modules() if not [*part.children()])
    trained = {name for group in param_groups(model, config.optim) for name in group["names"]}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("encoder.")}
    # timm's own forward with its final norm on every block that is read
    vit = model.encoder.vit
    vit.norm = model.encoder.norm
    images = torch.stack([model.encoder.normalise(torch.nn.functional.pad(x, (0, 16))) for x in batch()["images"]])
    images[..., 48:] = 0
    with torch.no_grad():
        found = vit.forward_intermediates(images, indices=sorted(set(blocks)), norm=True, intermediates_only=True)
    for ours, theirs in zip(maps, found * (len(blocks) // len(found)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_blocks_output_without_the_norm() -> None:
    with_norm, without = (inputs_of_the_pyramid(build("frozen", f"probe.final_norm={x}")[0]) for x in ("true", "false"))
    for normed, plain in zip(with_norm, without, strict=True):
        torch.testing.assert_close(
            normed, torch.nn.functional.layer_norm(plain.movedim(1, -1), (64,), eps=1e-6).movedim(-1, 1)
        )
    assert with_norm[0].mean(1).abs().max() < 1e-5 < without[0].mean(1).abs().max()


def test_heads_have_the_recipes_learning_rate_whatever_the_encoder() -> None:
    for recipe, lr in (("frozen_li2021", 1.6e-4), ("frozen_vitdet", 1e-4)):
        for backbone in ("mae_vit_b", "sup_vit_l", "random_vit_b", "mocov3_vit_b", "mae_vit_h"):
            config = load_config("coco", backbone, protocol="frozen", overrides=[f"recipe={recipe}"])
            assert (config.optim.lr, config.optim.weight_decay, config.optim.layer_decay) == (lr, 0.1, 1.0)
            assert (config.schedule.epochs, config.backbone.drop_path, config.backbone.window_size) == (25, 0, 0)
        total, kind = int(25 * 117266 / 64), config.schedule.kind
        schedule, warmup = make_schedule(config.schedule, 117266, 64), (0.25 * 117266 / 64 if kind == "cosine" else 250)
        assert schedule.total == total
        for step in range(total):
            if kind == "cosine":
                decay = (1 + math.cos(math.pi * max(step, warmup) / total)) / 2
            else:
                decay = 0.1 ** ((step >= round(8 / 9 * total)) + (step >= round(26 / 27 * total)))
            expected = decay if step >= warmup else 0.001 + (decay - 0.001) * step / warmup
            assert schedule.factor(step) == pytest.approx(expected, abs=1e-12)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("data") / "coco", train_images=6, val_images=3, size=(48, 64))


def encoder_file(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(7)
    encoder = load_backbone("random_vit_nano", final_norm=True)
    state = encoder.vit.state_dict() | {f"norm.{k}": v + 0.25 for k, v in encoder.norm.state_dict().items()}
    torch.save({"model": state}, folder / "encoder.pt")
    return folder / "encoder.pt", state


def test_runs_leave_the_encoder_as_it_was(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One process and two, both recipes; the same losses on one rank and two."""
    file, before = encoder_file(tmp_path)
    options = ["--task", "coco", "--backbone", "mae_vit_nano", "--checkpoint", str(file), "--preset", "smoke"]
    options += [
        "--device",
        "cpu",
        "--data",
        str(data),
        "--protocol",
        "frozen",
        *SMALL,
        "eval.pictures=0",
        "eval.max_detections=5",
    ]
    options += ["train.global_batch=4", "schedule.warmup_steps=0"]
    two = tmp_path / "runs" / "two"
    done = transfer([*options, "--output", str(two), "train.micro_batch=2", "schedule.steps=2"], ranks=2)
    assert done.returncode == 0, done.stderr
    for name, recipe in (("one", "frozen_li2021"), ("vitdet", "frozen_vitdet")):
        output = ["--output", str(tmp_path / "runs" / name), "train.micro_batch=4", "schedule.steps=2"]
        assert main([*options, *output, f"recipe={recipe}"]) == 0
    for name in ("one", "two", "vitdet"):
        record, after = read_record(tmp_path / "runs" / name / "record.json"), weights(tmp_path / "runs" / name)
        assert record["row"] == {"name": "frozen", "frozen": True, "rank": 2}
        assert {"box_AP", "mask_AP"} <= record["metrics"].keys()
        for key, value in before.items():
            place = f"encoder.{key}" if key.startswith("norm.") else f"encoder.vit.{key}"
            if key == "pos_embed" and place in after and after[place].shape != value.shape:
                continue  # resampled once before the training
            assert torch.equal(after[place], value), (name, key)
    first = [
        json.loads((tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("one", "two")
    ]
    for name in ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"):
        assert first[0][name] == pytest.approx(first[1][name], rel=1e-4, abs=1e-7), name
    biases = weights(two)["roi_heads.box_predictor.cls_score.bias"]
    assert biases.any(), "the heads have learned: their biases begin at zero"

    from mae_transfer.cli.tables import main as tables

    capsys.readouterr()
    assert tables(["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "t.md")]) == 0
    head = re.search(r"by protocol\n.*?\n(\| initialisation .*?)\n", capsys.readouterr().out, re.DOTALL)
    assert head is not None
    assert "AP box frozen_li2021 nano | AP box frozen_vitdet nano" in head[1]


def test_fine_tuning_is_named_as_before() -> None:
    """Its configuration has no protocol; the settings ids are those of an earlier version."""
    for recipe, known in (("mask_rcnn_li2021", "2781d7892b27"), ("vitdet_mask_rcnn", "a250c6793709")):
        options: dict[str, Any] = {"preset": "mini", "data": "/data/x", "overrides": [f"recipe={recipe}"]}
        (one,) = plan_runs("coco", "mae_vit_b", **options)
        (named,) = plan_runs("coco", "mae_vit_b", protocol="finetune", **options)
        assert one.path.name.startswith("coco-mae_vit_b-mini-seed0-")
        assert settings_id(make_settings(one.config, data_fingerprint="f", norm_batch=16)) == known
        assert (named.config, named.path) == (one.config, one.path)
    (frozen,) = plan_runs("coco", "mae_vit_b", protocol="frozen", preset="mini", data="/data/x")
    assert frozen.path.name.startswith("coco-frozen-mae_vit_b-mini-seed0-")


@pytest.mark.parametrize(
    ("recipe", "blocks"),
    [("partial_li2021", 0), ("partial_li2021", 2), ("partial_vitdet", 0.5), ("partial_vitdet", DEPTH)],
)
def test_partial_trains_the_last_blocks(recipe: str, blocks: float) -> None:
    model, config = build("partial", f"recipe={recipe}", f"model.blocks={blocks}", "backbone.window_size=2")
    inputs_of_the_pyramid(model)
    first = DEPTH - math.ceil(blocks)
    for name, parameter in model.encoder.named_parameters():
        block = re.match(r"vit\.blocks\.(\d+)\.(\w+)", name)
        learns = blocks == DEPTH or bool(block and int(block[1]) >= first)
        if blocks == 0.5 and block and int(block[1]) == first:
            learns = block[2] in ("norm2", "mlp")
        assert parameter.requires_grad == learns, name
        assert (parameter.grad is not None) == learns, name
    assert config.backbone.rel_pos, "as in full fine-tuning"


def test_numbers_of_blocks_are_a_run_each() -> None:
    runs = plan_runs("coco", "mae_vit_b", protocol="partial", blocks="0,1,12", data="/data/x")
    assert [run.config.model.blocks for run in runs] == [0, 1, 12]  # type: ignore[attr-defined]
    assert len({run.path for run in runs}) == 3
    assert runs[0].path.name.startswith("coco-partial-0blocks-mae_vit_b-full-seed0-")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--protocol", "linear"], "unknown protocol 'linear'; protocols of coco: finetune, partial, frozen"),
        (["--protocol", "frozen", "probe.layers=[0,1]"], r"probe.layers=\(0, 1\): the FPN takes four_even or last"),
        (["--protocol", "frozen", "probe.layers=[8]"], r"probe.layers=\[8\]: give ascending block numbers from 0 to 7"),
        (
            ["--protocol", "frozen", "recipe=frozen_vitdet", "probe.layers=four_even"],
            "probe.layers=four_even: the simple pyramid takes one block: probe.layers=last",
        ),
        (["--protocol", "frozen", "backbone.drop_path=0.1"], "protocol=frozen never reads it .finetune and partial do"),
        (["--protocol", "frozen", "optim.layer_decay=0.7"], "protocol=frozen never reads it"),
        (["--protocol", "frozen", "recipe=vitdet_mask_rcnn"], "recipe vitdet_mask_rcnn is for the protocol finetune"),
        (["--protocol", "frozen", "--engine", "detectron2"], "--engine detectron2 is for fine-tuning"),
        (["probe.layers=last"], "unknown config key 'probe.layers'"),
        (["--protocol", "partial"], "--protocol partial needs --blocks"),
        (["--protocol", "partial", "--blocks", "9"], "--blocks 9: random_vit_nano takes 0, 0.5, 1, 2, ... 8, or curve"),
    ],
)
def test_bad_options_are_one_line(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    assert main([*BASE, "--data", str(data), *SMALL, "--output", str(tmp_path / "run"), *options]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(expected, errors[0]), errors[0]
    assert not (tmp_path / "run").exists()
