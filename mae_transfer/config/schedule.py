"""Learning-rate factor by iteration: linear warm-up composed with cosine, step or poly decay.

Arithmetic of detectron2's `WarmupParamScheduler` (detectron2/solver/lr_scheduler.py) over fvcore's
`CompositeParamScheduler` (fvcore/common/param_scheduler.py) with `interval_scaling = ["rescaled", "fixed"]`:
with T steps in all, W of warm-up, and a decay d(x) over the share x in [0, 1) of the WHOLE length,

    step <  W : linear from warmup_factor * d(0) at step 0 to d(W / T) at step W
    step >= W : d(step / T)                       (the decay is not restarted after the warm-up)

or, with `after_warmup: restart`, as in MAE's `util/lr_sched.py`, where x is the share of what the warm-up leaves:

    step <  W : linear from warmup_factor * d(0) at step 0 to d(0) at step W
    step >= W : d((step - W) / (T - W))

or, with `after_warmup: multiply`, as by mmcv 0.x's `LrUpdaterHook` with a linear warm-up,

    step <  W : (1 - (1 - step / W) * (1 - warmup_factor)) * d(step / T)
    step >= W : d(step / T)

    cosine    : m + (1 - m) * (1 + cos(pi x)) / 2         m = min_lr_ratio
    poly      : m + (1 - m) * (1 - x) ** power
    step      : gamma ** (number of milestones reached), a milestone being step round(share * T)

`one_cycle` is DINOv3's `WarmupOneCycleLR` (dinov3/eval/segmentation/schedulers.py) as its training loop steps it, once
less than there are updates; pct_start 0 and final_div_factor inf. With s = max(step - 1, 0),

    s <  W    : (1 - (1 - s / W) * (1 - warmup_factor)) * (1 - s / T)
    s >= W    : (1 + cos(pi (s + 1) / T)) / 2

`step` counts from 0; factor(0) is used for the first update. W may be a fraction, as in detectron2's configurations
(0.25 epochs of 118,000 images at 64 = 460.9 steps). Two differences to fvcore: its tolerance of 1e-6 of the whole
length at each boundary is not copied (it shifts them in runs of more than a million steps), and cosine and poly take
min_lr_ratio.

Epochs become steps as detectron2 and MIMDet count: T = int(epochs * images / global_batch). Their recipes write 118,000
images for COCO (100 epochs at 64 = 184,375 steps); here it is the true number of training images.
"""

import math
from dataclasses import dataclass

from mae_transfer.config.sections import ScheduleConfig
from mae_transfer.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """A schedule whose lengths are known: `total` steps, `warmup` (maybe fractional) steps of them."""

    total: int
    warmup: float
    config: ScheduleConfig

    def factor(self, step: int) -> float:
        """What the peak lr is multiplied by at a step, 0 <= step < total."""
        return lr_factor(step, self.total, self.warmup, self.config)


def make_schedule(config: ScheduleConfig, num_images: int, global_batch: int) -> Schedule:
    """Turn epochs into steps and check the lengths; UserError for a schedule that cannot be."""
    if (config.epochs is None) == (config.steps is None):
        raise UserError("schedule: give one of schedule.epochs and schedule.steps, not both and not neither")
    per_epoch = num_images / global_batch
    if config.steps is not None:
        total = config.steps
    else:
        assert config.epochs is not None
        total = int(config.epochs * num_images / global_batch)
        if total == 0:
            raise UserError(
                f"schedule.epochs={config.epochs:g} of {num_images} images at train.global_batch={global_batch} is "
                f"{config.epochs * per_epoch:.2f} steps; give more epochs or a smaller global batch"
            )
    warmup = float(config.warmup_steps) if config.warmup_steps is not None else config.warmup_epochs * per_epoch
    if warmup >= total:
        raise UserError(
            f"schedule: the warm-up of {warmup:g} steps does not fit in {total} steps; set schedule.warmup_steps"
        )
    shares = config.milestones
    if config.kind == "step" and (
        not shares or any(not 0 < share < 1 for share in shares) or list(shares) != sorted(set(shares))
    ):
        raise UserError(
            f"schedule.milestones={list(shares)}: kind 'step' needs increasing shares of the length, between 0 and 1"
        )
    return Schedule(total, warmup, config)


def lr_factor(step: int, total: int, warmup: float, config: ScheduleConfig) -> float:
    """What the peak lr is multiplied by at a step; see the formula at the top of this file."""
    if config.kind == "one_cycle":
        done = max(step - 1, 0)
        if done < warmup:
            return _warmup(done, warmup, config) * (1 - done / total)
        return (1 + math.cos(math.pi * (done + 1) / total)) / 2
    begin = warmup if config.after_warmup == "restart" else 0.0  # where the decay begins
    if step >= warmup:
        return _decay(step - begin, total - begin, config)
    if config.after_warmup == "multiply":
        return _warmup(step, warmup, config) * _decay(step, total, config)
    start, end = config.warmup_factor * _decay(0, total, config), _decay(warmup - begin, total - begin, config)
    return start + (end - start) * step / warmup


def _warmup(step: float, warmup: float, config: ScheduleConfig) -> float:
    return 1 - (1 - step / warmup) * (1 - config.warmup_factor)


def _decay(step: float, total: float, config: ScheduleConfig) -> float:
    share = step / total
    if config.kind == "step":
        return config.gamma ** sum(step >= round(milestone * total) for milestone in config.milestones)
    shape = (1 + math.cos(math.pi * share)) / 2 if config.kind == "cosine" else (1 - share) ** config.power
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * shape
