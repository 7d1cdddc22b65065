"""The learning rate at every step, against fvcore's own values and an independent closed form."""

import math
from typing import Any

import pytest

from mae_transfer.config.schedule import lr_factor, make_schedule
from mae_transfer.config.sections import ScheduleConfig
from mae_transfer.errors import UserError

# Values of fvcore 0.1.5.post20221221 (CompositeParamScheduler over CosineParamScheduler, MultiStepParamScheduler and
# PolynomialDecayParamScheduler), composed as in detectron2's WarmupParamScheduler.
MIMDET_COSINE = {  # 100 epochs of 118,000 images at 64, warm-up of 0.25 epochs
    0: 0.001,
    1: 0.0031672885777841784,
    230: 0.4994763728903611,
    460: 0.9979527457807222,
    461: 0.9999845746401186,
    10000: 0.992759231131368,
    92187: 0.5000042597866489,
    184374: 7.258310619207009e-11,
}
VITDET_STEP = {  # detectron2 projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py
    0: 0.001,
    100: 0.40059999999999996,
    249: 0.9960039999999999,
    250: 1.0,
    163888: 1.0,
    163889: 0.1,
    177545: 0.1,
    177546: 0.01,
    184374: 0.01,
}
POLY = {  # 160,000 steps, power 0.9, warm-up of 1500 steps from 1e-6
    0: 1e-06,
    1: 0.000662038354172658,
    750: 0.4957797656294934,
    1499: 0.9908974929048142,
    1500: 0.9915585312589867,
    80000: 0.5358867312681466,
    159999: 2.0715337608331462e-05,
}


@pytest.mark.parametrize(
    ("config", "images", "batch", "total", "golden"),
    [
        (ScheduleConfig(kind="cosine", epochs=100, warmup_epochs=0.25), 118000, 64, 184375, MIMDET_COSINE),
        (
            ScheduleConfig(kind="step", epochs=100, warmup_steps=250, milestones=(8 / 9, 26 / 27)),
            118000,
            64,
            184375,
            VITDET_STEP,
        ),
        (
            ScheduleConfig(kind="poly", steps=160000, warmup_steps=1500, warmup_factor=1e-6, power=0.9),
            20210,
            16,
            160000,
            POLY,
        ),
    ],
    ids=["mimdet", "vitdet", "poly"],
)
def test_equals_fvcore(config: ScheduleConfig, images: int, batch: int, total: int, golden: dict[int, float]) -> None:
    schedule = make_schedule(config, images, batch)
    assert schedule.total == total
    for step, value in golden.items():
        assert schedule.factor(step) == pytest.approx(value, rel=1e-9, abs=1e-14), step


@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1])
@pytest.mark.parametrize("warmup", [0, 7, 7.5])
@pytest.mark.parametrize("kind", ["cosine", "step", "poly"])
def test_closed_form_at_every_step(kind: Any, warmup: float, min_lr_ratio: float) -> None:
    total, low = 60, min_lr_ratio
    config = ScheduleConfig(
        kind=kind, steps=total, warmup_factor=0.01, milestones=(0.5, 0.75), gamma=0.2, power=2.0, min_lr_ratio=low
    )

    def main(step: float) -> float:
        if kind == "step":
            return 1.0 if step < 30 else 0.2 if step < 45 else 0.04
        if kind == "cosine":
            return low + (1 - low) * math.cos(math.pi * step / total / 2) ** 2
        return low + (1 - low) * (1 - 2 * step / total + (step / total) ** 2)

    for step in range(total):
        weight = min(step / warmup, 1.0) if warmup else 1.0
        expected = main(step) if step >= warmup else 0.01 * (1 - weight) + weight * main(warmup)
        assert lr_factor(step, total, warmup, config) == pytest.approx(expected, rel=1e-12), step


def test_epochs_become_steps() -> None:
    """25, 50 and 100 epochs of 118,000 images at 64 as detectron2 and MIMDet count them."""
    for epochs, steps in ((25, 46093), (50, 92187), (100, 184375)):
        assert make_schedule(ScheduleConfig(kind="cosine", epochs=epochs), 118000, 64).total == steps


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ScheduleConfig(kind="cosine"), "one of schedule.epochs and schedule.steps"),
        (ScheduleConfig(kind="cosine", epochs=1, steps=5), "one of schedule.epochs and schedule.steps"),
        (ScheduleConfig(kind="cosine", epochs=0.5), "0.5 of 10 images at train.global_batch=8 is 0.62 steps"),
        (ScheduleConfig(kind="cosine", steps=5, warmup_steps=5), "warm-up of 5 steps does not fit in 5 steps"),
        (ScheduleConfig(kind="step", steps=5), "schedule.milestones="),
        (ScheduleConfig(kind="step", steps=5, milestones=(0.9, 0.8)), "schedule.milestones=[0.9, 0.8]"),
    ],
)
def test_impossible_schedules(config: ScheduleConfig, message: str) -> None:
    with pytest.raises(UserError) as error:
        make_schedule(config, 10, 8)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
