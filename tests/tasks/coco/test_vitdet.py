"""ViTDet's Mask R-CNN and Cascade Mask R-CNN: against detectron2 where it is installed, against its numbers anywhere.

`goldens/vitdet.npz` holds what detectron2 02b5c4e computed on a CPU (`goldens/make_vitdet.py`).
"""

from typing import Any

import numpy as np
import pytest
import torch
from support import paths
from support.detector_standin import StandInEncoder, small_config
from support.vitdet_cases import (
    DEPTH,
    DETECTION_SEEDS,
    KINDS,
    MAP_CASES,
    TRAINING_CASES,
    batch,
    detectron2s,
    in_float64,
    map_image,
    on_our_maps,
    ours,
    their_detections,
    their_losses,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder

from mae_transfer.adapters.norm import ChannelNorm
from mae_transfer.adapters.simple_pyramid import SimplePyramid
from mae_transfer.config.schedule import make_schedule
from mae_transfer.engine.optim import param_groups
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.coco.config import CocoConfig
from mae_transfer.tasks.coco.detector.cascade import BOX_WEIGHTS, CascadeRoIHeads
from mae_transfer.tasks.coco.detector.losses import box_losses, roi_weights
from mae_transfer.tasks.coco.detector.pooler import pool
from mae_transfer.tasks.coco.detector.postprocess import select_detections
from mae_transfer.tasks.coco.detectron2.names import (
    POSITION,
    from_detectron2,
    options_of,
    prefix_pairs,
    to_detectron2,
)
from mae_transfer.tasks.coco.model import build_mask_rcnn

GOLDENS = paths.GOLDENS / "vitdet.npz"


@pytest.fixture(scope="module")
def goldens() -> Any:
    return np.load(GOLDENS, allow_pickle=False)


@pytest.fixture(scope="module")
def detectron2() -> Any:
    return pytest.importorskip("detectron2.modeling", reason="detectron2 is not installed")


@pytest.mark.parametrize("case", MAP_CASES)
def test_maps_are_those_of_the_goldens(case: str, goldens: Any) -> None:
    """Windows with padding, global blocks, tables of the image's size and resized ones; strided maps are kept."""
    model = ours("mask_rcnn", 5).double()
    with torch.no_grad():
        maps = model.pyramid(model.encoder(map_image(case).double()))
    assert list(maps) == ["p2", "p3", "p4", "p5", "p6"]
    for name, found in maps.items():
        wanted = goldens[f"maps/{case}/{name}"]
        assert wanted.std() > 0.1
        assert np.abs(found[:, ::4, ::3, ::3].numpy() - wanted).max() < 1e-6


@pytest.mark.parametrize("case", MAP_CASES)
def test_maps_are_detectron2s(case: str, detectron2: Any) -> None:
    model = ours("mask_rcnn", 5).eval()
    theirs = detectron2s("mask_rcnn", model).backbone.eval()
    with torch.no_grad():
        found, wanted = model.pyramid(model.encoder(map_image(case))), theirs(map_image(case))
    assert list(found) == list(wanted)
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], atol=1e-5, rtol=1e-5)


