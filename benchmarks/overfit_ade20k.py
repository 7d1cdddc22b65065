"""Can the whole ADE20K path learn? A small encoder with random weights must reproduce the masks of a few images.

    python benchmarks/overfit_ade20k.py --data /data/ADEChallengeData2016 --num-classes 150

Trains on `--images` images without augmentation and evaluates on the same ones, through `run_transfer` as any run. What
is asked: mIoU over the classes present of at least 70, in less than 15 minutes of a CPU.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from mae_transfer import run_transfer


def link_images(data: Path, folder: Path, count: int) -> list[str]:
    """Links the first `count` training pairs into `folder`; returns the overrides that train and evaluate on them."""
    overrides = []
    for kind, place in (("images", "images/training"), ("masks", "annotations/training")):
        (folder / kind).mkdir()
        for path in sorted((data / place).iterdir())[:count]:
            (folder / kind / path.name).symlink_to(path.resolve())
        overrides += [f"data.{split}_{kind}={folder / kind}" for split in ("train", "val")]
    return overrides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in ADE20K's layout")
    parser.add_argument("--num-classes", type=int, default=150)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--size", type=int, default=128, help="side of the image in pixels")
    parser.add_argument("--backbone", default="random_vit_nano")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    side = args.size
    settings = {
        "data.num_classes": args.num_classes,
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
        "optim.lr": 1e-3,
        "optim.layer_decay": 1,
        "schedule.epochs": None,
        "schedule.steps": args.steps,
        "schedule.warmup_steps": args.steps // 10,
        "train.global_batch": args.images,
        "train.micro_batch": args.images,
        "train.precision": "fp32",
        "train.eval_every_epochs": None,
        "eval.stride": side,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        overrides += link_images(args.data, Path(folder), args.images)
        record = run_transfer(
            "ade20k",
            args.backbone,
            weights="random",
            preset="full",
            output=os.path.join(folder, "run"),
            device="cpu",
            overrides=[*overrides, *args.overrides],
            progress=True,
        )
    print({name: round(record["metrics"][name], 2) for name in ("mIoU", "mAcc", "aAcc")})
    print(f"{time.process_time() - cpu:.0f} s CPU, {time.perf_counter() - wall:.0f} s wall")


if __name__ == "__main__":
    main()
