"""Time and memory of all tables from 10,000 run records, reading them included.

    python benchmarks/tables.py [--records 10000] [--epochs 100]

Makes the records in a temporary folder: all tasks, protocols, sizes and initialisations over seeds and learning rates,
each of the size of a real record with its history. Then it runs tools/make_tables.py in a process of its own, imports
included, and prints wall time, peak resident memory and, as a peer, the time of json.loads alone on the same files.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mae_transfer.run_folder.schema import SCHEMA
from mae_transfer.run_folder.settings import settings_id
from mae_transfer.runs.tasks import task_card

DATA = {"coco": "COCO val2017", "ade20k": "ADE20K val", "imagenet": "ImageNet-1K val"}
DATA |= {"inat2018": "iNaturalist 2018 val", "places365": "Places365 val"}
INITS = ("random", "sup", "mocov3", "dino", "beit", "mae")
TOOL = Path(__file__).parents[1] / "tools" / "make_tables.py"


def make_records(folder: Path, count: int, epochs: int) -> int:
    """Write the records; their bytes."""
    draw, size = random.Random(0), 0
    kinds = [("coco", ""), ("ade20k", "")]
    kinds += itertools.product(("imagenet", "inat2018", "places365"), ("finetune", "linear", "knn"))
    grid = itertools.product(range(10**6), (1e-4, 2e-4, 4e-4), kinds, INITS, "blh")
    for number, (seed, rate, (task, kind), init, letter) in enumerate(itertools.islice(grid, count)):
        record = make_record(number, task, kind, init, letter, seed, rate, epochs, draw)
        run = folder / f"{task}-{number:06d}"
        (run / "checkpoints").mkdir(parents=True)
        text = json.dumps(record, indent=1)
        (run / "record.json").write_text(text)
        size += len(text)
    return size


def make_record(
    number: int, task: str, kind: str, init: str, size: str, seed: int, rate: float, epochs: int, draw: random.Random
) -> dict[str, Any]:
    names = {"coco": ["box_AP", "mask_AP"], "ade20k": ["mIoU", "mAcc", "aAcc"]}.get(task, ["top1", "top5"])
    names += [f"more_{i}" for i in range(20)] if task == "coco" else ["mean_per_class"]
    losses = ("loss", "loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")
    protocol: dict[str, Any] = {f"section.key_{i}": i * 0.1 for i in range(70)}
    protocol |= {"recipe": f"{task}_{kind}", "optim.lr": rate, "size": size}
    protocol |= {"protocol": kind, "model.blocks": None, "data.image_size": 224} if kind else {}
    return {
        "schema": SCHEMA,
        "run_id": f"20260101T{number:06d}-{draw.getrandbits(32):08x}",
        "recipe": protocol["recipe"],
        "preset": "full",
        "seed": seed,
        "backbone": {
            **{"name": f"{init}_vit_{size}", "init": init, "size": size, "weights": "pretrained"},
            **{"checkpoint": None, "fingerprint": f"{init}{size}", "trained_as": None},
            "load_report": [f"line {i} of what was loaded, resized and left new" for i in range(6)],
        },
        "metrics": {name: draw.uniform(30, 60) for name in names},
        "history": [
            {"epoch": i, "step": 1848 * i, "lr": rate / i, **{name: draw.random() for name in losses}}
            for i in range(1, epochs + 1)
        ],
        "steps": 1848 * epochs,
        "data": {"name": DATA[task], "fingerprint": task, "train_images": 1, "val_images": 1, "blind": 0.1, "draw": 0},
        **task_card(task).describe(),
        "row": task_card(task).row(kind or None),
        "settings_id": settings_id(protocol),
        "settings": protocol,
        "parameters": 10**8,
        "encoder_flops": 10**11,
        "per_image": None,
        "wall_seconds": draw.uniform(1e3, 1e5),
        "peak_memory_bytes": 2**34,
        "images_per_second": 100.0,
        "device": "NVIDIA H100",
        "world_size": 8,
        "versions": {f"package-{i}": "1.2.3" for i in range(14)},
        "command": ["tools/run_transfer.py", "--task", task],
        "finished": "2026-01-01T00:00:00+00:00",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=100, help="entries of each record's history; default: 100")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = make_records(folder / "runs", args.records, args.epochs)
        print(f"{args.records} records, {size / 1e6:.0f} MB")
        command = [sys.executable, str(TOOL), "--runs", str(folder / "runs"), "--output", str(folder / "tables.md")]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            raise SystemExit(f"make_tables.py failed with status {status}")
        lines = len((folder / "tables.md").read_text().splitlines())
        print(f"make_tables.py: {seconds:.2f} s (CPU {usage.ru_utime + usage.ru_stime:.2f} s), ", end="")
        print(f"peak {usage.ru_maxrss / 1024:.0f} MiB, {lines} lines")
        started = time.perf_counter()
        for path in folder.rglob("record.json"):
            json.loads(path.read_bytes())
        print(f"json.loads of the same files alone: {time.perf_counter() - started:.2f} s")


if __name__ == "__main__":
    main()
