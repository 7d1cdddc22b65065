"""Windows, scales and counts of the ADE20K evaluation against mmsegmentation and against the definition."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from support.ade20k_reference import CLASSES, make_model, same_weights, step_and_evaluate
from support.command_line import run, start
from support.paths import ROOT
from torch.nn import functional as F

from mae_transfer.data.synthetic.ade20k import make_ade20k
from mae_transfer.engine.distributed import make_fabric
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.ade20k import inference
from mae_transfer.tasks.ade20k.config import EvalConfig
from mae_transfer.tasks.ade20k.data import Ade20kEval
from mae_transfer.tasks.ade20k.evaluate import blind_miou, count, evaluate, score
from mae_transfer.tasks.ade20k.inference import Predictor, classes_at
from mae_transfer.tasks.ade20k.pairs import find_pairs
from mae_transfer.tasks.ade20k.transforms import IGNORE


def random_views(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(3, *size, generator=generator)] for size in sizes]


def test_slide_equals_mmsegmentation_and_batching_changes_nothing():
    from mmseg.structures import SegDataSample

    ours, theirs = same_weights(64)
    ours.eval()
    theirs.eval()
    sizes, originals = [(64, 150), (90, 77), (64, 64)], [(59, 141), (180, 150), (64, 64)]
    views = random_views(*sizes)
    config = EvalConfig(stride=42, batch_size=4)
    with torch.no_grad():
        actual = Predictor(CLASSES, 64, 16, config)(ours.logits, views, originals)
        alone = Predictor(CLASSES, 64, 16, EvalConfig(stride=42, batch_size=1))(ours.logits, views, originals)
        for prediction, one, view, original in zip(actual, alone, views, originals, strict=True):
            meta = {"ori_shape": original, "img_shape": view[0].shape[1:], "padding_size": [0, 0, 0, 0]}
            expected = theirs.predict(view[0][None], [SegDataSample(metainfo=meta)])[0].pred_sem_seg.data[0]
            assert prediction.shape == original
            assert len(expected.unique()) > 2
            # as good as equal: another order of additions may turn a tie
            assert (prediction != expected).float().mean() < 1e-3
            assert (prediction != one).float().mean() < 1e-3


def test_any_size_and_aspect_in_either_mode():
    model = make_model().eval()
    sizes = [(30, 400), (17, 19), (400, 33), (1, 700)]
    for mode in ("slide", "whole"):
        predictor = Predictor(CLASSES, 64, 16, EvalConfig(stride=42, mode=mode))
        with torch.no_grad():
            labels = predictor(model.logits, random_views(*sizes), sizes)
        assert [tuple(label.shape) for label in labels] == sizes
        assert all(label.dtype == torch.int16 and label.min() >= 0 and label.max() < CLASSES for label in labels)


def test_whole_mode_is_one_pass_over_the_padded_image():
    model = make_model().eval()
    view = random_views((60, 100))[0]
    with torch.no_grad():
        (label,) = Predictor(CLASSES, 64, 16, EvalConfig(stride=42, mode="whole"))(model.logits, [view], [(60, 100)])
        logits = model.logits(F.pad(view[0], (0, 12, 0, 4))[None])[0, :, :60, :100]
    torch.testing.assert_close(label.long(), logits.argmax(0), rtol=0, atol=0)


def position_network(images):
    """Logits that depend on a pixel and its place in the window, so that every placement shows."""
    x = torch.linspace(-1, 1, images.shape[3]).expand(images.shape[2], -1)
    return torch.stack([images[:, 0] + x, images[:, 1] - x, images[:, 2] * x, images.sum(1) / 2], 1)


def test_multi_scale_and_flip_average_probabilities():
    sizes, original = [(40, 60), (80, 120)], (50, 70)
    views = [view[0] for view in random_views(*sizes)]
    config = EvalConfig(stride=20, ratios=(0.5, 1.0), flip=True, batch_size=3)
    (actual,) = Predictor(4, 40, 8, config)(position_network, [views], [original])

    total = 0
    for view in views:
        for flip in (False, True):
            image = view.flip(-1) if flip else view
            logits, seen = torch.zeros(4, *image.shape[1:]), torch.zeros(image.shape[1:])
            for top in range(0, image.shape[1] - 39, 20):
                for left in range(0, image.shape[2] - 39, 20):
                    window = (slice(None), slice(top, top + 40), slice(left, left + 40))
                    logits[window] += position_network(image[window][None])[0]
                    seen[window[1:]] += 1
            logits = (logits / seen).flip(-1) if flip else logits / seen
            total = total + F.interpolate(logits[None], original, mode="bilinear").softmax(1)[0]
    assert (actual != total.argmax(0)).float().mean() < 1e-3
    assert len(actual.unique()) == 4


@pytest.mark.parametrize("size", [(30, 45), (97, 53), (7, 9)])
def test_classes_at_original_size_are_those_of_the_full_tensor(monkeypatch, size):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(23, 30, 45, generator=generator)
    if size == (30, 45):
        scores = scores.round()  # many ties
    expected = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0].argmax(0)
    for elements in (1, 5 * size[0] * size[1], 2**30):
        monkeypatch.setattr(inference, "CHUNK_ELEMENTS", elements)
        torch.testing.assert_close(classes_at(scores, size).long(), expected, rtol=0, atol=0)


def test_memory_of_a_large_image_is_bounded():
    code = """
        import resource, torch
        from mae_transfer.tasks.ade20k.config import EvalConfig
        from mae_transfer.tasks.ade20k.inference import Predictor
        def network(images):
            return images[:, :1].expand(-1, 150, -1, -1) * torch.arange(150.0).view(-1, 1, 1)
        view, size = torch.randn(3, 128, 160), (2000, 2500)
        predictor = Predictor(150, 128, 16, EvalConfig(stride=85))
        predictor(network, [[view]], [(128, 160)])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (label,) = predictor(network, [[view]], [size])
        assert label.shape == size
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    extra = int(done.stdout) * 1024
    assert extra < 600e6  # a float32 for each class and pixel would be 3.0 GB


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_memory_of_a_large_image_at_the_recipes_size(mode, tmp_path):
    """A 2000 x 2500 file through loader, encoder, mmsegmentation's heads and counting; prints megabytes."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (2000, 2500, 3), dtype=np.uint8)).save(tmp_path / "0.jpg")
    Image.fromarray(rng.integers(0, 151, (2000, 2500), dtype=np.uint8)).save(tmp_path / "0.png")
    code = f"""
        import resource
        from support.ade20k_reference import make_model
        from mae_transfer.runs.resolve import load_config
        from mae_transfer.engine.distributed import make_fabric
        from mae_transfer.tasks.ade20k.data import Ade20kEval
        from mae_transfer.tasks.ade20k.evaluate import blind_miou, evaluate
        from mae_transfer.tasks.ade20k.pairs import find_pairs
        folder = {str(tmp_path)!r}
        paths = [f"data.{{s}}_{{k}}={{folder}}" for s in ("train", "val") for k in ("images", "masks")]
        overrides = ["eval.mode={mode}", "data.workers=0", *paths]
        model = make_model("random_vit_nano", 512, overrides, classes=150)
        config = load_config("ade20k", "random_vit_nano", overrides=overrides)
        data = Ade20kEval(find_pairs(config.data, "val"), config)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        evaluate(model, data, list(map(str, range(150))), config, make_fabric("cpu", "fp32"), False)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    print(mode, done.stdout)
    assert int(done.stdout) < 1500  # one float32 for each class and pixel would be 3.0 GB


