#!/usr/bin/env python
"""A training step and an inference of this detector against detectron2's own ViT with Mask R-CNN: time and memory.

    python benchmarks/detectron2_speed.py                    # ViT-B, 1024 px; fp32: 10 minutes on 2 CPU cores, 13 GB
    python benchmarks/detectron2_speed.py --backbone random_vit_ti --image-size 320 --repeats 3

detectron2's side is its `configs/common/models/mask_rcnn_vitdet.py` (simple pyramid, channel LayerNorm, decomposed
relative positions), ours the recipe of Li et al. (four taps, FPN, batch norm, shared relative positions): the model of
each project on a ViT of the same size, with windows of 14, the same image of ten objects, batch 1, with relative
positions and without; ours keeps freed memory on a CPU, as its engine does (`engine/host_memory.py`). Each variant runs
in a process of its own, so that peak memory is its own; the variants take turns. Needs detectron2.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

VARIANTS = ("mae_transfer", "detectron2")


def build_detectron2(backbone: str, image_size: int, rel_pos: bool) -> tuple[Any, Callable[[], Any]]:
    """detectron2's model and a function that runs it on the image of `coco_training_step`."""
    import numpy as np
    import torch
    from coco_training_step import example
    from detectron2 import model_zoo
    from detectron2.config import instantiate
    from detectron2.structures import Boxes, Instances, PolygonMasks
    from detectron2.utils.events import EventStorage

    from mae_transfer.backbones.timm_vit import resolve

    torch.manual_seed(0)
    spec = resolve(backbone)
    config = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    group = spec.depth // 4
    config.backbone.square_pad = config.backbone.net.img_size = image_size
    config.backbone.net.embed_dim, config.backbone.net.depth = spec.embed_dim, spec.depth
    config.backbone.net.num_heads, config.backbone.net.patch_size = spec.num_heads, spec.patch_size
    config.backbone.net.window_block_indexes = [i for i in range(spec.depth) if (i + 1) % group]
    config.backbone.net.use_rel_pos, config.backbone.net.drop_path_rate = rel_pos, 0.0
    model = instantiate(config)
    image, boxes, classes = example(image_size)
    objects = Instances((image_size, image_size))
    objects.gt_boxes = Boxes(torch.from_numpy(boxes).float())
    objects.gt_classes = torch.from_numpy(classes)
    objects.gt_masks = PolygonMasks([[np.array([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in boxes])
    inputs = [{"image": image, "instances": objects, "height": image_size, "width": image_size}]

    def run() -> Any:
        with EventStorage():
            outputs = model(inputs)
        return sum(outputs.values()) if model.training else outputs

    return model, run


def build(variant: str, backbone: str, image_size: int, rel_pos: bool) -> tuple[Any, Callable[[], Any]]:
    """A model and a function that runs it: in training mode the loss, else the detections."""
    if variant == "detectron2":
        return build_detectron2(backbone, image_size, rel_pos)
    from coco_training_step import build_ours

    model, batch = build_ours(backbone, image_size, rel_pos)
    return model, lambda: sum(model(batch).values()) if model.training else model(batch)


def measure(variant: str, args: argparse.Namespace) -> None:
    """In a process of its own: print the best seconds and the peak memory as JSON."""
    import torch

    from mae_transfer.engine.host_memory import keep_freed_memory

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if variant == "mae_transfer" and device == "cpu":
        keep_freed_memory()
    model, run = build(variant, args.backbone, args.image_size, args.rel_pos)
    model.to(device).train(args.mode == "train")
    seconds = []
    for _ in range(args.steps + 1):
        started = time.perf_counter()
        with (
            torch.autocast(device, torch.bfloat16, enabled=args.precision == ["bf16"]),
            torch.set_grad_enabled(model.training),
        ):
            outputs = run()
        if model.training:
            outputs.backward()
            model.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": min(seconds[1:]), "peak": peak / 2**30}))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="random_vit_b")
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--modes", nargs="+", choices=["train", "inference"], default=["train", "inference"])
    parser.add_argument("--repeats", type=int, default=1, help="processes of each variant")
    parser.add_argument("--steps", type=int, default=2, help="timed steps in each process, after one that is not")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    parser.add_argument("--rel-pos", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.variant:
        measure(args.variant, args)
        return 0
    print(f"{args.backbone}, {args.image_size} px, window 14, batch 1, 10 objects")
    for precision in args.precision:
        for mode in args.modes:
            for rel_pos in (True, False):
                compare(args, precision, mode, rel_pos)
    return 0


def compare(args: argparse.Namespace, precision: str, mode: str, rel_pos: bool) -> None:
    """Both variants in turn at the same precision; prints times, peaks and ratios."""
    results: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(args.repeats):
        for variant in VARIANTS:
            command = [sys.executable, __file__, "--variant", variant, "--backbone", args.backbone]
            command += ["--image-size", str(args.image_size), "--precision", precision, "--mode", mode]
            command += ["--steps", str(args.steps), *(["--rel-pos"] if rel_pos else [])]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[variant].append(json.loads(done.stdout.splitlines()[-1]))
    shown = ", ".join(
        f"{variant} {statistics.median(one['seconds'] for one in runs):.2f} s "
        f"{max(one['peak'] for one in runs):.2f} GiB"
        for variant, runs in results.items()
    )
    pairs = list(zip(results["mae_transfer"], results["detectron2"], strict=True))
    speed = statistics.median(theirs["seconds"] / ours["seconds"] for ours, theirs in pairs)
    memory = statistics.median(ours["peak"] / theirs["peak"] for ours, theirs in pairs)
    what = f"{precision}, {mode}, {'with' if rel_pos else 'without'} relative positions"
    print(f"  {what}: {shown}; speed {speed:.2f}x, memory {memory:.2f}x", flush=True)


if __name__ == "__main__":
    sys.exit(main())
