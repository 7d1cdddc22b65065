"""The engine detectron2: against detectron2 itself where it is installed, and against numbers made with it anywhere."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import paths
from support.coco_command import TINY
from support.command_line import assert_same_run, launched, run
from support.detector_goldens import NUM_CLASSES, golden_batch, golden_images
from support.detector_standin import StandInEncoder, small_config
from support.detectron2_cases import (
    CURVE_STEPS,
    DETECTION_SEEDS,
    TRAINING_CASES,
    VITDET,
    gradients,
    loss_curve,
    vit_detector,
    vitdet_detector,
)

from mae_transfer import load_backbone
from mae_transfer.cli.transfer import main
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.errors import UserError
from mae_transfer.run_folder.record import read_record
from mae_transfer.tasks.coco.model import build_mask_rcnn

GOLDENS = paths.GOLDENS / "detectron2_vit.npz"
RUN = ["--task", "coco", "--backbone", "random_vit_nano", "--preset", "smoke", "--device", "cpu"]


@pytest.fixture(scope="module")
def goldens() -> Any:
    return np.load(GOLDENS, allow_pickle=False)


@pytest.fixture(scope="module")
def detectron2() -> Any:
    pytest.importorskip("detectron2.modeling", reason="detectron2 is not installed")
    from mae_transfer.tasks.coco.detectron2 import engine as detectron2_engine

    return detectron2_engine


@pytest.mark.parametrize("seed", DETECTION_SEEDS)
def test_detections_are_those_of_the_goldens(seed: int, goldens: Any) -> None:
    with torch.no_grad():
        found = vit_detector(build_mask_rcnn, seed).double().eval()(golden_images(seed))
    for i, detections in enumerate(found):
        wanted = {name: goldens[f"detect/{seed}/{i}/{name}"] for name in ("boxes", "scores", "classes")}
        assert len(detections["boxes"]) == len(wanted["boxes"]) == 100
        assert detections["classes"].tolist() == wanted["classes"].tolist()
        assert np.abs(detections["boxes"].numpy() - wanted["boxes"]).max() < 1e-3
        assert np.abs(detections["scores"].numpy() - wanted["scores"]).max() < 1e-5
        areas = detections["masks"].sum(dim=(1, 2)).numpy()
        assert np.abs(areas - goldens[f"detect/{seed}/{i}/areas"]).max() <= 1
        first = np.packbits(detections["masks"][:3].numpy())
        assert (first != goldens[f"detect/{seed}/{i}/first_masks"]).sum() <= 1


@pytest.mark.parametrize("case", TRAINING_CASES)
def test_losses_and_gradients_are_those_of_the_goldens(case: str, goldens: Any) -> None:
    seed, objects = TRAINING_CASES[case]
    model = vit_detector(build_mask_rcnn, seed).double().train()
    losses = model(golden_batch(seed, objects))
    sum(losses.values()).backward()
    wanted = {name: goldens[f"train/{case}/{name}"].item() for name in losses}
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(wanted, abs=1e-5)
    norms = {name: gradient.norm().item() for name, gradient in gradients(model).items()}
    wanted_norms = dict(zip(sorted(norms), goldens[f"train/{case}/gradient_norms"].tolist(), strict=True))
    assert norms == pytest.approx(wanted_norms, rel=1e-4, abs=1e-6)


def test_twenty_steps_are_those_of_the_goldens(goldens: Any) -> None:
    curve = loss_curve(vit_detector(build_mask_rcnn, 20, fresh=True).double().train())
    for name in curve[0]:
        values = np.array([losses[name] for losses in curve])
        assert np.abs(values - goldens[f"curve/{name}"]).max() < 1e-3, name
    totals = [sum(losses.values()) for losses in curve]
    assert sum(totals[-3:]) < 0.9 * sum(totals[:3]), "twenty steps that change nothing compare nothing"


@pytest.mark.parametrize("seed", DETECTION_SEEDS)
def test_detections_are_detectron2s(seed: int, detectron2: Any) -> None:
    """In fp32, from uint8 images: normalisation and padding are detectron2's own here."""
    ours, theirs = (vit_detector(build, seed).eval() for build in (build_mask_rcnn, detectron2.build_detectron2))
    with torch.no_grad():
        pairs = zip(ours(golden_images(seed)), theirs(golden_images(seed)), strict=True)
    for found, wanted in pairs:
        assert len(found["boxes"]) == len(wanted["boxes"]) == 100
        assert found["classes"].tolist() == wanted["classes"].tolist()
        torch.testing.assert_close(found["boxes"], wanted["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(found["scores"], wanted["scores"], atol=1e-5, rtol=0)
        assert torch.equal(found["masks"], wanted["masks"])


@pytest.mark.parametrize("case", TRAINING_CASES)
def test_losses_and_gradients_are_detectron2s(case: str, detectron2: Any) -> None:
    seed, objects = TRAINING_CASES[case]
    ours, theirs = (vit_detector(build, seed).train() for build in (build_mask_rcnn, detectron2.build_detectron2))
    found, wanted = ours(golden_batch(seed, objects)), theirs(golden_batch(seed, objects))
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in wanted.items()}, abs=1e-5)
    sum(found.values()).backward()
    sum(wanted.values()).backward()
    of_ours, of_theirs = gradients(ours), gradients(theirs)
    assert of_ours.keys() == of_theirs.keys()
    for name, gradient in of_ours.items():
        # the absolute part is for gradients that are zero but for rounding: biases before a norm or a softmax
        assert (gradient - of_theirs[name]).norm() <= 1e-4 * of_theirs[name].norm() + 1e-6, name


