#!/usr/bin/env python
"""How fast are images read, augmented and batched, against the usual Pillow + torchvision v1 transforms, on one core?

    python benchmarks/classification_input.py --images /data/imagenet/val     # any folder of JPEGs, at any depth

Both sides read the same files and make batches of RandomResizedCrop (bicubic, 224) and flipped images in one process
and one thread: the reference as facebookresearch/mae's linear probe does (Pillow, v1 transforms, ToTensor, Normalize,
default_collate), ours with this project's data set (torchvision.io, uint8 kernels; normalised later, on the device).
The sides take turns, the medians of the rounds are compared. With --resize the files are first scaled to one size and
saved again as JPEG. Prints images/s, and exits with 1 below the ratio 2. Measured: see docs/classification.md.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision import transforms

from mae_transfer.backbones import registry
from mae_transfer.backbones.encoder import Encoder
from mae_transfer.data.decode import read_rgb
from mae_transfer.data.names import Names
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.data import ClassificationTrain
from mae_transfer.tasks.classification.layouts.listing import Listing
from mae_transfer.tasks.classification.transforms import TrainTransform

WANTED = 2.0
BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPTIONS = ["data.randaugment=null", "model.mixup=0", "model.cutmix=0"]


def scaled(paths: list[Path], size: tuple[int, int], quality: int, folder: Path) -> list[Path]:
    """The landscape images among these, scaled to (width, height)."""
    made = []
    for path in paths:
        with Image.open(path) as image:
            if image.width > image.height:
                target = folder / f"{len(made):05d}.jpg"
                image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target, quality=quality)
                made.append(target)
    return made


def reference(paths: list[Path]) -> Callable[[], int]:
    """Pillow and torchvision's v1 transforms, as in facebookresearch/mae main_linprobe.py."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def run() -> int:
        for start in range(0, len(paths), BATCH):
            samples = []
            for path in paths[start : start + BATCH]:
                with path.open("rb") as file:
                    samples.append((transform(Image.open(file).convert("RGB")), 0))
            default_collate(samples)
        return len(paths)

    return run


def ours(paths: list[Path], *, normalised: bool = False) -> Callable[[], int]:
    """The training data set of this project; `normalised` also does on this core what is left to the device."""
    config = load_config("imagenet", "random_vit_b", overrides=OPTIONS)
    assert isinstance(config, ClassificationConfig)
    listing = Listing(paths[0].parent, Names(str(path) for path in paths), np.zeros(len(paths), dtype=np.int64))
    indices = np.arange(len(paths))
    dataset = ClassificationTrain(listing, indices, TrainTransform(config, MEAN), seed=0, on_bad_image="error")
    encoder = Encoder(registry.find("random_vit_b"), None, None, 224)
    epoch = 0

    def run() -> int:
        nonlocal epoch
        epoch += 1
        for start in range(0, len(paths), BATCH):
            keys = range(start, min(start + BATCH, len(paths)))
            batch = dataset.collate([dataset[(epoch, index)] for index in keys])
            if normalised:
                encoder.normalise(batch["images"])
        return len(paths)

    return run


def decode_pillow(paths: list[Path]) -> Callable[[], int]:
    def run() -> int:
        for path in paths:
            with path.open("rb") as file:
                Image.open(file).convert("RGB")
        return len(paths)

    return run


def decode_ours(paths: list[Path]) -> Callable[[], int]:
    def run() -> int:
        for path in paths:
            read_rgb(str(path))
        return len(paths)

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder with JPEG files, at any depth")
    parser.add_argument("--count", type=int, default=256, help="images to use; default: 256")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--resize", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="scale the files first")
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality with --resize; default: 95")
    args = parser.parse_args()

    torch.set_num_threads(1)
    files = sorted(p for p in args.images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[: args.count]
    with tempfile.TemporaryDirectory() as temporary:
        if args.resize:
            files = scaled(files, tuple(args.resize), args.quality, Path(temporary))
        if not files:
            print(f"error: no JPEG files below {args.images}", file=sys.stderr)
            return 2
        size = statistics.mean(path.stat().st_size for path in files) / 1000
        sides = {
            "Pillow + v1 transforms, normalised": reference(files),
            "ours, uint8 for the device": ours(files),
            "ours, normalised on this core": ours(files, normalised=True),
            "Pillow, decode alone": decode_pillow(files),
            "torchvision.io, decode alone": decode_ours(files),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(args.rounds + 1):
            for name, run in sides.items():
                started = time.perf_counter()
                images = run()
                if number:  # the first round warms up
                    rates[name].append(images / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    base = medians["Pillow + v1 transforms, normalised"]
    print(f"{len(files)} JPEGs of {size:.0f} kB on average, one process, one thread, median of {args.rounds} rounds")
    for name, rate in medians.items():
        print(f"{name:36s} {rate:7.0f} images/s  {rate / base:5.2f}x")
    return 0 if medians["ours, uint8 for the device"] >= WANTED * base else 1


if __name__ == "__main__":
    sys.exit(main())
