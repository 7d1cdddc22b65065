"""The curve of partial fine-tuning from run records: accuracy over the number of trained blocks (MAE Figure 9).

Imports neither torch nor tasks; matplotlib when a picture is drawn.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from mae_transfer.atomic import atomic_write
from mae_transfer.results.classification_tables import TITLES
from mae_transfer.results.tables import INIT_TITLES, read_published


def curve_points(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per series and number of blocks: `name`, `blocks`, `top1` (the mean over seeds and draws), `std`, `n`.

    The linear probe stands at 0 blocks.
    """
    rows = []
    for record in records:
        protocol = record["protocol"].get("protocol")
        if protocol not in ("partial", "linear"):
            continue
        backbone = record["backbone"]
        rows.append(
            {
                "name": f"{INIT_TITLES.get(backbone['init'], backbone['init'])} {backbone['name']}",
                "blocks": record["protocol"]["model.blocks"] if protocol == "partial" else 0.0,
                "top1": record["metrics"]["top1"],
            }
        )
    frame = pd.DataFrame(rows, columns=["name", "blocks", "top1"])
    groups = frame.groupby(["name", "blocks"], sort=True)["top1"]
    return groups.agg(top1="mean", std="std", n="count").reset_index()


def draw_curve(records: list[dict[str, Any]], stem: Path) -> None:
    """Write `<stem>.csv` and `<stem>.png`; the published curves of ViT-L join full runs on ImageNet-1K."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = curve_points(records)
    stem.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(stem.with_name(stem.name + ".csv")) as file:
        file.write(points.to_csv(index=False).encode())
    figure, axes = pyplot.subplots(figsize=(6, 4))
    places = sorted(points["blocks"].unique())
    quoted = _published(records)
    places = sorted({*places, *quoted["blocks"]})
    at = {blocks: place for place, blocks in enumerate(places)}  # evenly spaced, as in the paper
    for name, series in points.groupby("name", sort=True):
        x = series["blocks"].map(at)
        axes.errorbar(x, series["top1"], yerr=series["std"].fillna(0), marker="o", capsize=2, label=str(name))
    for name, series in quoted.groupby("name", sort=True):
        axes.plot(series["blocks"].map(at), series["value"], marker="x", linestyle="--", label=str(name))
    axes.set_xticks(range(len(places)), [f"{blocks:g}" for blocks in places])
    axes.set_xlabel("blocks fine-tuned (0: linear probe)")
    axes.set_ylabel("top-1 accuracy (%)")
    data = records[0]["data"]["name"]
    axes.set_title(f"{records[0]['task']}, {records[0]['preset']}: {data}", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with atomic_write(stem.with_name(stem.name + ".png")) as file:
        figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)


def _published(records: list[dict[str, Any]]) -> pd.DataFrame:
    """The paper's curves where the records are comparable with them, else none."""
    table = read_published()
    table = table[(table["task"] == "imagenet") & (table["protocol"] == "partial")]
    sizes = {record["backbone"]["size"] for record in records}
    full = all(r["preset"] == "full" and r["data"]["name"] == TITLES["imagenet"] for r in records)
    table = table[table["size"].isin(sizes)] if full and records[0]["task"] == "imagenet" else table.iloc[:0]
    names = table["init"].map(lambda init: INIT_TITLES.get(init, init)) + ", published (MAE Figure 9)"
    return table.assign(name=names)[["name", "blocks", "value"]].sort_values(["name", "blocks"])
