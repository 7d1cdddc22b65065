#!/usr/bin/env python
"""What frozen dense protocols cost, each as a ratio or CPU minutes of one run; exits with 1 if one misses its goal.

    python benchmarks/frozen.py detection                                    # ViT-B, 512 px, batch 1; needs 5 GB
    python benchmarks/frozen.py layers --data /data/camvid --classes 11      # a set of ADE20K's layout
    python benchmarks/frozen.py sweep --data /data/camvid --classes 11

detection  a training step of COCO's protocol frozen against one of finetune, forward, backward and update, each as its
           recipe says: CPU time and memory, goal at most 0.5 times each. Each variant is a process of its own, so that
           the peak is its own; variants take turns.
layers     features of all blocks at once (`--layers all`) against those of the last alone: CPU time of the pass, files
           written, goal at most 1.3 times. `--whole`: of the runs, which fit each block, too.
sweep      linear, knn, logreg and in_context of one encoder: CPU time of the whole command, goal below 10 minutes.

CPU time is of all threads, and is disturbed less by other processes than wall time. Weights are random.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

VARIANTS = ("frozen", "finetune")


def detection(args: argparse.Namespace) -> bool:
    results: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(args.rounds):
        for variant in VARIANTS:
            command = [sys.executable, __file__, "detection", "--variant", variant, "--backbone", args.backbone]
            command += ["--image-size", str(args.image_size), "--batch", str(args.batch), "--steps", str(args.steps)]
            command += ["--set", *args.set] if args.set and variant == "frozen" else []
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[variant].append(json.loads(out))
            print(f"  {variant}: {results[variant][-1]}", flush=True)
    frozen, finetune = (
        {what: min(run[what] for run in results[variant]) for what in ("cpu_seconds", "gib")} for variant in VARIANTS
    )
    ratios = [frozen[what] / finetune[what] for what in frozen]
    print(f"frozen detector on {args.backbone}, batch {args.batch} at {args.image_size} px: {ratios[0]:.3f} times the "
          f"CPU time of a step, {ratios[1]:.3f} times the memory of fine-tuning (goals: 0.5)")  # fmt: skip
    return max(ratios) <= 0.5


def measure(variant: str, args: argparse.Namespace) -> None:
    """In a process of its own: print the CPU seconds of the fastest step but the first, and the peak memory."""
    import torch

    from mae_transfer.engine.optim import build_optimizer
    from mae_transfer.runs.resolve import load_config
    from mae_transfer.tasks.coco.task import CocoTask

    torch.manual_seed(0)
    size = args.image_size
    recipe = {"finetune": "mask_rcnn_li2021", "frozen": "frozen_li2021"}[variant]
    overrides = ["data.root=synthetic", f"data.image_size={size}", f"recipe={recipe}", *args.set]
    task = CocoTask(load_config("coco", args.backbone, protocol=variant, overrides=overrides))
    model = task.build_model(task.build_encoder()).train()
    optimizer = build_optimizer(model, task.config.optim)
    batch = task.train_dataset.collate([task.train_dataset[(0, index)] for index in range(args.batch)])
    seconds = []
    for _ in range(args.steps + 1):
        started = time.process_time()
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with torch.no_grad():
        started = time.process_time()
        model.encoder(torch.rand(args.batch, 3, size, size))
        forward = time.process_time() - started
    print(json.dumps({"cpu_seconds": min(seconds[1:]), "encoder_forward": forward, "gib": peak / 2**30}))


def layers(args: argparse.Namespace) -> bool:
    passes: dict[str, list[float]] = {"all": [], "last": []}
    for _ in range(args.rounds):
        for variant in passes:
            command = [sys.executable, __file__, "layers", "--variant", variant, "--backbone", args.backbone]
            command += ["--data", args.data, "--classes", str(args.classes), "--image-size", str(args.image_size)]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            passes[variant].append(json.loads(out))
            print(f"  {variant}: {passes[variant][-1]:.1f} CPU s", flush=True)
    ratio = min(passes["all"]) / min(passes["last"])
    print(f"{args.backbone} at {args.image_size} px: the pass for all blocks takes {ratio:.3f} times the CPU time of "
          "the last alone (goal: 1.3)")  # fmt: skip
    if args.whole:
        with tempfile.TemporaryDirectory() as folder:
            fits = ["--protocol", "knn", "probe.k=[10]", "probe.metrics=[cosine]", "data.holdout=0"]
            every, _ = transfer(args, Path(folder) / "all", *fits, "--layers", "all")
            last, _ = transfer(args, Path(folder) / "last", *fits)
        print(
            f"  whole runs, which fit and score every block: {every:.0f} and {last:.0f} CPU s, {every / last:.1f} times"
        )
    return ratio <= 1.3


def measure_pass(variant: str, args: argparse.Namespace) -> None:
    """In a process of its own: print the CPU seconds of the pass over all images, files written."""
    from lightning_fabric import Fabric

    from mae_transfer.run_folder.folder import RunFolder
    from mae_transfer.runs.resolve import load_config
    from mae_transfer.tasks.ade20k.patch_features import store_patches
    from mae_transfer.tasks.ade20k.task import Ade20kTask

    overrides = [f"data.root={args.data}", f"data.num_classes={args.classes}", f"data.image_size={args.image_size}"]
    overrides += ["data.workers=0", "train.precision=fp32"]
    config = load_config("ade20k", args.backbone, protocol="knn", overrides=overrides)
    task = Ade20kTask(config)
    encoder = task.build_encoder()
    if variant == "all":
        probe = config.probe.model_copy(update={"stored_layers": tuple(range(encoder.spec.depth))})
        config = config.model_copy(update={"probe": probe})
    tokens = task.build_model(encoder).tokens
    splits = {"train": task.splits.train, "val": task.splits.val}
    with tempfile.TemporaryDirectory() as path, RunFolder(Path(path) / "run", config) as folder:
        started = time.process_time()
        store_patches(tokens, config, splits, Fabric(accelerator="cpu", devices=1), folder, False)
        print(json.dumps(time.process_time() - started))


def sweep(args: argparse.Namespace) -> bool:
    total = 0.0
    with tempfile.TemporaryDirectory() as folder:
        patches, said = transfer(args, Path(folder) / "patches", "--protocol", "knn,logreg,in_context")
        print(f"  knn, logreg, in_context: {patches:.0f} CPU s", flush=True)
        side = args.image_size
        crops = [f"data.short_side={side}", "data.long_side=10000", f"eval.stride={side * 2 // 3}"]
        steps = [f"schedule.steps={args.steps}", f"schedule.warmup_steps={args.steps // 20}"]
        linear, more = transfer(args, Path(folder) / "linear", "--protocol", "linear", *crops, *steps)
        print(f"  linear, {args.steps} steps of 16: {linear:.0f} CPU s", flush=True)
        total = patches + linear
    for line in re.findall(r"mIoU \d.*", said + more):
        print(f"    {line}")
    print(f"frozen sweep of {args.backbone} at {args.image_size} px: {total / 60:.1f} CPU minutes (goal: below 10)")
    return total < 600


def transfer(args: argparse.Namespace, output: Path, *options: str) -> tuple[float, str]:
    """CPU seconds of `mae-transfer transfer` on the set, all of its processes, and what it said."""
    command = [sys.executable, "-m", "mae_transfer", "transfer", "--task", "ade20k", "--backbone", args.backbone]
    command += ["--data", args.data, "--output", str(output), *options]
    command += [f"data.num_classes={args.classes}", f"data.image_size={args.image_size}", "train.precision=fp32"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("detection", "layers", "sweep"))
    parser.add_argument("--data", help="layers, sweep: a set of ADE20K's layout")
    parser.add_argument("--classes", type=int, default=150, help="layers, sweep: of the set")
    parser.add_argument("--backbone", help="default: random_vit_b for detection, random_vit_s else")
    parser.add_argument("--image-size", type=int, help="default: 512 for detection, 224 else")
    parser.add_argument("--batch", type=int, default=1, help="detection: images")
    parser.add_argument(
        "--steps", type=int, help="detection: timed steps after one that is not (2); sweep: of linear (100)"
    )
    parser.add_argument("--set", nargs="+", default=[], help="detection: overrides of the frozen detector alone")
    parser.add_argument("--rounds", type=int, default=2, help="detection, layers: processes of each variant")
    parser.add_argument("--whole", action="store_true", help="layers: the whole runs, too")
    parser.add_argument("--variant", choices=(*VARIANTS, "all", "last"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    detects = args.what == "detection"
    args.backbone = args.backbone or ("random_vit_b" if detects else "random_vit_s")
    args.image_size = args.image_size or (512 if detects else 224)
    args.steps = args.steps or (2 if detects else 100)
    if not detects and not args.data:
        parser.error(f"{args.what} needs --data")
    if args.variant:
        (measure if detects else measure_pass)(args.variant, args)
        return 0
    return 0 if {"detection": detection, "layers": layers, "sweep": sweep}[args.what](args) else 1


if __name__ == "__main__":
    sys.exit(main())