@pytest.mark.parametrize("recipe", VITDET)
def test_vitdets_recipes_are_the_same_in_both_engines(recipe: str, detectron2: Any) -> None:
    builds = (build_mask_rcnn, detectron2.build_detectron2)
    ours, theirs = (vitdet_detector(build, recipe, 3).eval() for build in builds)
    with torch.no_grad():
        pairs = list(zip(ours(golden_images(3)), theirs(golden_images(3)), strict=True))
    for found, wanted in pairs:
        assert len(found["boxes"]) == len(wanted["boxes"]) == 100
        assert found["classes"].tolist() == wanted["classes"].tolist()
        torch.testing.assert_close(found["boxes"], wanted["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(found["scores"], wanted["scores"], atol=1e-5, rtol=0)
        # boxes that differ by rounding may put a pixel on the other side of the threshold
        assert (found["masks"] != wanted["masks"]).sum() <= 5
    losses = [model.train()(golden_batch(11, [7, 4, 5])) for model in (ours, theirs)]
    assert len(losses[0]) == (9 if "cascade" in recipe else 5)
    found, wanted = ({name: loss.item() for name, loss in of_one.items()} for of_one in losses)
    assert found == pytest.approx(wanted, abs=1e-5)
    for of_one in losses:
        sum(of_one.values()).backward()
    # all together: rounding through the channel norms is 1e-3 of some tensors'; in float64 `test_vitdet.py` has each
    one, other = gradients(ours), gradients(theirs)
    assert one.keys() == other.keys()
    error = torch.stack([(one[name] - other[name]).norm() for name in one]).norm()
    assert error <= 1e-4 * torch.stack([gradient.norm() for gradient in other.values()]).norm()


@pytest.mark.parametrize("recipe", VITDET)
def test_vitdets_recipes_run_by_the_engine(recipe: str, tmp_path: Path, detectron2: Any) -> None:
    data = make_coco(tmp_path / "coco", train_images=4, val_images=2, size=(48, 64))
    options = ["--data", str(data), "--output", str(tmp_path / "run"), "--engine", "detectron2", f"recipe={recipe}"]
    assert main([*RUN, *options, *TINY]) == 0
    record = read_record(tmp_path / "run" / "record.json")
    assert (record["settings"]["model.implementation"], record["recipe"]) == ("detectron2", recipe)


def test_both_engines_run_the_same_twenty_steps(tmp_path: Path, detectron2: Any) -> None:
    data = make_coco(tmp_path / "coco", train_images=6, val_images=3, size=(48, 64))
    curves, records = {}, {}
    for engine in ("torchvision", "detectron2"):
        output = tmp_path / engine
        options = ["--data", str(data), "--output", str(output), "--engine", engine, f"schedule.steps={CURVE_STEPS}"]
        assert main([*RUN, *options, *TINY]) == 0
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        curves[engine] = [{k: v for k, v in line.items() if k.startswith("loss")} for line in lines]
        records[engine] = read_record(output / "record.json")
    assert len(curves["torchvision"]) == CURVE_STEPS
    for ours, theirs in zip(curves["torchvision"], curves["detectron2"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
    one, other = records["torchvision"], records["detectron2"]
    assert (one["settings"]["model.implementation"], other["settings"]["model.implementation"]) == (
        "torchvision",
        "detectron2",
    )
    assert other["versions"]["detectron2"] == sys.modules["detectron2"].__version__
    assert one["settings_id"] != other["settings_id"]
    assert one["parameters"] == other["parameters"]
    assert one["metrics"] == pytest.approx(other["metrics"], abs=0.1, nan_ok=True)

    weights = [torch.load(next((tmp_path / e / "checkpoints").glob("*.pt")), weights_only=True) for e in curves]
    assert weights[0]["model"].keys() == weights[1]["model"].keys()
    encoder = load_backbone(
        "vit_nano", checkpoint=tmp_path / "detectron2", img_size=64, window_size=2, num_global_blocks=4, rel_pos=True
    )
    assert torch.equal(encoder.rel_pos_window, weights[1]["model"]["encoder.rel_pos_window"])


def test_two_ranks_stop_and_resume(tmp_path: Path, detectron2: Any) -> None:
    """Two gloo processes train on the batches of one, and go on to the same end after a stop."""
    data = make_coco(tmp_path / "coco", train_images=6, val_images=3, size=(48, 64))
    options = [*RUN, "--data", str(data), "--engine", "detectron2", *TINY, "train.checkpoint_every=2"]
    whole = run(launched([*options, "--output", str(tmp_path / "whole")], ranks=2))
    assert whole.returncode == 0, whole.stderr
    assert run(launched([*options, "--output", str(tmp_path / "part")], ranks=2)).returncode == 0
    (tmp_path / "part" / "checkpoints" / "step_00000004.pt").unlink()
    resumed = run(launched([*options, "--output", str(tmp_path / "part"), "--resume"], ranks=2))
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "part")


def test_a_prediction_that_is_not_finite_is_a_loss_that_is_not(detectron2: Any) -> None:
    model = vit_detector(detectron2.build_detectron2, 11).train()
    with torch.no_grad():
        model.rcnn.proposal_generator.rpn_head.objectness_logits.bias[0] = torch.nan
    losses = model(golden_batch(11, [7, 4, 5]))
    assert losses["loss_rpn_cls"].isnan()
    with torch.no_grad():
        assert len(model.eval()(golden_images(11))) == 3


def test_what_the_engine_cannot_do_is_refused(detectron2: Any) -> None:
    config = small_config()
    of_two = config.model_copy(update={"train": config.train.model_copy(update={"micro_batch": 2})})
    with pytest.raises(UserError, match=r"model\.loss_average=batch .*or train\.micro_batch=1"):
        detectron2.build_detectron2(StandInEncoder(), NUM_CLASSES, of_two)
    with pytest.raises(UserError, match="need a patch of 16, not 8"):
        detectron2.build_detectron2(StandInEncoder(patch_size=8), NUM_CLASSES, small_config())
    model = detectron2.build_detectron2(StandInEncoder(), NUM_CLASSES, small_config(image_size=64)).eval()
    with pytest.raises(UserError, match="image a is 256x256 .* larger than its square of 64"):
        model(golden_images(0))
    batch = golden_batch(11, [7, 4, 5])
    batch["targets"][1]["classes"][0] = NUM_CLASSES
    with pytest.raises(UserError, match="image b has a class outside 0..4"):
        detectron2.build_detectron2(StandInEncoder(), NUM_CLASSES, small_config()).train()(batch)


def test_without_detectron2_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("detectron2.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)  # importing it now fails as if it were not there
    output = tmp_path / "run"
    assert main([*RUN, "--engine", "detectron2", "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "install it by its own guide, https://detectron2.readthedocs.io" in error
    assert not output.exists()


def test_the_engine_is_a_detectors(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", "ade20k", "--backbone", "random_vit_nano", "--preset", "smoke", "--engine", "detectron2"]
    assert main(arguments) == 2
    assert "for --task coco; leave it out for ade20k" in capsys.readouterr().err
