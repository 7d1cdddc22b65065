"""Accuracy by counting, against scikit-learn; many heads at once; masked classes; robustness sets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torch import Tensor, nn

from mae_transfer.data.synthetic.classification import draw
from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.evaluate import count, count_flags, flag_batch, metrics_of
from mae_transfer.tasks.classification.robustness import (
    ALEXNET_ERRORS,
    SEVERITIES,
    corruption_errors,
    evaluate_sets,
    find_sets,
)


class Scores:
    """A data set whose samples are scores (heads, K) and a label."""

    def __init__(self, scores: Tensor, labels: Tensor) -> None:
        self.scores, self.labels = scores, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"scores": self.scores[:, index], "label": self.labels[index]}

    def report_skipped(self, batch: dict[str, Any]) -> None:
        """Every sample can be read."""

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {
            "scores": torch.stack([sample["scores"] for sample in samples], dim=1),
            "labels": torch.stack([sample["label"] for sample in samples]),
        }


class Echo(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        assert not self.training
        return batch["scores"]


def counted(scores: Tensor, labels: Tensor, **options: Any) -> Any:
    fabric = Fabric(accelerator="cpu", devices=1)
    return count(
        Echo(), Scores(scores, labels), scores.shape[-1], fabric, batch_size=7, workers=0, progress=False, **options
    )


def random_scores(heads: int, images: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes - 1, (images,), generator=generator)  # the last class has no image
    scores = torch.randn(heads, images, classes, generator=generator)
    scores[:, range(images), labels] += 1.0
    return scores, labels


def test_accuracies_are_those_of_scikit_learn() -> None:
    scores, labels = random_scores(3, 101, 20)
    counts = counted(scores, labels)
    for head in range(3):
        metrics = metrics_of(counts, head)
        values, truth, names = scores[head].numpy(), labels.numpy(), np.arange(20)
        assert metrics["top1"] == pytest.approx(100 * top_k_accuracy_score(truth, values, k=1, labels=names))
        assert metrics["top5"] == pytest.approx(100 * top_k_accuracy_score(truth, values, k=5, labels=names))
        assert metrics["mean_per_class"] == pytest.approx(100 * balanced_accuracy_score(truth, values.argmax(1)))
    assert counts.images.dtype == torch.int64
    assert int(counts.images.sum()) == 101
    per_class = metrics_of(counts, 0, [f"c{i}" for i in range(20)])
    assert per_class["class_top1/c0"] == pytest.approx(
        100 * float((scores[0].argmax(1)[labels == 0] == 0).float().mean())
    )
    assert np.isnan(per_class["class_top1/c19"])


def test_counts_by_hand() -> None:
    scores = torch.tensor([[[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]])
    labels = torch.tensor([0, 0, 1])
    rows = count_flags(flag_batch(scores, labels), labels, 3)
    assert rows.tolist() == [[2, 1, 0], [1, 1, 0], [2, 1, 0]]


def test_scores_that_are_not_finite_are_never_correct() -> None:
    scores = torch.full((1, 2, 8), torch.nan)
    labels = torch.tensor([0, 1])
    rows = count_flags(flag_batch(scores, labels), labels, 8)
    assert rows[0].sum() == 2
    assert not rows[1:].any()


def test_masking_chooses_among_the_given_classes() -> None:
    scores, labels = random_scores(1, 60, 12)
    classes = torch.tensor([1, 4, 5])
    keep = (labels[:, None] == classes).any(1)
    counts = counted(scores[:, keep], labels[keep], classes=classes)
    best = classes[scores[0, keep][:, classes].argmax(1)]
    assert counts.top1()[0] == pytest.approx(100 * float((best == labels[keep]).float().mean()))
    assert counts.top1()[0] > counted(scores[:, keep], labels[keep]).top1()[0]
    assert counts.top5()[0] == 100.0, "three classes are all in the top five, and no masked one is"


def test_nothing_to_count_is_one_line() -> None:
    class Empty(Scores):
        @staticmethod
        def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
            return {"labels": torch.empty(0, dtype=torch.int64)}

    scores, labels = random_scores(1, 3, 4)
    with pytest.raises(UserError, match="no image of the evaluation could be decoded"):
        count(
            Echo(),
            Empty(scores, labels),
            4,
            Fabric(accelerator="cpu", devices=1),
            batch_size=2,
            workers=0,
            progress=False,
        )


def test_mean_corruption_error_is_relative_to_alexnet() -> None:
    """AlexNet itself has 100; half its errors are 50; by hand for one corruption."""
    alexnet = {f"{n}/{s}": 100 * (1 - error) for n, error in ALEXNET_ERRORS.items() for s in SEVERITIES}
    assert list(corruption_errors(alexnet).values()) == pytest.approx([100.0] * 15)
    half = {name: 100 - (100 - value) / 2 for name, value in alexnet.items()}
    assert np.mean(list(corruption_errors(half).values())) == pytest.approx(50.0)
    changed = alexnet | {"fog/1": 90.0, "fog/2": 80.0, "fog/3": 70.0, "fog/4": 60.0, "fog/5": 50.0}
    assert corruption_errors(changed)["fog"] == pytest.approx(100 * 0.30 / 0.819324)


NAMES = [f"n{i:08d}" for i in range(6)]


class ByColour(nn.Module):
    """Scores by the distance to a class's mean colour on the images themselves; class 5 always a little ahead."""

    def __init__(self, colours: Tensor) -> None:
        super().__init__()
        self.colours = colours

    def forward(self, batch: dict[str, Any]) -> Tensor:
        means = batch["images"].float().mean((2, 3))
        scores = -torch.cdist(means, self.colours)
        scores[:, 5] = 1.0
        return scores[None]


