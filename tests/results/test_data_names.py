"""Data sets in titles: one set is one table whatever it is called, two sets of one name are told apart."""

import csv
import io
from typing import Any

from support.records import described
from support.tables import make_tables

from mae_transfer.results.plots.comparisons import comparison_plots
from mae_transfer.run_folder.schema import SCHEMA

OWN = "shapes (40 train, 20 val images)"


def record(number: int, name: str, fingerprint: str, task: str = "coco", size: str = "b") -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "run_id": f"run{number}",
        "backbone": {"name": f"mae_vit_{size}", "init": "mae", "size": size, "fingerprint": "w"},
        "preset": "full",
        "seed": number,
        **described(task, {"recipe": "r"}),
        "metrics": {"box_AP": 30.0 + number, "mask_AP": 20.0} if task == "coco" else {"mIoU": 40.0},
        "data": {"name": name, "fingerprint": fingerprint},
    }


def titles(*records: dict[str, Any]) -> list[str]:
    """Of the tables that hold runs."""
    lines = csv.DictReader(io.StringIO(make_tables(records, style="csv")))
    found = dict.fromkeys(line["table"] for line in lines if line["row"] == "MAE")
    return [title for title in found if ": differences" not in title]


def test_a_set_of_ones_own_is_called_neither_coco_nor_ade20k() -> None:
    assert titles(record(0, OWN, "f0")) == [f"Detection, full: {OWN}, recipe r"]
    assert titles(record(0, OWN, "f0", "ade20k")) == [f"Segmentation, full: {OWN}, recipe r"]
    assert titles(record(0, "COCO val2017", "f0")) == ["COCO: COCO val2017, recipe r"]
    old = record(0, OWN, "f0")
    del old["kind"]
    assert titles(old) == [f"Detection, full: {OWN}, recipe r"], "a record from before the key"
    (plot,) = comparison_plots([record(0, OWN, "f0"), record(1, OWN, "f0", size="l")])[:1]
    assert "coco" not in (plot.title + plot.stem).lower()
    assert plot.stem.startswith("size-detection-r-full-shapes-box-ap")


def test_one_set_is_one_table_and_two_of_one_name_are_two() -> None:
    renamed = record(1, "forms (40 train, 20 val images)", "f0")
    assert titles(record(0, OWN, "f0"), renamed) == ["Detection, full: forms (40 train, 20 val images), recipe r"]
    two = titles(record(0, OWN, "abcd01"), record(1, OWN, "abcd02"))
    assert two == [f"Detection, full: {OWN} [abcd0{i}], recipe r" for i in (1, 2)]
    both = titles(record(0, "COCO val2017", "f0"), record(1, OWN, "f0"))
    assert both == ["COCO: COCO val2017, recipe r", f"Detection, full: {OWN}, recipe r"], "named, so not the benchmark"
