#!/usr/bin/env python
"""What the frozen-encoder shortcuts save, each as a ratio in one run; exits with 1 if one misses its goal.

    python benchmarks/classification_probes.py sweep --data /data/images     # a folder with train/<class>, val/<class>
    python benchmarks/classification_probes.py cache --data /data/images
    python benchmarks/classification_probes.py partial                       # ViT-B, 224 px, batch 16; needs 8 GB

sweep    all heads of recipe linear_sweep (78) on one pass of augmented images, against some of them trained alone: time
         of the training steps, goal below 1.5 times that of one head; and each head's accuracies, goal equal to 1e-6.
         `--alone 78` compares every head.
cache    the linear probe for 90 epochs on features kept in the run folder against running the frozen encoder in every
         epoch: time of the whole run, extraction, training and evaluation, goal 20 times faster; and equal accuracy.
partial  a training step with 1 trained block against all of them: time and memory, goal below 0.5 times each. Each
         variant is a process of its own, so that the peak is its own; variants take turns.

Images are real if --data is given, generated otherwise; weights are random. Measured: see docs/classification.md.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARTIAL = ("1", "all")


def train(args: argparse.Namespace, folder: Path, *overrides: str) -> tuple[dict[str, Any], float]:
    """A run of the linear probe: its record, and the seconds of all of it."""
    from mae_transfer.runs.api import run_transfer

    shared = [f"data.image_size={args.image_size}", "data.workers=0", "train.precision=fp32", "eval.batch_size=100"]
    shared += [f"train.global_batch={args.batch}", f"train.micro_batch={args.batch}"]
    started = time.perf_counter()
    record = run_transfer(
        "folder", args.backbone, protocol="linear", data=args.data or "synthetic", subset=args.subset, output=folder,
        overrides=[*shared, *overrides],
    )  # fmt: skip
    return record, time.perf_counter() - started


def sweep(args: argparse.Namespace, folder: Path) -> bool:
    options = ["recipe=linear_sweep", f"schedule.steps={args.steps}"]
    record, _ = train(args, folder / "all", *options)
    every = [name.removeprefix("top1/") for name in record["metrics"] if name.startswith("top1/")]
    chosen = every[:: max(len(every) // args.alone, 1)][: args.alone]
    print(f"{len(every)} heads on one pass: {record['images_per_second']:.1f} images/s", flush=True)
    speeds, worst = [], 0.0
    for name in chosen:
        blocks, pooling, lr = name.removeprefix("blocks").split("-", 2)
        only = [f"probe.blocks=[{blocks}]", f"probe.pooling=[{pooling}]", f"probe.lrs=[{lr.removeprefix('lr')}]"]
        alone, _ = train(args, folder / name, *options, *only)
        speeds.append(alone["images_per_second"])
        difference = abs(alone["metrics"]["top1"] - record["metrics"][f"top1/{name}"])
        worst = max(worst, difference)
        print(f"  {name} alone: {speeds[-1]:.1f} images/s, top-1 {alone['metrics']['top1']:.4f}, "
              f"in the sweep {record['metrics'][f'top1/{name}']:.4f}", flush=True)  # fmt: skip
    ratio = statistics.median(speeds) / record["images_per_second"]
    accuracies = {record["metrics"][f"top1/{name}"] for name in chosen}
    print(f"{len(every)} heads take {ratio:.3f} times the time of one (goal: below 1.5); accuracies of {len(chosen)} "
          f"heads, {len(accuracies)} different values, differ by {worst:g} at most (goal: 1e-6)")  # fmt: skip
    return ratio < 1.5 and worst <= 1e-6


def cache(args: argparse.Namespace, folder: Path) -> bool:
    options = ["data.crop=center", "data.flip=0", f"schedule.epochs={args.epochs}"]
    options += ["optim.kind=sgd", "optim.lr=0.1"]  # LARS at the lr of so small a batch hardly moves
    kept, seconds = train(args, folder / "kept", *options, "probe.cache=true")
    print(f"features kept: {seconds:.2f} s, top-1 {kept['metrics']['top1']:.4f}", flush=True)
    again, slow = train(args, folder / "again", *options, "probe.cache=false")
    print(f"encoder in every epoch: {slow:.2f} s, top-1 {again['metrics']['top1']:.4f}")
    ratio = slow / seconds
    print(f"{args.epochs} epochs of {kept['data']['train_images']} images: {ratio:.1f} times faster (goal: 20)")
    return ratio >= 20 and kept["metrics"]["top1"] == again["metrics"]["top1"]


def partial(args: argparse.Namespace) -> bool:
    results: dict[str, list[dict[str, float]]] = {variant: [] for variant in PARTIAL}
    for _ in range(args.rounds):
        for variant in PARTIAL:
            command = [sys.executable, __file__, "partial", "--variant", variant, "--backbone", args.backbone]
            command += ["--image-size", str(args.image_size), "--batch", str(args.batch), "--steps", str(args.steps)]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[variant].append(json.loads(out))
            print(f"  {variant} blocks: {results[variant][-1]}", flush=True)
    ratios = {
        what: min(run[what] for run in results["1"]) / min(run[what] for run in results["all"])
        for what in ("seconds", "gib")
    }
    print(f"1 block of {args.backbone}, batch {args.batch} at {args.image_size} px: {ratios['seconds']:.3f} times the "
          f"step time, {ratios['gib']:.3f} times the memory of full fine-tuning (goals: below 0.5)")  # fmt: skip
    return max(ratios.values()) < 0.5


def measure(variant: str, args: argparse.Namespace) -> None:
    """In a process of its own: print the seconds of the fastest step after the first, and the peak memory of all."""
    import torch

    from mae_transfer.backbones.load import load_backbone
    from mae_transfer.engine.optim import build_optimizer
    from mae_transfer.runs.resolve import load_config
    from mae_transfer.tasks.classification.protocols.finetune import Finetune
    from mae_transfer.tasks.classification.protocols.partial import Partial

    name, options = ("partial", ["model.blocks=1"]) if variant == "1" else ("finetune", [])
    config = load_config("folder", args.backbone, protocol=name, overrides=options)
    protocol = Partial(config) if variant == "1" else Finetune(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    drop_path = config.backbone.drop_path
    encoder = load_backbone(args.backbone, drop_path=drop_path, **protocol.encoder_options())
    model = protocol.build_model(encoder, 1000).to(device).train()
    optimizer = build_optimizer(model, config.optim)
    shape = (args.batch, 3, args.image_size, args.image_size)
    batch = {"images": torch.randint(256, shape, dtype=torch.uint8).to(device)}
    batch["labels"] = torch.randint(1000, (args.batch,)).to(device)
    seconds = []
    for _ in range(args.steps + 1):
        started = time.perf_counter()
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    cuda = device == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": min(seconds[1:]), "gib": peak / 2**30}))


DEFAULTS: dict[str, dict[str, Any]] = {
    "sweep": {"backbone": "random_vit_s", "image_size": 112, "batch": 64, "steps": 12, "subset": 1000},
    "cache": {"backbone": "random_vit_ti", "image_size": 112, "batch": 100, "steps": None, "subset": None},
    "partial": {"backbone": "random_vit_b", "image_size": 224, "batch": 16, "steps": 3, "subset": None},
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=DEFAULTS)
    parser.add_argument("--data", help="a folder with train/<class> and val/<class>")
    parser.add_argument("--backbone")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, help="training steps (partial: timed ones, after one that is not)")
    parser.add_argument("--subset", type=int, help="images of each split")
    parser.add_argument("--epochs", type=int, default=90, help="cache: passes over the training images")
    parser.add_argument("--alone", type=int, default=5, help="sweep: heads that are trained alone as well")
    parser.add_argument("--rounds", type=int, default=2, help="partial: processes of each variant")
    parser.add_argument("--variant", choices=PARTIAL, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name, value in DEFAULTS[args.what].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.variant:
        measure(args.variant, args)
        return 0
    if args.what == "partial":
        return 0 if partial(args) else 1
    with tempfile.TemporaryDirectory() as folder:
        return 0 if {"sweep": sweep, "cache": cache}[args.what](args, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
