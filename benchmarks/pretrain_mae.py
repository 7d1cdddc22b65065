#!/usr/bin/env python
"""MAE pre-training: a step against Hugging Face's and the machine's own rate, what an encoder without mask tokens gains
(MAE Table 2), and the share of a run that waits for data.

    python benchmarks/pretrain_mae.py step      # ViT-B, batch 16: against transformers, each in fp32 and in bf16
    python benchmarks/pretrain_mae.py masks     # ViT-L: mask tokens in the encoder or not, 8 decoder blocks or 1
    python benchmarks/pretrain_mae.py data      # a run of ViT-B on generated photographs of 500x375

A step is forward, backward and the update by AdamW, on the same images with 75 % masked. Each variant runs in a process
of its own, so that peak memory (the resident set; on a GPU what torch allocated) is its own; the variants take turns,
and the ratio of each turn is printed with the median. The multiply rate is that of a square matrix product of side
2048, measured in the same process; the share of it is the operations of a step (torch's counter, over the same forward
and backward) by its time.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SIZES = {"vit_ti": (192, 12, 3), "vit_s": (384, 12, 6), "vit_b": (768, 12, 12), "vit_l": (1024, 24, 16)}


def ours(backbone: str, overrides: Sequence[str]) -> Any:
    from mae_transfer.pretrain.methods.mae import MaeMethod
    from mae_transfer.runs.resolve import resolve_config

    config: Any = resolve_config("pretrain", backbone, protocol="mae", data="none", overrides=overrides)
    method = MaeMethod(config)
    return method.build_model(method.build_encoder(), None).train(), config


def build(variant: str, backbone: str, batch: int, overrides: Sequence[str], device: str) -> tuple[Any, Any, Callable]:
    """The model of a variant, its optimizer, and its loss as a function."""
    import torch

    from mae_transfer.engine.optim import build_optimizer

    torch.manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)
    noise = torch.rand(batch, 196)
    if variant == "mae_transfer":
        model, config = ours(backbone, overrides)
        model.to(device)
        data = {"images": images.to(device), "noise": noise.to(device)}
        return model, build_optimizer(model, config.optim), lambda: model(data)["loss_mae"]
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    width, depth, heads = SIZES[backbone]
    config = ViTMAEConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        norm_pix_loss=True,
        layer_norm_eps=1e-6,
    )
    peer = ViTMAEForPreTraining(config).train().to(device)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    pictures, noise = images.to(device), noise.to(device)
    trained = [p for p in peer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2.4e-3, betas=(0.9, 0.95), weight_decay=0.05)
    return peer, optimizer, lambda: peer((pictures.float() / 255 - mean) / std, noise=noise).loss


def measure(args: argparse.Namespace) -> None:
    """In a process of its own: seconds of each step, of its update alone, peak memory and multiply rate, as JSON."""
    import torch

    from mae_transfer.engine.host_memory import keep_freed_memory

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.keeps and device == "cpu":
        keep_freed_memory()
    _, optimizer, loss_of = build(args.variant, args.backbone, args.batch, args.overrides, device)

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    seconds, updates = [], []
    for _ in range(args.steps + 1):
        started = clock()
        with torch.autocast(device, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = loss_of()
        loss.backward()
        before = clock()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(clock() - started)
        updates.append(clock() - before)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "seconds": seconds[1:],
        "updates": updates[1:],
        "peak": peak,
        "rate": multiply_rate(args.precision, device),
    }
    print(json.dumps(result))


def multiply_rate(precision: str, device: str) -> float:
    """Operations a second of a square matrix product, the best of several."""
    import torch

    side = 2048 if device == "cpu" else 8192
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, dtype=kind, device=device) for _ in "ab")
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def operations(backbone: str, batch: int, overrides: Sequence[str]) -> float:
    """Of the matrix products of a forward and a backward pass; counted at two images, on the CPU."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    _, _, loss_of = build("mae_transfer", backbone, 2, overrides, "cpu")
    torch.set_grad_enabled(True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the fused one is not counted
        loss_of().backward()
    return counter.get_total_flops() / 2 * batch


def run(
    variant: str, precision: str, args: argparse.Namespace, overrides: Sequence[str] = (), *, keeps: bool | None = None
) -> dict[str, Any]:
    """keeps: whether freed memory is kept on a CPU, as by this project's engine; None: for this project's own."""
    keeps = variant == "mae_transfer" if keeps is None else keeps
    command = [sys.executable, __file__, "measure", "--variant", variant, "--precision", precision]
    command += ["--keeps"] if keeps else []
    command += ["--backbone", args.backbone, "--batch", str(args.batch), "--steps", str(args.steps), *overrides]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    what = " ".join([variant, precision, *overrides, *(["freed memory kept"] if keeps else [])])
    print(f"  {what}: {min(found['seconds']):.2f} s, {found['peak'] / 2**30:.2f} GiB", file=sys.stderr, flush=True)
    return found


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f}x ({min(values):.2f} to {max(values):.2f})"