def assert_same_detections(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert len(found["boxes"]) == len(wanted["boxes"]) == 100
    assert found["classes"].tolist() == wanted["classes"].tolist()
    torch.testing.assert_close(found["boxes"], wanted["boxes"], atol=1e-3, rtol=0)
    torch.testing.assert_close(found["scores"], wanted["scores"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", DETECTION_SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_those_of_the_goldens(kind: str, seed: int, goldens: Any) -> None:
    with torch.no_grad():
        detections = ours(kind, seed).double().eval()(batch(seed))
    for i, found in enumerate(detections):
        names = ("boxes", "scores", "classes")
        wanted = {name: torch.from_numpy(goldens[f"{kind}/detect/{seed}/{i}/{name}"]) for name in names}
        assert_same_detections(found, wanted)
        areas = found["masks"].sum(dim=(1, 2)).numpy()
        assert np.abs(areas - goldens[f"{kind}/detect/{seed}/{i}/areas"]).max() <= 1
        first = np.packbits(found["masks"][:3].numpy())
        assert (first != goldens[f"{kind}/detect/{seed}/{i}/first_masks"]).sum() <= 1


@pytest.mark.parametrize("seed", DETECTION_SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_detections_from_the_same_maps_are_detectron2s(kind: str, seed: int, detectron2: Any) -> None:
    model = ours(kind, seed).eval()
    theirs = on_our_maps(detectron2s(kind, model), model, batch(seed))
    with torch.no_grad():
        detections = model(batch(seed))
    for found, wanted in zip(detections, their_detections(theirs, batch(seed)), strict=True):
        assert_same_detections(found, wanted)
        differing = int((found["masks"] != wanted["masks"]).sum())
        assert differing <= 3, "of some million pixels: fused layer norm rounds unlike detectron2's formula"


@pytest.mark.parametrize("seed", DETECTION_SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_detections_from_the_same_images_are_detectron2s(kind: str, seed: int, detectron2: Any) -> None:
    """Both trunks in fp32 differ by some 1e-6: ranks may swap where scores are that close, and pixels where a mask is
    that close to 0.5. Each detection has its counterpart all the same."""
    model = ours(kind, seed).eval()
    with torch.no_grad():
        detections = model(batch(seed))
    for found, wanted in zip(detections, their_detections(detectron2s(kind, model), batch(seed)), strict=True):
        assert len(found["boxes"]) == len(wanted["boxes"]) == 100
        free = list(range(100))
        for i in range(100):
            far = (found["boxes"][i] - wanted["boxes"][free]).abs().amax(1)
            far[(found["scores"][i] - wanted["scores"][free]).abs() > 1e-5] = torch.inf
            far[found["classes"][i] != wanted["classes"][free]] = torch.inf
            assert far.min() < 1e-3
            j = free.pop(int(far.argmin()))
            assert (found["masks"][i] != wanted["masks"][j]).sum() <= 3


@pytest.mark.parametrize("case", TRAINING_CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_the_goldens(kind: str, case: str, goldens: Any) -> None:
    seed, objects = TRAINING_CASES[case]
    model = ours(kind, seed).double().train()
    losses = model(batch(seed, objects))
    sum(losses.values()).backward()
    assert len(losses) == (9 if kind == "cascade" else 5)
    wanted = {name: goldens[f"{kind}/train/{case}/{name}"].item() for name in losses}
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(wanted, abs=1e-5)
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    wanted_norms = dict(zip(sorted(norms), goldens[f"{kind}/train/{case}/gradient_norms"].tolist(), strict=True))
    assert norms == pytest.approx(wanted_norms, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("case", TRAINING_CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_from_the_same_maps_are_detectron2s(kind: str, case: str, detectron2: Any) -> None:
    """In fp32; the same maps give the same proposals, of which the same are drawn."""
    seed, objects = TRAINING_CASES[case]
    model, data = ours(kind, seed).train(), batch(seed, objects)
    wanted = their_losses(on_our_maps(detectron2s(kind, model), model, data), data)
    wanted = {name: loss.item() for name, loss in wanted.items()}
    assert {name: loss.item() for name, loss in model(data).items()} == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("case", TRAINING_CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_detectron2s(kind: str, case: str, detectron2: Any) -> None:
    """Through the whole of both models, every element; in float64, so that both draw among the same proposals."""
    seed, objects = TRAINING_CASES[case]
    model = ours(kind, seed)
    theirs, model = in_float64(kind, model), model.double().train()
    found, wanted = model(batch(seed, objects)), their_losses(theirs, batch(seed, objects))
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in wanted.items()}, abs=1e-5)
    sum(found.values()).backward()
    sum(wanted.values()).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    of_theirs = from_detectron2(gradients, prefix_pairs(**options_of(gradients)))
    of_ours = {name: p.grad for name, p in model.named_parameters()}
    assert of_ours.keys() == of_theirs.keys()
    for name, gradient in of_ours.items():
        # the absolute part is for gradients that are zero but for rounding: biases before a norm or a softmax
        assert (gradient - of_theirs[name]).norm() <= 1e-4 * of_theirs[name].norm() + 1e-6, name


@pytest.mark.parametrize("size", ["b", "l", "h"])
@pytest.mark.parametrize("kind", KINDS)
def test_lr_and_weight_decay_of_every_parameter_are_detectron2s(kind: str, size: str, detectron2: Any) -> None:
    """The recipe's groups against `get_default_optimizer_params` as ViTDet's configurations call it for B, L and H."""
    from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
    from detectron2.solver.build import get_default_optimizer_params

    decay = {"b": 0.7, "l": 0.8, "h": 0.9}[size]
    model = ours(kind, 0)
    theirs = detectron2s(kind, model)
    wanted_groups = get_default_optimizer_params(
        theirs,
        base_lr=1e-4,
        weight_decay=0.1,
        weight_decay_norm=None if size == "h" else 0.0,
        lr_factor_func=lambda name: get_vit_lr_decay_rate(name, decay, DEPTH),
        overrides={} if size == "h" else {"pos_embed": {"weight_decay": 0.0}},
    )
    values = {id(p): (g["lr"], g["weight_decay"]) for g in wanted_groups for p in g["params"]}
    by_name = {name: torch.tensor([[values[id(p)]]]) for name, p in theirs.named_parameters()}
    by_name[POSITION] = by_name[POSITION].repeat(1, 2, 1)  # the first row of a position embedding goes
    wanted = from_detectron2(by_name, prefix_pairs(**options_of(by_name)))
    config = load_config("coco", f"mae_vit_{size}", overrides=[f"recipe=vitdet_{kind}"])
    groups = param_groups(model, config.optim)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found.keys() == wanted.keys() == set(names.values())
    for name, pair in found.items():
        assert pair == pytest.approx(wanted[name].flatten().tolist(), rel=1e-6), name


@pytest.mark.parametrize("recipe", ["vitdet_mask_rcnn", "vitdet_cascade"])
@pytest.mark.parametrize(
    ("backbone", "total", "milestones"),
    [
        ("mae_vit_b", 184375, (163889, 177546)),
        ("mae_vit_l", 184375, (163889, 177546)),
        ("mae_vit_h", 138281, (122916, 133159)),
    ],
)
def test_learning_rate_is_that_of_vitdet(recipe: str, backbone: str, total: int, milestones: tuple[int, int]) -> None:
    """`WarmupParamScheduler(MultiStepParamScheduler)` written out, with the steps of its configuration files; they
    count 118,000 images. The warm-up is a share of the length, 250 / 184375, also in H's file, which changes the
    length: 187.5 steps there."""
    config = load_config("coco", backbone, overrides=[f"recipe={recipe}"])
    schedule = make_schedule(config.schedule, 118000, config.train.global_batch)
    assert schedule.total == total
    first, second = milestones
    expected = {first - 1: 1.0, first: 0.1, second - 1: 0.1, second: 0.01}
    for step in range(300):
        share, warmup = step / total, 250 / 184375
        expected[step] = 0.001 + 0.999 * share / warmup if share < warmup else 1.0
    for step, factor in expected.items():
        # 187.5 of 138281 steps is the share but for the rounding of the length from 138281.25
        assert schedule.factor(step) == pytest.approx(factor, rel=5e-6), step


def test_what_the_recipes_say_of_each_size() -> None:
    for size, (drop, decay, epochs) in {"b": (0.1, 0.7, 100), "l": (0.4, 0.8, 100), "h": (0.5, 0.9, 75)}.items():
        for recipe in ("vitdet_mask_rcnn", "vitdet_cascade"):
            config = load_config("coco", f"mae_vit_{size}", overrides=[f"recipe={recipe}"])
            assert isinstance(config, CocoConfig)
            assert (config.backbone.drop_path, config.optim.layer_decay, config.schedule.epochs) == (
                drop,
                decay,
                epochs,
            )
            assert (config.model.cascade, config.model.norm, config.model.pyramid) == (
                recipe == "vitdet_cascade",
                "LN",
                "simple",
            )
            assert config.recipe == recipe


def test_layer_decay_only_where_its_gain_was_seen() -> None:
    """ViTDet A.2: with MAE pre-training, not with supervised; of random weights nothing. Table 11: lr, wd, epochs."""
    for name, expected in {
        "mae_vit_b": (0.7, 1e-4, 0.1, 100),
        "mae_vit_l": (0.8, 1e-4, 0.1, 100),
        "sup_vit_b": (1.0, 8e-5, 0.1, 50),
        "sup_vit_l": (1.0, 8e-5, 0.1, 50),
        "random_vit_b": (1.0, 1.6e-4, 0.2, 300),
        "random_vit_l": (1.0, 1.6e-4, 0.2, 300),
    }.items():
        config = load_config("coco", name, overrides=["recipe=vitdet_mask_rcnn"])
        optim = config.optim
        assert (optim.layer_decay, optim.lr, optim.weight_decay, config.schedule.epochs) == expected, name


@pytest.mark.parametrize("kind", KINDS)
def test_names_go_both_ways(kind: str) -> None:
    state = ours(kind, 0).state_dict()
    pairs = prefix_pairs(**options_of(state))
    theirs = to_detectron2(state, pairs)
    assert options_of(theirs) == options_of(state)
    head = "roi_heads.box_head.2." if kind == "cascade" else "roi_heads.box_head."
    predictor = "roi_heads.box_predictor.2." if kind == "cascade" else "roi_heads.box_predictor."
    expected = {
        *("backbone.net.patch_embed.proj.weight", "backbone.net.blocks.3.attn.rel_pos_h", POSITION),
        *("backbone.simfp_2.0.weight", "backbone.simfp_2.1.bias", "backbone.simfp_2.3.bias"),
        *("backbone.simfp_2.4.weight", "backbone.simfp_2.5.norm.weight", "backbone.simfp_4.0.norm.bias"),
        *("backbone.simfp_5.2.weight", "proposal_generator.rpn_head.conv.conv1.weight"),
        *(f"{head}conv4.norm.weight", f"{head}fc1.weight", f"{predictor}bbox_pred.weight"),
    }
    assert expected <= theirs.keys()
    assert theirs[POSITION].shape[1] == state["encoder.vit.pos_embed"].shape[1] + 1
    back = from_detectron2(theirs, pairs)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_channel_norm_is_the_formula_of_detectron2() -> None:
    torch.manual_seed(0)
    norm = ChannelNorm(8).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64) * 1e-2
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    wanted = (x - mean) / (var + 1e-6).sqrt() * norm.weight.view(8, 1, 1) + norm.bias.view(8, 1, 1)
    torch.testing.assert_close(norm(x), wanted)
    assert norm(x[:0]).shape == (0, 8, 3, 5)


def test_pyramid_is_the_last_tap_resampled() -> None:
    """Each map by hand, from the weights alone."""
    torch.manual_seed(0)
    pyramid = SimplePyramid(16, 8).double()
    taps = [torch.full((2, 16, 4, 6), torch.nan), torch.randn(2, 16, 4, 6, dtype=torch.float64)]
    maps = pyramid(taps)
    assert [tuple(m.shape[2:]) for m in maps.values()] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    weights = dict(pyramid.named_parameters())

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, 3), (x.shape[1],), eps=1e-6).movedim(3, 1)  # as they start: ones and zeros

    def twice(x: Tensor, stage: int, first: int) -> Tensor:
        x = norm(F.conv2d(x, weights[f"simfp_{stage}.{first}.weight"]))
        return norm(F.conv2d(x, weights[f"simfp_{stage}.{first + 1}.weight"], padding=1))

    def up(x: Tensor, name: str) -> Tensor:
        return F.conv_transpose2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2)

    x = taps[-1]
    torch.testing.assert_close(maps["p2"], twice(up(F.gelu(norm(up(x, "simfp_2.0"))), "simfp_2.3"), 2, 4))
    torch.testing.assert_close(maps["p3"], twice(up(x, "simfp_3.0"), 3, 1))
    torch.testing.assert_close(maps["p4"], twice(x, 4, 0))
    torch.testing.assert_close(maps["p5"], twice(F.max_pool2d(x, 2), 5, 1))
    torch.testing.assert_close(maps["p6"], maps["p5"][:, :, ::2, ::2])


def heads(num_classes: int = 3) -> CascadeRoIHeads:
    torch.manual_seed(0)
    sizes = {"head_channels": 8, "box_fc": 16, "box_convs": 1, "mask_convs": 1}
    return CascadeRoIHeads(8, (4, 8, 16, 32), num_classes, norm=ChannelNorm, **sizes)  # type: ignore[arg-type]


def test_stages_refine_boxes_with_their_own_weights() -> None:
    """A delta of (w, h, 0, 0) in units of a stage's weights moves a box by one width and height; empty ones go."""
    cascade = heads().train()
    box = torch.tensor([[10.0, 20.0, 30.0, 50.0], [90.0, 90.0, 99.0, 99.0]])
    for stage, weights in enumerate(BOX_WEIGHTS):
        deltas = torch.tensor([[[weights[0], weights[1], 0.0, 0.0]]]).repeat(2, 1, 1)
        (moved,) = cascade.decode(stage, deltas, [box], [(95, 95)])
        torch.testing.assert_close(moved, torch.tensor([[30.0, 50.0, 50.0, 80.0]]))
        assert len(cascade.eval().decode(stage, deltas, [box], [(95, 95)])[0]) == 2
        cascade.train()


def test_stages_label_all_boxes_by_rising_thresholds() -> None:
    target = {"boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0]]), "classes": torch.tensor([2])}
    boxes = torch.tensor([[0.0, 0.0, 10.0, height] for height in (10.0, 6.5, 7.5, 3.0)])  # IoU 1, .65, .75, .3
    for stage, classes in ((1, [2, 2, 2, 3]), (2, [2, 3, 2, 3])):
        sample = heads().label(stage, boxes, target)
        assert sample.classes.tolist() == classes
        assert (sample.matched >= 0).tolist() == [label == 2 for label in classes]
        assert torch.equal(sample.boxes, boxes)
    none = {"boxes": torch.zeros(0, 4), "classes": torch.zeros(0, dtype=torch.int64)}
    assert heads().label(1, boxes, none).classes.tolist() == [3] * 4


def test_gradients_on_the_features_are_averaged_over_the_stages() -> None:
    cascade = heads().train()
    features = [torch.randn(1, 8, 32 // 2**k, 32 // 2**k, requires_grad=True) for k in range(4)]
    boxes = [torch.tensor([[4.0, 4.0, 60.0, 60.0]])]
    logits, _ = cascade.run_stage(0, features, boxes)
    (found,) = torch.autograd.grad(logits.sum(), features[0])
    whole = cascade.box_predictor[0](cascade.box_head[0](pool(features, cascade.strides, boxes, 7)))[0]
    torch.testing.assert_close(logits, whole)
    (full,) = torch.autograd.grad(whole.sum(), features[0])
    torch.testing.assert_close(found, full / 3)
    assert full.abs().sum() > 0


def test_boxes_without_classes_serve_every_class() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0]], [[20.0, 20.0, 30.0, 30.0]]])
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.01, 0.9, 0.09]])
    found = select_detections(boxes, probabilities, (64, 64), 0.05, 0.5, 10)
    assert found["classes"].tolist() == [1, 0, 1]
    assert found["boxes"][:, 0].tolist() == [20, 0, 0]
    logits, deltas = torch.zeros(3, 4), torch.ones(3, 1, 4)
    losses = box_losses(logits, deltas, torch.tensor([2, 3, 0]), torch.zeros(3, 4), roi_weights([3], "image"))
    assert losses["loss_box_reg"].item() == pytest.approx(8 / 3)