def test_counts_by_hand():
    label = torch.tensor([[0, 0, 1], [1, 2, IGNORE]], dtype=torch.int16)
    prediction = torch.tensor([[0, 1, 1], [1, 0, 3]], dtype=torch.int16)
    matrix = count(label, prediction, 5)
    expected = torch.zeros(5, 5, dtype=torch.int64)
    expected[0, 0], expected[0, 1], expected[1, 1], expected[2, 0] = 1, 1, 2, 1
    assert torch.equal(matrix, expected)
    metrics = score(matrix, list("abcde"), per_class=True)
    # class 0: 1 / (2 + 2 - 1), class 1: 2 / (2 + 3 - 2), class 2: 0 / 1, class 3: only on an ignored pixel, 4: nowhere
    assert metrics["IoU/a"] == pytest.approx(100 / 3)
    assert metrics["IoU/b"] == pytest.approx(200 / 3)
    assert metrics["IoU/c"] == 0
    assert np.isnan([metrics["IoU/d"], metrics["IoU/e"]]).all()
    assert metrics["mIoU"] == pytest.approx(100 / 3)
    assert metrics["mAcc"] == pytest.approx(100 * (1 / 2 + 1 + 0) / 3)
    assert metrics["aAcc"] == pytest.approx(100 * 3 / 5)


