"""Run folders for the tests of plots and report: records of all tasks, histories, logs, pictures, hostile names."""

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image
from support.records import described

from mae_transfer.run_folder.pictures import Picture, write_pictures
from mae_transfer.run_folder.record import write_json
from mae_transfer.run_folder.schema import SCHEMA

HOSTILE = "<img src=x onerror=alert(1)></script><script>window.hacked=1</script>\"'&$x_1$"
SCHEDULE = {
    "kind": "cosine",
    "epochs": 6.0,
    "steps": None,
    "warmup_epochs": 1.0,
    "warmup_steps": None,
    "warmup_factor": 0.0,
    "after_warmup": "restart",
    "milestones": [],
    "gamma": 0.1,
    "power": 1.0,
    "min_lr_ratio": 0.0,
}
IMAGES, BATCH, EPOCHS = 800, 80, 6


def record(
    number: int,
    task: str,
    metrics: dict[str, float | None],
    *,
    init: str = "mae",
    size: str = "b",
    seed: int = 0,
    preset: str = "full",
    data: str = "5 classes (800 train, 100 val images)",
    protocol: dict[str, Any] | None = None,
    weights: str = "w0",
    trained_as: str | None = None,
    hours: float = 1.0,
) -> dict[str, Any]:
    """A whole record with a history of six epochs by a cosine of ten steps each."""
    flat = {
        "recipe": "mask_rcnn_li2021",
        "optim.lr": 1e-3,
        "train.global_batch": BATCH,
        "data.image_size": 224,
        **{f"schedule.{key}": value for key, value in SCHEDULE.items()},
        **(protocol or {}),
    }
    steps = IMAGES // BATCH
    rates = [1e-3 * (1 + math.cos(math.pi * (epoch * steps - 1 - steps) / (5 * steps))) / 2 for epoch in range(1, 7)]
    rates[0] = 1e-3 * (steps - 1) / steps  # the last step of the warm-up
    return {
        "schema": SCHEMA,
        "run_id": f"20260102T03{number:04}-{number:08x}",
        "recipe": "mask_rcnn_li2021",
        "preset": preset,
        "seed": seed,
        "backbone": {
            "name": f"{init}_vit_{size}" if len(init) < 12 else f"vit_{size}",
            "init": init,
            "size": size,
            "weights": "pretrained",
            "checkpoint": None,
            "fingerprint": weights,
            "trained_as": trained_as,
            "load_report": [f"{init}: 150 tensors loaded", "  new: norm.weight, norm.bias: ones and zeros"],
        },
        "metrics": metrics,
        "history": [
            {"epoch": e, "step": e * steps, "lr": rates[e - 1], "loss": 3 / e, "loss_a": 2 / e, "loss_b": 1 / e}
            | ({"eval": {name: (value or 0) * e / 7 for name, value in metrics.items()}} if e in (2, 4) else {})
            for e in range(1, EPOCHS + 1)
        ],
        "steps": EPOCHS * steps,
        "data": {
            "name": data,
            "fingerprint": f"f-{data[:8]}",
            "train_images": IMAGES,
            "val_images": 100,
            "classes": 5,
            "blind": 20.0,
            "draw": 0,
            "skipped_files": [],
        },
        **described(task, flat),
        "parameters": 86_000_000,
        "wall_seconds": 3600 * hours,
        "peak_memory_bytes": 3 * 2**30,
        "images_per_second": 512.5,
        "device": "NVIDIA A100",
        "world_size": 8,
        "commit": "0123abcd",
        "versions": {"python": "3.11", "torch": "2.6"},
        "command": ["tools/run_transfer.py", "--task", task],
        "finished": "2026-01-02T03:04:05+00:00",
    }


def all_records() -> list[dict[str, Any]]:
    """Sizes, seeds, blocks, mask ratios and costs that differ."""
    found: list[dict[str, Any]] = []

    def add(task: str, metrics: dict[str, float | None], **options: Any) -> None:
        found.append(record(len(found), task, metrics, **options))

    for init, gain in (("mae", 2.0), ("sup", 0.0)):
        for size, base, hours in (("b", 48.0, 10), ("l", 51.0, 40)):
            for seed in range(3):
                box = base + gain + 0.3 * seed
                options: dict[str, Any] = {"data": "COCO val2017", "hours": hours, "seed": seed}
                add("coco", {"box_AP": box, "mask_AP": box - 5}, init=init, size=size, **options)
    for blocks in (0.5, 1.0, 4.0, 12.0):
        for seed in range(2):
            partial = {"protocol": "partial", "recipe": "partial_mae", "model.blocks": blocks}
            add("folder", {"top1": 70 + 2 * blocks**0.5 + seed}, protocol=partial, seed=seed)
    add("folder", {"top1": 61.0}, protocol={"protocol": "linear", "recipe": "linear_mae", "model.blocks": None})
    for ratio, value in ((0.25, 81.0), (0.5, 83.0), (0.75, 84.0)):
        pretraining = {"method": "mae", "recipe": "pretrain_mae", "mask.ratio": ratio}
        add("pretrain", {"val_loss": 0.4 + ratio / 10}, init="random", protocol=pretraining, preset="mini")
        options = {"init": "MAE (this project)", "trained_as": found[-1]["settings_id"], "weights": f"p{ratio}"}
        finetune = {"protocol": "finetune", "recipe": "finetune_mae", "model.blocks": None}
        add("folder", {"top1": value}, protocol=finetune, preset="mini", **options)
    add("ade20k", {"mIoU": None}, init=HOSTILE, data=HOSTILE, preset="smoke", protocol={HOSTILE: HOSTILE})
    found[-1]["backbone"]["load_report"] = [HOSTILE]
    found[-1]["versions"] = {HOSTILE: HOSTILE}
    found[-1]["command"] = [HOSTILE]
    found[-1]["data"]["skipped_files"] = [HOSTILE]
    return found


def write_runs(root: Path) -> Path:
    """A run folder for each of `all_records`; the first has pictures, the last a hostile log, and one is broken."""
    records = all_records()
    for number, one in enumerate(records):
        folder = root / f"run{number:02}"
        folder.mkdir(parents=True)
        write_json(folder / "record.json", one)
    picture = Picture(Image.new("RGB", (400, 200), (90, 140, 60)), HOSTILE, "4 objects; " + HOSTILE)
    write_pictures(root / "run00", [picture, picture])
    (root / "run00" / "config.yaml").write_text("task: coco\n")
    last = root / f"run{len(records) - 1:02}"
    (last / "log.txt").write_text(f"2026-01-02 03:04:05,000 WARNING {HOSTILE}\n")
    (root / "broken").mkdir()
    (root / "broken" / "record.json").write_text(json.dumps(records[0])[:200])
    return root
