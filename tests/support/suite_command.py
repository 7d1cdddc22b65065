"""A small suite and what its runs left."""

import re
from pathlib import Path
from typing import Any

import yaml

from mae_transfer.results.tables.build import make_tables
from mae_transfer.run_folder.metrics import read_metrics
from mae_transfer.run_folder.record import read_records

STEPS = 150


SUITE: dict[str, Any] = {
    "name": "tiny",
    "preset": "smoke",
    "pretrain_overrides": ["device=cpu", "data.image_size=32", f"schedule.steps={STEPS}", "train.checkpoint_every=10"],
    "overrides": ["device=cpu", "data.image_size=32"],
    "pretrain": [{"label": "mae", "method": "mae", "backbone": "vit_nano_p8", "data": "folder"}],
    "backbones": [{"name": "random_vit_nano"}],
    "tasks": [{"task": "folder", "protocol": "knn"}],
}


def arguments(folder: Path, data: Path, name: str = "suite", output: str = "out", **changes: Any) -> list[str]:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(SUITE | changes))
    return [str(path), "--output", str(folder / output), "--data", f"folder={data}"]


def steps_of(output: Path) -> int:
    """Of the pre-training below a folder."""
    return max((len(read_metrics(path)) for path in output.glob("pretrain-*")), default=0)


def results(output: Path) -> tuple[str, list[Any]]:
    """The tables but for costs, and all metrics by run: what has to be the same however the suite came about."""
    records, left_out = read_records(output)
    assert not left_out
    metrics = [(r["task"], r["backbone"]["init"], r["seed"], r["metrics"], r["steps"]) for r in records]
    sections = re.split("^(?=## )", make_tables(records), flags=re.MULTILINE)
    same = [text for text in sections if not text.partition("\n")[0].endswith(": costs")]
    assert len(same) < len(sections)
    return "".join(same), sorted(metrics, key=str)
