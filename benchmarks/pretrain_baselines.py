#!/usr/bin/env python
"""MAE, BEiT-style and supervised pre-training on the same images for the same compute, then transferred; one table.

    python benchmarks/pretrain_baselines.py --data /data/tiny_imagenet --output results/runs/baselines

The data set has train/<class>/ and val/<class>/. Compute is counted in operations of matrix products: MAE gets
`--steps` steps and each of the others as many as cost the same. Every encoder (and one of random weights) is then
probed by nearest neighbours and by a linear classifier on the mean of its patch tokens, on the same data set, with the
seed of its pre-training. What is there already is not run again, so the command can be repeated after a stop.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METHODS = ("mae", "beit", "supervised")
VOCABULARY = 512
PRETRAIN = {
    "mae": ["model.decoder_depth=2", "model.decoder_width=64", "model.decoder_heads=4"],
    "beit": [f"tokenizer.vocab_size={VOCABULARY}", "mask.min_patches=4"],
    "supervised": ["optim.ema=0.99", "train.eval_every_epochs=null"],
}
SHARED = [
    "optim.lr=1e-3",
    "schedule.min_lr_ratio=0",
    "backbone.drop_path=0",
    "train.checkpoint_every=200",
    "data.scale_min=0.2",
]
PROBES = {
    "knn": [],
    "linear": ["data.crop=center", "data.flip=0", "schedule.epochs=60", "schedule.warmup_epochs=5"],
}


def config_of(method: str, args: argparse.Namespace, seed: int, steps: int) -> dict[str, Any]:
    """Arguments of `run_pretrain`."""
    sizes = [f"data.image_size={args.image_size}", f"data.workers={args.workers}", "train.precision=" + args.precision]
    batch = [f"train.global_batch={args.batch}", f"train.micro_batch={args.batch}"]
    length = [f"schedule.steps={steps}", f"schedule.warmup_steps={steps // 20}"]
    return {
        "method": method,
        "backbone": args.backbone,
        "data": args.data,
        "tokenizer": "kmeans" if method == "beit" else None,
        "seed": seed,
        "overrides": [*SHARED, *PRETRAIN[method], *sizes, *batch, *length],
    }


def operations(method: str, args: argparse.Namespace) -> float:
    """Of the matrix products of a step, for one image: forward, backward and the tokenizer."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from mae_transfer.pretrain.task import PretrainTask
    from mae_transfer.pretrain.tokenizers.kmeans import KMeansTokenizer
    from mae_transfer.runs.resolve import resolve_config

    options = config_of(method, args, 0, 100)
    config = resolve_config("pretrain", options.pop("backbone"), protocol=options.pop("method"), **options)
    task = PretrainTask(config)
    model: Any = task.build_model(task.build_encoder()).train()
    if method == "beit":
        patch = model.encoder.patch_size
        model.tokens.tokenizer = KMeansTokenizer(torch.rand(VOCABULARY, 3 * patch**2), patch_size=patch)
    dataset = task.train_dataset
    batch = dataset.collate([dataset[(0, index)] for index in range(4)])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the fused one is not counted
        sum(model(batch).values()).backward()
    return counter.get_total_flops() / 4


def pretrain(method: str, args: argparse.Namespace, seed: int, steps: int) -> Path:
    """The run folder of a finished pre-training."""
    from mae_transfer.runs.api import run_pretrain

    output = args.output / f"{method}-seed{seed}"
    if not (output / "record.json").exists():
        resume = (output / "config.yaml").exists()
        run_pretrain(**config_of(method, args, seed, steps), output=output, resume=resume, progress=True)
    return output


def probe(checkpoint: Path | None, name: str, args: argparse.Namespace, seed: int) -> None:
    from mae_transfer import run_transfer

    for protocol, overrides in PROBES.items():
        output = args.output / f"{name}-seed{seed}-{protocol}"
        if (output / "record.json").exists():
            continue
        run_transfer(
            "folder",
            args.backbone,
            protocol=protocol,
            checkpoint=checkpoint,
            weights="random" if checkpoint is None else None,
            data=args.data,
            seed=seed,
            output=output,
            resume=(output / "config.yaml").exists(),
            overrides=[
                f"data.image_size={args.image_size}",
                f"data.workers={args.workers}",
                "eval.crop_pct=1",
                "probe.pooling=[avg]",
                *overrides,
            ],
            progress=True,
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--backbone", default="vit_nano_p8")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--steps", type=int, default=800, help="of MAE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args(argv)

    from mae_transfer.results.tables.build import make_tables
    from mae_transfer.run_folder.record import find_records

    cost = {method: operations(method, args) for method in METHODS}
    steps = {method: math.floor(args.steps * cost["mae"] / cost[method]) for method in METHODS}
    for method in METHODS:
        print(f"{method}: {cost[method] / 1e9:.3f} G operations an image, {steps[method]} steps of {args.batch}")
    for seed in range(args.seeds):
        for method in METHODS:
            probe(pretrain(method, args, seed, steps[method]), method, args, seed)
        probe(None, "random", args, seed)
    records, left_out = find_records(args.output)
    print("\n".join(left_out))
    print(make_tables([record for record in records if record["task"] == "folder"]))
    for record in records:
        if record["task"] == "pretrain":
            print(f"{record['protocol']['method']} seed {record['seed']}: {record['wall_seconds'] / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