@pytest.mark.parametrize("objects", [[3, 2, 1], [0, 0, 0]])
def test_every_parameter_of_a_cascade_has_a_gradient(objects: list[int]) -> None:
    model = ours("cascade", 1).train()
    losses = model(batch(1, objects))
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_losses_do_not_depend_on_the_split() -> None:
    torch.manual_seed(0)
    options = {"pyramid": "simple", "norm": "LN", "cascade": True}
    model = build_mask_rcnn(StandInEncoder(), 5, small_config(256, **options)).double().train()
    data = batch(3, [4, 0, 2])
    whole = model(data)
    parts = [model({name: value[i : i + 1] for name, value in data.items()}) for i in range(3)]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts) / 3, value, atol=1e-7, rtol=1e-6)


def test_initial_weights_are_detectron2s() -> None:
    """Linear layers uniform within sqrt(3 / fan in), predictors normal with 0.01 and 0.001, biases zero, norms one."""
    torch.manual_seed(0)
    cascade = CascadeRoIHeads(64, (4, 8, 16, 32), 80, norm=ChannelNorm, head_channels=64, box_fc=256)
    for stage in range(3):
        linear = cascade.box_head[stage][5]
        assert linear.weight.abs().max().item() == pytest.approx((3 / linear.in_features) ** 0.5, rel=1e-3)
        predictor = cascade.box_predictor[stage]
        assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
        assert predictor.bbox_pred.weight.shape == (4, 256)
        assert not any(layer.bias.any() for layer in (linear, predictor.cls_score, predictor.bbox_pred))
    assert isinstance(cascade.coders[2], BoxCoder)
    assert not torch.equal(cascade.box_head[0][5].weight, cascade.box_head[1][5].weight)
