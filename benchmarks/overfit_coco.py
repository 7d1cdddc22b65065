#!/usr/bin/env python
"""Does it learn? A small ViT from random weights, trained on 8 real images until it detects those same 8.

    python benchmarks/overfit_coco.py --data /data/coco       # 12 minutes on one CPU core

Takes the first images of the training annotations (in order of id) that have objects, no crowd and nothing under 1 % of
the image, writes them as a data set of its own whose training and val split are the same, runs the real command on it,
and fails (exit code 1) below box AP 80 or mask AP 60. Measured: see docs/coco.md.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

BOX_AP, MASK_AP = 80.0, 60.0
SMALLEST = 0.01
"""Least area of an object as a share of its image."""
OVERRIDES = [
    "data.image_size=224",
    "data.scale_min=1.0",
    "data.scale_max=1.0",
    "data.pad_value=null",
    "data.flip=0",
    "data.workers=0",
    "backbone.drop_path=0",
    "backbone.window_size=0",
    "backbone.rel_pos=false",
    "model.fpn_channels=64",
    "model.head_channels=64",
    "model.roi_batch_per_image=64",
    "optim.lr=1e-3",
    "optim.weight_decay=0.05",
    "train.global_batch=2",
    "train.micro_batch=2",
    "train.precision=fp32",
    "train.checkpoint_every=10000",
]


def small_set(root: Path, images: int, target: Path) -> Path:
    """An annotation file with the first `images` images of train2017 that have large objects only, and no crowd."""
    full = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    by_image: dict[int, list[dict]] = {}
    for annotation in full["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    pixels = {image["id"]: image["width"] * image["height"] for image in full["images"]}
    usable = [
        i
        for i, objects in sorted(by_image.items())
        if not any(a["iscrowd"] or a["area"] < SMALLEST * pixels[i] for a in objects)
    ][:images]
    chosen = {
        "images": [image for image in full["images"] if image["id"] in usable],
        "annotations": [annotation for i in usable for annotation in by_image[i]],
        "categories": full["categories"],
    }
    target.write_text(json.dumps(chosen))
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="COCO 2017 folder, or a part of it")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--backbone", default="random_vit_ti")
    parser.add_argument("--output", type=Path, help="run folder; default: a temporary one")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()

    from mae_transfer import run_transfer

    with tempfile.TemporaryDirectory() as temporary:
        subset = str(small_set(args.data, args.images, Path(temporary) / "small.json"))
        folder = str(args.data / "train2017")
        paths = [
            f"data.{split}_{kind}={path}"
            for split in ("train", "val")
            for kind, path in (("json", subset), ("images", folder))
        ]
        started, cpu_started = time.perf_counter(), time.process_time()
        record = run_transfer(
            "coco",
            args.backbone,
            output=args.output or Path(temporary) / "run",
            device="cpu",
            overrides=[*paths, *OVERRIDES, f"schedule.steps={args.steps}", "schedule.warmup_steps=20", *args.overrides],
            progress=True,
        )
        minutes, cpu_minutes = (time.perf_counter() - started) / 60, (time.process_time() - cpu_started) / 60
    box, mask = record["metrics"]["box_AP"], record["metrics"]["mask_AP"]
    print(
        f"{args.backbone}, {args.images} images, {args.steps} steps of 2: box AP {box:.1f}, mask AP {mask:.1f} "
        f"on the same images; {minutes:.1f} minutes, {cpu_minutes:.1f} CPU minutes"
    )
    return 0 if box >= BOX_AP and mask >= MASK_AP else 1


if __name__ == "__main__":
    sys.exit(main())
