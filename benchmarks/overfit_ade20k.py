#!/usr/bin/env python
"""Does it learn? A small ViT from random weights, trained on 8 real images until it segments those same 8.

    python benchmarks/overfit_ade20k.py --data /data/ADEChallengeData2016      # 7 minutes on one CPU core

Takes the first training images in order of name, as a data set of its own whose training and validation split are the
same, runs the real command on it without augmentation, and fails (exit code 1) below mIoU 70 over the classes that the
images have. Measured: see docs/ade20k.md.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

MIOU = 70.0


def link_images(data: Path, folder: Path, count: int) -> list[str]:
    """Links the first `count` training pairs into `folder`; returns the overrides that train and evaluate on them."""
    overrides = []
    for kind, place in (("images", "images/training"), ("masks", "annotations/training")):
        (folder / kind).mkdir()
        for path in sorted((data / place).iterdir())[:count]:
            (folder / kind / path.name).symlink_to(path.resolve())
        overrides += [f"data.{split}_{kind}={folder / kind}" for split in ("train", "val")]
    return overrides


def settings(side: int, images: int, steps: int) -> list[str]:
    values = {
        "data.image_size": side,
        # the longer side is what fills the crop, so that each image is seen whole
        "data.short_side": side,
        "data.long_side": side,
        "data.ratio_min": 1,
        "data.ratio_max": 1,
        "data.cat_max_ratio": 1,
        "data.flip": 0,
        "data.photometric": False,
        "data.workers": 0,
        "backbone.drop_path": 0,
        "model.dropout": 0,
        "model.head_channels": 64,
        "optim.lr": 1e-3,
        "optim.layer_decay": 1,
        "schedule.steps": steps,
        "schedule.warmup_steps": 20,
        "train.global_batch": images // 2,
        "train.micro_batch": images // 2,
        "train.precision": "fp32",
        "train.eval_every_epochs": None,
        "train.checkpoint_every": 10000,
        "eval.stride": side,
        "eval.per_class": True,
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in ADE20K's layout")
    parser.add_argument("--num-classes", type=int, default=150)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--size", type=int, default=160, help="side of the image in pixels")
    parser.add_argument("--backbone", default="random_vit_ti")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()

    from mae_transfer import run_transfer

    with tempfile.TemporaryDirectory() as temporary:
        paths = link_images(args.data, Path(temporary), args.images)
        started, cpu_started = time.perf_counter(), time.process_time()
        record = run_transfer(
            "ade20k",
            args.backbone,
            weights="random",
            output=Path(temporary) / "run",
            device="cpu",
            overrides=[
                *paths,
                f"data.num_classes={args.num_classes}",
                *settings(args.size, args.images, args.steps),
                *args.overrides,
            ],
            progress=True,
        )
        minutes, cpu_minutes = (time.perf_counter() - started) / 60, (time.process_time() - cpu_started) / 60
    metrics = record["metrics"]
    names = [name for name in metrics if name.startswith("Acc/") and not math.isnan(metrics[name])]
    present = [metrics[name.replace("Acc/", "IoU/", 1)] for name in names]
    miou = sum(present) / len(present)
    print(
        f"{args.backbone}, {args.images} images at {args.size} px, {args.steps} steps: mIoU {miou:.1f} over the "
        f"{len(present)} classes present, {metrics['mIoU']:.1f} with those only predicted, aAcc {metrics['aAcc']:.1f}; "
        f"{minutes:.1f} minutes, {cpu_minutes:.1f} CPU minutes"
    )
    return 0 if miou >= MIOU else 1


if __name__ == "__main__":
    sys.exit(main())
