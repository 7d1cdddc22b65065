#!/usr/bin/env python
"""Training images a second that one core reads, augments and batches, by task, beside the usual loader of each.

    python benchmarks/input.py --coco /data/coco --ade20k /data/ADEChallengeData2016 --photos /data/imagenet/val

A task without data is left out. Both sides take the same files and make uint8 or float batches of 16 in one process and
one thread; they take turns, and the medians of the rounds count. Seconds are of the process, so other work on the
machine matters little. `--photos` is any folder of JPEGs; classification and pre-training scale them to ImageNet's mean
size and to iNaturalist 2018's first (`--sizes`). Beside:

coco       Pillow and torchvision v2's ScaleJitter, RandomCrop and flip (as torchvision's `lsj` preset), with boxes;
           ours cuts polygons as well
ade20k     mmsegmentation's training pipeline; without it, the row has no ratio
finetune   Pillow and torchvision v1's RandomResizedCrop, flip and RandAugment of two operations
linear, pretrain    Pillow and torchvision v1's RandomResizedCrop and flip, as MAE's main_linprobe.py, main_pretrain.py

The last column is a calculation: the cores that feed one H100 which takes as many images as `--share` of its bf16 peak
allows, at the operations of a step of ViT-B (TFLOP below).
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision import transforms, tv_tensors
from torchvision.transforms import v2

from mae_transfer.runs.resolve import load_config
from mae_transfer.runs.tasks import make_task

BATCH = 16
PEAK = 989.0
"""TFLOP/s of an H100 in bf16, as NVIDIA states."""
TFLOP = {"coco": 4.78, "ade20k": 3.66, "finetune": 0.106, "linear": 0.035, "pretrain": 0.0575}
"""Of an image in a training step of ViT-B, by `mae-transfer plan`; of linear the forward pass alone."""
BICUBIC = transforms.InterpolationMode.BICUBIC
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batches = Callable[[int], int]
"""Makes all batches of an epoch, and says of how many images."""


def ours(task: str, backbone: str, protocol: str | None, count: int, *overrides: str) -> Batches:
    config = load_config(task, backbone, protocol=protocol, overrides=["data.workers=0", *overrides])
    dataset = make_task(config).train_dataset
    indices = range(min(count, len(dataset)))

    def run(epoch: int) -> int:
        for start in indices[::BATCH]:
            dataset.collate([dataset[(epoch, index)] for index in indices[start : start + BATCH]])
        return len(indices)

    return run


def beside(sample: Callable[[int], Any], count: int, collate: Callable[[list[Any]], Any]) -> Batches:
    def run(_: int) -> int:
        for start in range(0, count, BATCH):
            collate([sample(index) for index in range(start, min(start + BATCH, count))])
        return count

    return run


def coco(root: Path, count: int) -> tuple[Batches, Batches]:
    run = ours("coco", "random_vit_b", None, count, f"data.root={root}")
    config = load_config("coco", "random_vit_b", overrides=[f"data.root={root}", "data.workers=0"])
    images: Any = make_task(config).train_dataset
    transform = v2.Compose([
        v2.ScaleJitter((1024, 1024), (0.1, 2.0)), v2.RandomCrop(1024, pad_if_needed=True),
        v2.RandomHorizontalFlip(), v2.PILToTensor(), v2.SanitizeBoundingBoxes(labels_getter=None),
    ])  # fmt: skip

    def sample(index: int) -> Any:
        image = Image.open(images.folder / images.file_name(index)).convert("RGB")
        corners = [(x, y, x + w, y + h) for x, y, w, h in (each.bbox for each in images.record(index).objects)]
        boxes = torch.tensor(corners, dtype=torch.float32).view(-1, 4)
        return transform(image, tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(image.height, image.width)))

    return run, beside(sample, min(count, len(images)), list)


def ade20k(root: Path, classes: int, count: int) -> tuple[Batches, Batches | None]:
    run = ours("ade20k", "random_vit_b", None, count, f"data.root={root}", f"data.num_classes={classes}")
    try:
        import mmseg.datasets.transforms  # noqa: F401
        from mmengine.dataset import Compose
        from mmengine.registry import init_default_scope
    except ImportError:
        return run, None
    init_default_scope("mmseg")
    pipeline = Compose([
        {"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "reduce_zero_label": True},
        {"type": "RandomResize", "scale": (2048, 512), "ratio_range": (0.5, 2.0), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (512, 512), "cat_max_ratio": 0.75}, {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"}, {"type": "PackSegInputs"},
    ])  # fmt: skip
    files = sorted((root / "images/training").iterdir())[:count]

    def sample(index: int) -> Any:
        mask = root / "annotations/training" / f"{files[index].stem}.png"
        return pipeline({"img_path": str(files[index]), "seg_map_path": str(mask), "seg_fields": [],
                         "reduce_zero_label": True})  # fmt: skip

    return run, beside(sample, len(files), list)


def photos(kind: str, root: Path, count: int) -> tuple[Batches, Batches]:
    """root: class folders below `train`."""
    usual = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    if kind == "pretrain":
        run = ours("pretrain", "vit_b", "mae", count, f"data.root={root}")
        crop = transforms.RandomResizedCrop(224, (0.2, 1.0), interpolation=BICUBIC)
        transform = transforms.Compose([crop, *usual])
    elif kind == "linear":
        run = ours("folder", "random_vit_b", "linear", count, f"data.root={root}")
        transform = transforms.Compose([transforms.RandomResizedCrop(224, interpolation=BICUBIC), *usual])
    else:
        run = ours("folder", "random_vit_b", "finetune", count, f"data.root={root}")
        crop = transforms.RandomResizedCrop(224, interpolation=BICUBIC)
        transform = transforms.Compose([crop, usual[0], transforms.RandAugment(2, 9), *usual[1:]])
    files = sorted((root / "train").rglob("*.jpg"))[:count]

    def sample(index: int) -> Any:
        with files[index].open("rb") as file:
            return transform(Image.open(file).convert("RGB")), 0

    return run, beside(sample, len(files), default_collate)


def scaled(source: Path, size: tuple[int, int], count: int, folder: Path) -> Path:
    """Photographs of one (width, height) in class folders."""
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for number, path in enumerate(files[:count]):
        target = folder / ("val" if number % 16 == 0 else "train") / f"class{number % 2}" / f"{number:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target, quality=95)
    return folder


def measure(sides: Sequence[Batches], rounds: int) -> list[float]:
    """Images per second of the process, the medians of the rounds; a round before warms up."""
    rates: list[list[float]] = [[] for _ in sides]
    for epoch in range(rounds + 1):
        for side, found in zip(sides, rates, strict=True):
            started = time.process_time()
            images = side(epoch)
            found.append(images / (time.process_time() - started))
    return [statistics.median(found[1:]) for found in rates]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, help="a set of COCO's layout")
    parser.add_argument("--ade20k", type=Path, help="a set of ADE20K's layout")
    parser.add_argument("--classes", type=int, default=150, help="of --ade20k; default: 150")
    parser.add_argument("--photos", type=Path, help="a folder with JPEG files, at any depth")
    parser.add_argument("--sizes", nargs="+", default=["500x375", "800x600"], help="width x height of --photos")
    parser.add_argument("--count", type=int, default=128, help="images of each; default: 128")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.35, help="of the peak that a GPU reaches; default: 0.35")
    args = parser.parse_args()
    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as temporary:
        makers: dict[str, Callable[[], Sequence[Batches | None]]] = {}
        if args.coco:
            makers["coco"] = partial(coco, args.coco, args.count)
        if args.ade20k:
            makers["ade20k"] = partial(ade20k, args.ade20k, args.classes, args.count)
        for size in args.sizes if args.photos else []:
            width, height = (int(side) for side in size.split("x"))
            root = scaled(args.photos, (width, height), args.count, Path(temporary) / size)
            for kind in ("finetune", "linear", "pretrain"):
                makers[f"{kind} {size}"] = partial(photos, kind, root, args.count)
        if not makers:
            parser.error("give --coco, --ade20k or --photos")
        print(f"{'task':18s} images/s a core  beside  ratio  cores for an H100 at {args.share:.0%} of its peak")
        for name, make in makers.items():
            sides = [side for side in make() if side is not None]
            rate, *other = measure(sides, args.rounds)
            takes = args.share * PEAK / TFLOP[name.split()[0]]
            ratio = f"{other[0]:7.0f} {rate / other[0]:6.2f}" if other else f"{'':14s}"
            print(f"{name:18s} {rate:15.0f} {ratio}  {takes:6.0f} images/s: {np.ceil(takes / rate):.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