def config(*overrides: str) -> ClassificationConfig:
    loaded = load_config("imagenet", "random_vit_nano", overrides=["data.image_size=32", *overrides])
    assert isinstance(loaded, ClassificationConfig)
    return loaded


def colours() -> Tensor:
    images = [draw(label, 64, 64, np.random.default_rng(0)) for label in range(6)]
    return torch.stack([torch.from_numpy(np.asarray(image).mean((0, 1))) for image in images]).float()


def write_classes(folder: Path, labels: tuple[int, ...]) -> Path:
    for label in labels:
        place = folder / NAMES[label]
        place.mkdir(parents=True)
        for number in range(2):
            draw(label, 40, 50, np.random.default_rng(number)).save(place / f"{number}.JPEG")
    return folder


def test_robustness_sets_are_matched_by_name_and_masked(tmp_path: Path) -> None:
    a, sketch = write_classes(tmp_path / "a", (1, 3)), write_classes(tmp_path / "s", (0, 1, 2, 3))
    for corruption in ALEXNET_ERRORS:
        group = "noise" if corruption.endswith("noise") else ""  # one archive in a folder of its own
        for severity in SEVERITIES:
            write_classes(tmp_path / "c" / group / corruption / str(severity), (2, 4))
    keys = [f"data.imagenet_a={a}", f"data.imagenet_sketch={sketch}", f"data.imagenet_c={tmp_path / 'c'}"]
    fabric, model = Fabric(accelerator="cpu", devices=1), ByColour(colours())
    options: dict[str, Any] = {"num_classes": 6, "batch_size": 8, "workers": 0, "progress": False}
    metrics = evaluate_sets(model, 0, find_sets(config(*keys), NAMES), fabric, **options)
    assert metrics["imagenet_a_top1"] == 100.0, "class 5 is masked out"
    assert metrics["imagenet_sketch_top1"] == 0.0, "not here"
    assert metrics["imagenet_c_mCE"] == pytest.approx(float(np.mean([100 / e for e in ALEXNET_ERRORS.values()])))
    assert "imagenet_r_top1" not in metrics
    unmasked = find_sets(config(keys[0], "eval.mask_classes=false"), NAMES)
    assert evaluate_sets(model, 0, unmasked, fabric, **options)["imagenet_a_top1"] == 0.0


def test_bad_robustness_sets_are_one_line(tmp_path: Path) -> None:
    write_classes(tmp_path / "a", (1,))
    (tmp_path / "a" / NAMES[1]).rename(tmp_path / "a" / "n77777777")
    (tmp_path / "c" / "fog" / "1").mkdir(parents=True)
    for key, expected in (
        (f"data.imagenet_a={tmp_path / 'a'}", "class folder n77777777 is no class of the training set"),
        (f"data.imagenet_r={tmp_path / 'none'}", "imagenet_r: folder .*none is not there"),
        (f"data.imagenet_c={tmp_path / 'c'}", "has no folder gaussian_noise"),
    ):
        with pytest.raises(UserError, match=expected):
            find_sets(config(key), NAMES)
    with pytest.raises(UserError, match="data.imagenet_a is evaluated with --task imagenet only"):
        load_config("folder", "random_vit_nano", overrides=["data.imagenet_a=x"])
