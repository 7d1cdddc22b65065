"""The table on top: which runs share a column, what is marked, and the mean rank."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from support.records import described
from support.tables import make_tables

from mae_transfer.results.tables.build import build_tables
from mae_transfer.run_folder.schema import SCHEMA, RunRecord

COUNT = itertools.count()


def record(init: str, seed: int, value: float, task: str = "folder", kind: str = "linear", **change: Any) -> Any:
    """Of a ViT-B unless `size` says another."""
    dense = task in ("coco", "ade20k")
    settings = {"recipe": change.pop("recipe", "a"), "optim.lr": change.pop("lr", 0.1)}
    if not dense:
        settings["protocol"] = kind
    size = change.pop("size", "b")
    name = {"coco": "box_AP", "ade20k": "mIoU"}.get(task, "top1")
    backbone = {"name": f"{init}_vit_{size}", "init": init, "size": size, "fingerprint": change.pop("weights", "w0")}
    return {
        "schema": SCHEMA,
        "run_id": f"run{next(COUNT):04}",
        "backbone": backbone,
        "preset": change.pop("preset", "mini"),
        "seed": seed,
        **described(task, settings),
        "metrics": {name: value},
        "data": {"name": change.pop("data", "shapes"), "fingerprint": change.pop("fingerprint", "f0")},
        **change,
    }


def overview(records: list[Any], title: str = "Overview, mini") -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Heads and label -> cells of the first table."""
    tables = build_tables([RunRecord(**each) for each in records])
    assert tables[0].title == title
    return tables[0].head, {label: [cell.text for cell in cells] for label, cells in tables[0].rows}


def test_a_column_for_each_task_and_protocol_and_a_row_for_each_encoder() -> None:
    runs = [
        *(record("random", seed, 50 + seed) for seed in range(3)),
        *(record("mae", seed, value) for seed, value in enumerate((59, 60, 61.5))),
        record("mae", 0, 12.0, "coco", "coco"),
        record("random", 0, 30.0, kind="knn"),
    ]
    head, rows = overview(runs)
    assert head == ("encoder", "AP box: shapes", "top-1, linear: shapes", "top-1, knn: shapes")
    assert rows == {
        "random, B": ["-", "51.0 ± 1.0 (n=3)", "30.0 (n=1)"],
        "MAE, B": ["12.0 (n=1)", "60.2 ± 1.3 (n=3) †", "-"],
    }


def test_the_best_is_marked_only_where_its_interval_leaves_out_zero() -> None:
    first, second, third = (50.0, 51.0, 52.0), (48.0, 51.5, 51.0), (40.0, 41.5, 42.0)
    assert stats.ttest_rel(first, second).pvalue > 0.05 > stats.ttest_rel(first, third).pvalue
    runs = [record(i, s, v) for i, of in (("mae", first), ("sup", second), ("dino", third)) for s, v in enumerate(of)]
    _, rows = overview(runs)
    assert not any("†" in cell for cells in rows.values() for cell in cells), "the second may be as good"
    _, rows = overview([run for run in runs if run["backbone"]["init"] != "sup"])
    assert [label for label, cells in rows.items() if "†" in cells[0]] == ["MAE, B"]


def test_unlike_settings_data_and_presets_never_share_a_column() -> None:
    runs = [
        record("mae", 0, 1.0),
        record("sup", 0, 2.0),
        record("dino", 0, 3.0, lr=0.2),
        record("dino", 1, 4.0, lr=0.3),
        record("mae", 0, 5.0, size="l", lr=0.4),
        record("mae", 0, 6.0, fingerprint="f1f1f1"),
        record("mae", 0, 7.0, preset="full"),
    ]
    head, rows = overview(runs, "Overview")
    assert head == ("encoder", "top-1, linear: shapes [f0]")
    assert rows == {"MAE, B": ["7.0 (n=1)"]}
    tables = build_tables([RunRecord(**each) for each in runs])
    assert tables[1].title == "Overview, mini"
    cells = {head: [row[1][i].text for row in tables[1].rows] for i, head in enumerate(tables[1].head[1:])}
    shared = {head: [text for text in texts if text != "-"] for head, texts in cells.items()}
    assert sorted(map(sorted, shared.values())) == [
        ["1.0 (n=1)", "2.0 (n=1)"],
        *([f"{value:.1f} (n=1)"] for value in (3, 4, 5, 6)),
    ]
    notes = " ".join(tables[1].footnotes)
    assert "optim.lr 0.1 -> 0.2." in notes
    assert "optim.lr 0.1 -> 0.3." in notes
    assert len(tables[1].head) == len({*tables[1].head})