def test_metrics_equal_mmsegmentation_on_random_and_on_drawn_masks(tmp_path):
    from mmseg.evaluation import IoUMetric

    config = load_config("ade20k", "random_vit_nano", overrides=[f"data.root={make_ade20k(tmp_path / 'ade')}"])
    dataset = Ade20kEval(find_pairs(config.data, "val"), config)
    labels = [dataset[i]["label"] for i in range(len(dataset))]
    generator = torch.Generator().manual_seed(0)
    labels += [torch.randint(IGNORE, 90, (60, 70), generator=generator, dtype=torch.int16) for _ in range(3)]
    matrix, areas = torch.zeros(150, 150, dtype=torch.int64), []
    for label in labels:
        noise = torch.randint(0, 100, label.shape, generator=generator, dtype=torch.int16)
        keep = torch.rand(label.shape, generator=generator) < 0.7
        prediction = torch.where(keep & (label != IGNORE), label, noise)
        matrix += count(label, prediction, 150)
        theirs = torch.where(label == IGNORE, 255, label.long())
        areas.append(IoUMetric.intersect_and_union(prediction.long(), theirs, 150, 255))
    totals = [sum(area[k].double() for area in areas) for k in range(4)]
    expected = IoUMetric.total_area_to_metrics(*totals)
    metrics = score(matrix, [str(i) for i in range(150)], per_class=True)
    assert metrics["aAcc"] / 100 == pytest.approx(expected["aAcc"].item(), abs=1e-6)
    assert metrics["mAcc"] / 100 == pytest.approx(np.nanmean(expected["Acc"]), abs=1e-6)
    assert metrics["mIoU"] / 100 == pytest.approx(np.nanmean(expected["IoU"]), abs=1e-6)
    assert 0 < metrics["mIoU"] < 100
    ours = [metrics[f"IoU/{i}"] / 100 for i in range(150)]
    np.testing.assert_allclose(ours, expected["IoU"], atol=1e-6)
    assert np.isnan(ours).any()
    np.testing.assert_allclose([metrics[f"Acc/{i}"] / 100 for i in range(150)], expected["Acc"], atol=1e-6)


def test_two_and_four_processes_give_what_one_gives(tmp_path):
    """Losses and gradients of a batch cut 1x4, 2x2 and 4x1 over ranks, with dropout and drop path, and the metrics of
    five images.

    Under torchrun mmengine is imported after the process group is made, as in a run of the command line.
    """
    data = make_ade20k(tmp_path / "ade", val_images=5)
    one = step_and_evaluate(data)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    script = ROOT / "tests" / "support" / "ade20k_reference.py"
    for done in (run([*command, "2", str(script), str(data)]), start([str(data)], 4, script).wait()):
        assert done.returncode == 0, done.stderr
        cut = json.loads(done.stdout)
        assert cut["metrics"] == one["metrics"]
        assert cut["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert cut["squares"] == pytest.approx(one["squares"], rel=1e-3, abs=1e-12)
        assert cut["threads"] == [], "gloo's threads outlive the process group, and may abort the process as it ends"


def test_evaluate_reads_decodes_predicts_and_counts(tmp_path):
    """A model that knows the answer has 100, through files, loader, resizing and counting."""
    config = load_config(
        "ade20k",
        "random_vit_nano",
        overrides=[
            f"data.root={make_ade20k(tmp_path / 'ade')}",
            "data.workers=1",
            "eval.batch_size=3",
            "eval.per_class=true",
        ],
    )
    dataset = Ade20kEval(find_pairs(config.data, "val"), config)
    answers = {tuple(dataset[i]["size"]): dataset[i]["label"] for i in range(len(dataset))}
    assert len(answers) == len(dataset)

    class Oracle(torch.nn.Module):
        def forward(self, batch):
            assert not self.training
            return [answers[tuple(size)].clamp(min=0) for size in batch["sizes"]]

    model = Oracle().train()
    metrics = evaluate(model, dataset, [str(i) for i in range(150)], config, make_fabric("cpu", "fp32"), False)
    assert (metrics["mIoU"], metrics["mAcc"], metrics["aAcc"]) == (100, 100, 100)
    assert sum(value == 100 for key, value in metrics.items() if key.startswith("IoU/")) >= 3
    assert model.training


def test_blind_is_the_commonest_class_everywhere() -> None:
    """Pixels 60, 30, 10 of three classes that occur, in any prediction: IoU 0.6, 0, 0."""
    matrix = torch.tensor([[10, 50, 0, 0], [0, 30, 0, 0], [4, 3, 3, 0], [0, 0, 0, 0]])
    assert blind_miou(matrix, list("abcd")) == pytest.approx(100 * 0.6 / 3)
    assert blind_miou(torch.zeros(4, 4, dtype=torch.int64), list("abcd")) is None
