"""Speed and memory of ADE20K's encoder and evaluation against mmsegmentation, as ratios in one run.

    python benchmarks/ade20k_speed.py                    # ViT-B, 512 x 512, batch 2, forward + backward; some minutes
    python benchmarks/ade20k_speed.py --what evaluation  # windows in batches against one by one

Encoders (random weights, relative position bias on, absolute positions, layer scale):
    mmseg     mmsegmentation's `MAE` backbone
    ours      the recipe's encoder
    no bias   ours without the bias: what the bias costs
Both sides run in fp32, then both under bf16 autocast. Variants run in turn, `--rounds` times; the best time counts.
Wall and CPU seconds are both given, for machines that are shared. Peak memory is the resident set of a process of its
own for each variant, whole and what of it the step adds.
"""

import argparse
import io
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from mae_transfer.backbones.load import load_backbone
from mae_transfer.tasks.ade20k.config import EvalConfig
from mae_transfer.tasks.ade20k.inference import Predictor
from mae_transfer.tasks.ade20k.protocols.upernet import import_heads

SIDE, BATCH, STRIDE = 512, 2, 341
SIZES = {"nano": (64, 8, 4), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
VARIANTS = ("mmseg", "ours", "no bias")


def build(variant: str, size: str) -> nn.Module:
    width, depth, heads = SIZES[size]
    taps = tuple(round(depth * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1))
    if variant != "mmseg":
        return load_backbone(
            f"random_vit_{size}",
            img_size=SIDE,
            taps=taps,
            pos_embed="resized",
            layer_scale=1.0,
            rel_pos="per_block" if variant == "ours" else False,
        )
    import_heads()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from mmseg.models.backbones import MAE

        return MAE(
            img_size=(SIDE, SIDE),
            patch_size=16,
            embed_dims=width,
            num_layers=depth,
            num_heads=heads,
            init_values=1.0,
            norm_cfg={"type": "LN", "eps": 1e-6},
            out_indices=list(taps),
        )


def make_step(variant: str, size: str, dtype: str) -> Callable[[], None]:
    model = build(variant, size)
    model.train()  # mmsegmentation's gives None back
    images = torch.randn(BATCH, 3, SIDE, SIDE)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            maps = model(images)
        sum(m.float().square().mean() for m in maps).backward()

    return step


def measure(step: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def peaks_of(variant: str, size: str, dtype: str) -> tuple[float, float]:
    """Peak GB of a process that does one step, and what of it the step adds to the model."""
    command = [sys.executable, __file__, "--size", size, "--dtype", dtype, "--peak", variant]
    whole, added = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(whole), float(added)


def print_peak(variant: str, size: str, dtype: str) -> None:
    step = make_step(variant, size, dtype)
    before = resident("VmRSS")
    step()
    print(resident("VmHWM"), resident("VmHWM") - before)


def resident(field: str) -> float:
    """GB, now (VmRSS) or at the peak (VmHWM); rusage's peak would begin with that of the parent process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e9


def compare(names: tuple[str, ...], steps: list[Callable[[], object]], rounds: int) -> None:
    best = [(float("inf"), float("inf"))] * len(steps)
    for _ in range(rounds):
        for i, step in enumerate(steps):
            wall, cpu = measure(step)
            best[i] = min(best[i][0], wall), min(best[i][1], cpu)
    for name, (wall, cpu) in zip(names, best, strict=True):
        print(
            f"{name:12s} {wall:7.2f} s wall ({best[0][0] / wall:.2f}x)  {cpu:7.2f} s CPU ({best[0][1] / cpu:.2f}x)",
            flush=True,
        )


def encoders(size: str, dtype: str, rounds: int) -> None:
    print(f"ViT-{size} {dtype}, {BATCH} x {SIDE} x {SIDE}, forward + backward, {torch.get_num_threads()} threads, "
          f"{torch.backends.cpu.get_cpu_capability()}; ratios to mmseg")  # fmt: skip
    compare(VARIANTS, [make_step(variant, size, dtype) for variant in VARIANTS], rounds)
    peaks = {variant: peaks_of(variant, size, dtype) for variant in VARIANTS}
    for variant, (whole, added) in peaks.items():
        whole_ratio, added_ratio = whole / peaks["mmseg"][0], added / peaks["mmseg"][1]
        print(
            f"{variant:12s} {whole:7.2f} GB peak ({whole_ratio:.2f}x), {added:.2f} of it the step ({added_ratio:.2f}x)"
        )


def evaluation(size: str, dtype: str, rounds: int) -> None:
    """Encoder and a light head over images of ADE20K's typical sizes: windows in batches against one by one.

    One by one both in our code and in mmsegmentation's `slide_inference`, on the same network.
    """
    encoder = build("ours", size).eval()
    head = nn.Conv2d(encoder.embed_dim, 150, 1)

    def network(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            logits = head(encoder(images)[-1])
        return nn.functional.interpolate(logits.float(), scale_factor=16, mode="bilinear")

    sizes = [(512, 683), (683, 512), (512, 768), (512, 512)]
    views = [[torch.randn(3, *s)] for s in sizes]

    def predict(batch_size: int) -> Callable[[], object]:
        predictor = Predictor(150, SIDE, 16, EvalConfig(stride=STRIDE, batch_size=batch_size))
        return lambda: predictor(network, views, sizes)

    def theirs() -> list[torch.Tensor]:
        return [mmseg_slide(network, view[0][None], s) for view, s in zip(views, sizes, strict=True)]

    def networks_alone() -> None:
        for _ in range(sum(len(p.places) for p in predict_passes(views))):
            network(torch.zeros(1, 3, SIDE, SIDE))

    print(f"ViT-{size} {dtype}, evaluation of {len(sizes)} images; ratios to mmsegmentation's one window at a time")
    with torch.inference_mode():
        assert all(torch.equal(a, b.short()) for a, b in zip(predict(1)(), theirs(), strict=True))
        compare(
            ("mmseg", "1 window", "2", "4", "8", "network only"),
            [theirs, *(predict(n) for n in (1, 2, 4, 8)), networks_alone],
            rounds,
        )


def predict_passes(views: list[list[torch.Tensor]]) -> list:
    predictor = Predictor(150, SIDE, 16, EvalConfig(stride=STRIDE))
    return [predictor._pass(i, view[0], False) for i, view in enumerate(views)]


def mmseg_slide(network: Callable, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """What mmsegmentation's evaluation does with one image: windows one by one, resize to the original, argmax."""
    import_heads()
    from mmseg.models import EncoderDecoder

    self = SimpleNamespace(
        test_cfg=SimpleNamespace(stride=(STRIDE, STRIDE), crop_size=(SIDE, SIDE)),
        out_channels=150,
        encode_decode=lambda crop, metas: network(crop),
    )
    logits = EncoderDecoder.slide_inference(self, image, [{"ori_shape": size}])
    return nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].argmax(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="b", choices=SIZES)
    parser.add_argument("--dtype", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--what", default="encoder", choices=["encoder", "evaluation"])
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.peak:
        print_peak(args.peak, args.size, args.dtype[0])
        return
    for dtype in args.dtype:
        (encoders if args.what == "encoder" else evaluation)(args.size, dtype, args.rounds)


if __name__ == "__main__":
    main()