def test_settings_that_only_one_size_has_are_said_beside_its_usual_ones() -> None:
    runs = [record("mae", 0, 1.0), record("mae", 0, 2.0, size="l"), record("mae", 0, 3.0, lr=0.2)]
    table = build_tables([RunRecord(**each) for each in runs])[0]
    assert table.head == ("encoder", "top-1, linear: shapes", "top-1, linear: shapes, B [1]")
    assert "[1] top-1, linear: shapes, B: optim.lr 0.1 -> 0.2." in table.footnotes


def test_columns_of_two_tasks_or_copies_of_a_benchmark_are_told_apart() -> None:
    head, _ = overview([record("mae", 0, 1.0), record("mae", 0, 2.0, "inat2018")])
    assert head[1:] == ("top-1, linear: shapes, folder", "top-1, linear: shapes, inat2018")
    of_benchmark = {"task": "coco", "kind": "", "data": "COCO val2017"}
    head, _ = overview([record("mae", 0, 1.0, **of_benchmark), record("sup", 0, 2.0, **of_benchmark, fingerprint="f1")])
    assert head[1:] == ("AP box: COCO val2017 [f0]", "AP box: COCO val2017 [f1]")


def test_the_mean_rank_is_over_complete_rows() -> None:
    scores = {"mae": (60, 40), "sup": (60, 30), "dino": (50, 50), "beit": (99, None)}
    runs = [
        record(init, 0, float(value), kind=kind)
        for init, of in scores.items()
        for kind, value in zip(("linear", "knn"), of, strict=True)
        if value is not None
    ]
    head, rows = overview(runs)
    assert head[-1] == "mean rank"
    complete = [init for init in scores if None not in scores[init]]
    ranks = [stats.rankdata([-scores[init][i] for init in complete]) for i in range(2)]  # type: ignore[operator]
    expected = {init: (a + b) / 2 for init, a, b in zip(complete, *ranks, strict=True)}
    titles = {"mae": "MAE, B", "sup": "supervised, B", "dino": "DINO, B"}
    for init, mean in expected.items():
        assert float(rows[titles[init]][-1]) == pytest.approx(mean, abs=0.051)
    assert rows["BEiT, B"][-1] == "-"


def test_encoders_of_one_name_are_told_apart() -> None:
    _, rows = overview([record("mae", 0, 1.0), record("mae", 0, 2.0, weights="w1"), record("sup", 0, 3.0)])
    assert list(rows) == ["supervised, B", "MAE, B (mae_vit_b, w0)", "MAE, B (mae_vit_b, w1)"]


def test_the_markdown_begins_with_it(tmp_path: Path) -> None:
    text = make_tables([record("mae", 0, 1.0)])
    assert text.startswith("## Overview, mini\n")


def test_blind_has_a_row_on_top_and_in_the_dense_table() -> None:
    """What looks at no image is the first line, where all runs of a column say the same of it."""
    of = {"name": "shapes", "fingerprint": "f0"}
    runs = [record("mae", seed, 10.0 + seed, "ade20k") | {"data": {**of, "blind": 4.25}} for seed in range(2)]
    runs += [record("mae", seed, 30.0) | {"data": {**of, "blind": 20.0 + seed}} for seed in range(2)]
    _, rows = overview(runs)
    assert list(rows) == ["blind", "MAE, B"]
    assert rows["blind"] == ["4.2", "-"], "two draws of few labels have two"
    tables = {table.title: table for table in build_tables([RunRecord(**each) for each in runs])}
    dense = next(table for title, table in tables.items() if title.startswith("Segmentation"))
    assert next((label, cells[0].text) for label, cells in dense.rows) == ("blind (no look at the images)", "4.2")
