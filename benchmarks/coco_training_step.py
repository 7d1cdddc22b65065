#!/usr/bin/env python
"""One training step of this detector against torchvision's stock Mask R-CNN on the same windowed ViT: time and memory.

    python benchmarks/coco_training_step.py                        # ViT-B, 1024 px, fp32 and bf16: some minutes, 8 GB
    python benchmarks/coco_training_step.py --backbone random_vit_ti --image-size 320 --repeats 5

Both have the same encoder, the same pyramid, the v2 heads (2-conv RPN, 4conv1fc box head, BN) and the same image with
ten objects; what differs is what lies between: torchvision's anchors, proposals (2000 in training), RoIAlign, losses
and soft mask targets against this project's, which has detectron2's arithmetic. Each variant runs in a process of its
own, so that peak memory is its own; the variants take turns, and the ratio of each turn is printed with the median.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

VARIANTS = ("mae_transfer", "torchvision")


def example(image_size: int):
    """An image uint8 (3, S, S), and the boxes (10, 4) xyxy and classes (10,) of its objects."""
    import numpy as np
    import torch

    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (3, image_size, image_size), dtype=np.uint8))
    corner = rng.uniform(0, image_size * 0.6, (10, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(image_size * 0.05, image_size * 0.4, (10, 2))], axis=1)
    return image, boxes, rng.integers(0, 80, 10)


def build_ours(backbone: str, image_size: int, rel_pos: bool):
    """This project's detector and a batch for it."""
    import numpy as np
    import torch

    from mae_transfer import load_backbone
    from mae_transfer.runs.resolve import load_config
    from mae_transfer.tasks.coco.model import build_mask_rcnn

    torch.manual_seed(0)
    encoder = load_backbone(backbone, weights="random", img_size=image_size, window_size=14, rel_pos=rel_pos)
    config = load_config("coco", backbone, overrides=[f"data.image_size={image_size}"])
    model = build_mask_rcnn(encoder, 80, config).train()
    image, boxes, classes = example(image_size)
    target = {
        "boxes": torch.from_numpy(boxes).float(),
        "classes": torch.from_numpy(classes),
        "masks": [[np.array([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in boxes],
        "seed": 0,
    }
    return model, {
        "images": [image],
        "targets": [target],
        "image_ids": [1],
        "file_names": ["one.jpg"],
        "sizes": [image.shape[1:]],
    }


def build(variant: str, backbone: str, image_size: int, rel_pos: bool):
    """The detector of a variant and a function that runs one training step."""
    if variant == "mae_transfer":
        detector, batch = build_ours(backbone, image_size, rel_pos)
        return detector, lambda: sum(detector(batch).values())

    import torch
    from torch import nn
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
    from torchvision.models.detection.rpn import RPNHead

    from mae_transfer import load_backbone
    from mae_transfer.adapters.vit_fpn import ViTFPN

    torch.manual_seed(0)
    encoder = load_backbone(backbone, weights="random", img_size=image_size, window_size=14, rel_pos=rel_pos)
    image, boxes, classes = example(image_size)

    class Backbone(nn.Module):
        out_channels = 256

        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.pyramid = encoder, ViTFPN(encoder.embed_dim)

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            maps = self.pyramid(self.encoder(images))
            return {"pool" if name == "p6" else str(i): m for i, (name, m) in enumerate(maps.items())}

    model = MaskRCNN(
        Backbone(),
        num_classes=81,
        min_size=image_size,
        max_size=image_size,
        size_divisible=32,
        rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5),
        rpn_head=RPNHead(256, 3, conv_depth=2),
        box_head=FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=nn.BatchNorm2d),
        mask_head=MaskRCNNHeads(256, [256] * 4, 1, norm_layer=nn.BatchNorm2d),
    )
    model.train().transform._skip_resize = True
    masks = torch.zeros(10, image_size, image_size, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().astype(int), strict=True):
        mask[y0:y1, x0:x1] = 1
    truth = {"boxes": torch.from_numpy(boxes).float(), "labels": torch.from_numpy(classes) + 1, "masks": masks}
    picture = image.float() / 255
    device = "cuda" if torch.cuda.is_available() else "cpu"
    picture, truth = picture.to(device), {name: value.to(device) for name, value in truth.items()}
    return model, lambda: sum(model([picture], [truth]).values())


def measure(variant: str, backbone: str, image_size: int, precision: str, steps: int, rel_pos: bool) -> None:
    """In a process of its own: print the seconds of each step and the peak memory as JSON."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, loss_of = build(variant, backbone, image_size, rel_pos)
    model.to(device)
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of()
        loss.backward()
        model.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds[1:], "peak": peak}))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="random_vit_b")
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=3, help="processes of each variant")
    parser.add_argument("--steps", type=int, default=2, help="timed steps in each process, after one that is not")
    parser.add_argument("--rel-pos", action="store_true", help="with the recipe's relative position bias")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.variant:
        measure(args.variant, args.backbone, args.image_size, args.precision[0], args.steps, args.rel_pos)
        return 0
    bias = "with" if args.rel_pos else "without"
    print(f"{args.backbone}, {args.image_size} px, window 14, {bias} relative position bias, batch 1, 10 objects")
    for precision in args.precision:
        results: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
        for _ in range(args.repeats):
            for variant in VARIANTS:
                command = [sys.executable, __file__, "--variant", variant, "--backbone", args.backbone]
                command += ["--image-size", str(args.image_size), "--precision", precision, "--steps", str(args.steps)]
                command += ["--rel-pos"] if args.rel_pos else []
                out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                results[variant].append((min(out["seconds"]), out["peak"] / 2**30))
        for variant in VARIANTS:
            seconds, peaks = zip(*results[variant], strict=True)
            print(
                f"  {precision} {variant:13} {statistics.median(seconds):7.2f} s a step, {max(peaks):5.2f} GiB at most"
            )
        ours, stock = (results[variant] for variant in VARIANTS)
        speed = [b[0] / a[0] for a, b in zip(ours, stock, strict=True)]
        memory = [a[1] / b[1] for a, b in zip(ours, stock, strict=True)]
        print(
            f"  {precision} speed {statistics.median(speed):.2f}x torchvision's "
            f"({min(speed):.2f} to {max(speed):.2f}), "
            f"memory {statistics.median(memory):.2f}x"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