def step(args: argparse.Namespace) -> None:
    """Ours against transformers, fp32 against fp32 and bf16 autocast against bf16 autocast."""
    names = {
        "mae_transfer": ("mae_transfer", True),
        "transformers": ("transformers", False),
        "... memory kept": ("transformers", True),
    }
    cases = [(name, precision) for precision in args.precisions for name in names]
    turns = []
    for _ in range(args.repeats):
        turn = {}
        for name, precision in cases:
            variant, keeps = names[name]
            turn[name, precision] = run(variant, precision, args, keeps=keeps)
        turns.append(turn)
    work = operations(args.backbone, args.batch, ())
    print(f"{args.backbone}, batch {args.batch}: {work / 1e12:.2f} T operations in matrix products a step")
    for name, precision in cases:
        found = [turn[name, precision] for turn in turns]
        best = statistics.median(min(one["seconds"]) for one in found)
        peak = max(one["peak"] for one in found) / 2**30
        update = statistics.median(min(one["updates"]) for one in found)
        share = [work / min(one["seconds"]) / one["rate"] for one in found]
        pure = [work / (min(one["seconds"]) - min(one["updates"])) / one["rate"] for one in found]
        print(
            f"  {precision} {name:15} {best:6.2f} s a step (update {update:.2f} s), "
            f"{args.batch / best:.2f} images a second, {peak:.2f} GiB at most, "
            f"{statistics.median(share):.0%} of the multiply rate ({statistics.median(pure):.0%} without the update)"
        )
    for precision in args.precisions:
        for peer, its in (("transformers", ""), ("... memory kept", ", freed memory kept as ours")):
            pairs = [(turn["mae_transfer", precision], turn[peer, precision]) for turn in turns]
            speed = [min(theirs["seconds"]) / min(mine["seconds"]) for mine, theirs in pairs]
            memory = [mine["peak"] / theirs["peak"] for mine, theirs in pairs]
            print(
                f"  {precision} against transformers {precision}{its}: speed {spread(speed)}, memory {spread(memory)}"
            )


def masks(args: argparse.Namespace) -> None:
    """The encoder with mask tokens against without (MAE Table 2), with a decoder of 8 blocks and of 1."""
    slow = ["model.mask_token=encoder", "model.decoder_depth=8"]
    fast = {depth: [f"model.decoder_depth={depth}"] for depth in (8, 1)}
    turns = []
    for _ in range(args.repeats):
        base = run("mae_transfer", args.precision, args, slow)
        turns.append((base, {depth: run("mae_transfer", args.precision, args, fast[depth]) for depth in fast}))
    work = operations(args.backbone, args.batch, slow)
    print(f"{args.backbone}, batch {args.batch}, {args.precision}; mask tokens in the encoder, 8 decoder blocks:")
    print(f"  {statistics.median(min(base['seconds']) for base, _ in turns):.2f} s a step")
    for depth, overrides in fast.items():
        whole = [min(base["seconds"]) / min(others[depth]["seconds"]) for base, others in turns]
        pure = [
            (min(base["seconds"]) - min(base["updates"]))
            / (min(others[depth]["seconds"]) - min(others[depth]["updates"]))
            for base, others in turns
        ]
        counted = work / operations(args.backbone, args.batch, overrides)
        memory = [base["peak"] / others[depth]["peak"] for base, others in turns]
        print(
            f"  without, {depth} decoder blocks: {spread(whole)} as fast ({spread(pure)} without the update, which a "
            f"recipe's batch makes rare); operations 1 / {counted:.2f}; memory 1 / {statistics.median(memory):.2f}"
        )


def data(args: argparse.Namespace) -> None:
    """A real run on generated photographs: what a step waits for its images, and what the loader could give."""
    from mae_transfer.data.synthetic.classification import make_classification
    from mae_transfer.runs.api import run_pretrain

    with tempfile.TemporaryDirectory() as temporary:
        root = make_classification(
            Path(temporary) / "set", "folder", train_images=max(args.batch, 16), val_images=1, size=(375, 500)
        )
        record = run_pretrain(
            "mae",
            args.backbone,
            data=root,
            output=Path(temporary) / "run",
            overrides=[
                f"train.global_batch={args.batch}",
                f"train.micro_batch={args.batch}",
                f"train.precision={args.precision}",
                f"schedule.steps={args.steps + 2}",
                "schedule.warmup_steps=1",
                f"data.workers={args.workers}",
            ],
        )
        lines = [json.loads(line) for line in (Path(temporary) / "run" / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line][2:]  # the first ones wait for the loader to start
        print(
            f"{args.backbone}, batch {args.batch}, {args.precision}, {args.workers} loader processes: "
            f"{statistics.mean(line['data_wait'] for line in steps):.2%} of a step waits for data, "
            f"{statistics.mean(line['images_per_second'] for line in steps):.2f} images a second on "
            f"{record['device']}; the loader alone gives {loader_rate(root):.0f} a second from one process"
        )


def loader_rate(root: Path) -> float:
    """Images a second that one process decodes, crops, flips and masks."""
    from mae_transfer.pretrain.task import PretrainTask
    from mae_transfer.runs.resolve import resolve_config

    dataset = PretrainTask(resolve_config("pretrain", "vit_b", protocol="mae", data=root)).train_dataset
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 3:
        dataset[(count // len(dataset), count % len(dataset))]
        count += 1
    return count / (time.perf_counter() - started)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["step", "masks", "data", "measure"])
    parser.add_argument("--backbone", choices=SIZES, help="default: vit_b, of `masks` vit_l")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of `masks` and `data`")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"], help="of `step`")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each variant")
    parser.add_argument("--steps", type=int, default=2, help="timed steps in each process, after one that is not")
    parser.add_argument("--keeps", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help="loader processes of `data`")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args(argv)
    args.backbone = args.backbone or ("vit_l" if args.part == "masks" else "vit_b")
    {"step": step, "masks": masks, "data": data, "measure": measure}[args.part](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
