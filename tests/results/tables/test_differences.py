"""Differences to a control, results of single images, costs, and the four ways to write tables down."""

import csv
import io
import itertools
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from support.many_images import detected_by_two, part_of
from support.records import described
from support.tables import build_tables, make_tables

from mae_transfer.errors import UserError
from mae_transfer.results.long_table import COLUMNS, long_table
from mae_transfer.results.tables.render import FORMATS
from mae_transfer.results.tables.summary import summary_table
from mae_transfer.run_folder import per_image
from mae_transfer.run_folder.matches import AveragePrecision
from mae_transfer.run_folder.schema import SCHEMA

COUNT = itertools.count()


def record(init: str, seed: int, value: float, *, task: str = "coco", size: str = "b", **change: Any) -> dict[str, Any]:
    protocol = {"recipe": "r", "optim.lr": change.pop("lr", 1e-4)}
    metrics = {"box_AP": value, "mask_AP": value - 5}
    if task not in ("coco", "ade20k"):
        protocol |= {"protocol": change.pop("kind", "finetune"), "model.blocks": None, "data.image_size": 224}
        metrics = {"top1": value}
    elif task == "ade20k":
        metrics = {"mIoU": value}
    return {
        "schema": SCHEMA,
        "run_id": f"run{next(COUNT):04}",
        "backbone": {"name": f"{init}_vit_{size}", "init": init, "size": size, "fingerprint": "w"},
        "preset": "full",
        "seed": seed,
        **described(task, protocol),
        "metrics": metrics,
        "data": {"name": change.pop("data", "mine"), "fingerprint": "f", "classes": 4},
        **change,
    }


def rows(records: list[dict[str, Any]], ending: str = ": differences", **options: Any) -> dict[str, list[str]]:
    found = [table for table in build_tables(records, **options) if table.title.endswith(ending)]
    return {label: [cell.text for cell in cells] for table in found for label, cells in table.rows}


def test_pairs_are_runs_of_one_seed_and_the_interval_is_scipys() -> None:
    mae, sup = [50.1, 50.6, 49.8], [48.0, 48.9, 47.5]
    records = [record("mae", s, v) for s, v in enumerate(mae)] + [record("sup", s, v) for s, v in enumerate(sup)]
    records += [record("mae", 7, 90.0)]  # a seed that the control does not have takes no part
    theirs = stats.ttest_rel(mae, sup).confidence_interval(0.95)
    mean = np.mean(np.array(mae) - sup)
    expected = f"+{mean:.1f} [+{theirs.low:.1f}, +{theirs.high:.1f}]* (n=3)"
    assert rows(records) == {"MAE − supervised": [expected, expected]}


def test_equal_differences_of_runs_that_seeds_move_have_no_interval() -> None:
    """Of two seeds by chance, on few images: one seed's images would stand for what both say."""
    records = [record("mae", s, v) for s, v in enumerate([51.0, 52.0])]
    records += [record("sup", s, v) for s, v in enumerate([50.0, 51.0])]
    assert rows(records)["MAE − supervised"][0] == "+1.0 (n=2)"


def test_a_mark_stands_only_where_the_interval_leaves_out_zero() -> None:
    records = [record("sup", s, v) for s, v in enumerate((50.0, 51.0, 49.0))]
    records += [record("mae", s, v) for s, v in enumerate((51.0, 50.5, 49.5))]
    (cell, _) = rows(records)["MAE − supervised"]
    assert re.fullmatch(r"\+0\.3 \[−\d\.\d, \+\d\.\d\] \(n=3\)", cell), cell


def test_the_control_is_supervised_else_random_and_on_imagenet_random() -> None:
    three = [record(init, 0, 50.0) for init in ("mae", "sup", "random")]
    assert set(rows(three)) == {"MAE − supervised", "random − supervised"}
    assert set(rows([three[0], three[2]])) == {"MAE − random"}
    assert set(rows(three, control="random")) == {"MAE − random", "supervised − random"}
    imagenet = [record(init, 0, 50.0, task="imagenet") for init in ("mae", "sup", "random")]
    assert set(rows(imagenet)) == {"finetune, MAE − random", "finetune, supervised − random"}
    own = [record("MAE (this project)", 0, 50.0), record("supervised (this project)", 0, 49.0), three[2]]
    assert "MAE (this project) − supervised (this project)" in rows(own)
    with pytest.raises(UserError, match="--control nobody: no record has this initialisation; there are: mae, random"):
        make_tables(three, control="nobody")


def test_protocols_are_compared_like_with_like_and_others_are_named() -> None:
    records = [record("mae", 0, 50.0), record("sup", 0, 40.0, lr=2e-4), record("sup", 0, 45.0)]
    assert rows(records) == {"MAE − supervised": ["+5.0 (n=1)", "+5.0 (n=1)"]}, "that of the same protocol"
    records = [record("mae", 0, 50.0), record("sup", 0, 40.0, lr=2e-4)]
    table = next(t for t in build_tables(records) if t.title.endswith(": differences"))
    assert table.rows[0][0] == "MAE − supervised [d1]"
    assert table.footnotes == ("[d1] unlike its control in b: optim.lr 0.0002 -> 0.0001.",)
    unpaired = next(
        t for t in build_tables([record("mae", 0, 50.0), record("sup", 1, 40.0)]) if t.title.endswith(": differences")
    )
    assert unpaired.rows[0][1][0].text == "-"
    assert "no seed that both have" in unpaired.footnotes[0]


def kept(folder: Path, arrays: per_image.Arrays) -> dict[str, Any]:
    folder.mkdir()
    return {"per_image": per_image.write_per_image(folder, arrays), "folder": str(folder)}


def test_a_single_pair_has_an_interval_over_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"{i}.jpg" for i in range(400)]
    mae, sup = rng.random(400) < 0.8, rng.random(400) < 0.5
    one = record("mae", 0, 100 * mae.mean(), task="folder", **kept(tmp_path / "a", correct(names, mae)))
    two = record("sup", 0, 100 * sup.mean(), task="folder", **kept(tmp_path / "b", correct(names, sup)))
    (cell,) = (cells[0] for label, cells in rows([one, two]).items() if label == "finetune, MAE − supervised")
    assert re.fullmatch(r"\+\d+\.\d \[\+\d+\.\d, \+\d+\.\d\]\* \(images\)", cell), cell
    three = [one, two, record("mae", 1, one["metrics"]["top1"], task="folder")]
    three += [record("sup", 1, two["metrics"]["top1"], task="folder")]
    assert "(n=2)" in rows(three)["finetune, MAE − supervised"][0], "equal differences and no images of the last pair"
    (tmp_path / "a" / "per_image.npz").write_bytes(b"other")
    warnings: list[str] = []
    assert "(n=1)" in rows([one, two], warnings=warnings)["finetune, MAE − supervised"][0]
    assert len(warnings) == 1
    assert "is not the file that its record names" in warnings[0]


def correct(names: list[str], flags: np.ndarray) -> per_image.Arrays:
    half = len(names) // 2
    return per_image.correct_images([(names[half:], flags[half:]), (names[:half], flags[:half])])


def test_runs_on_other_images_are_not_paired(tmp_path: Path) -> None:
    flags = np.random.default_rng(0).random(50) < 0.5
    one = record("mae", 0, 50.0, task="folder", **kept(tmp_path / "a", correct([f"{i}" for i in range(50)], flags)))
    two = record("sup", 0, 40.0, task="folder", **kept(tmp_path / "b", correct([f"x{i}" for i in range(50)], flags)))
    assert rows([one, two])["finetune, MAE − supervised"][0] == "+10.0 (n=1)"


def test_miou_of_a_single_pair(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    union, records, values = rng.integers(1, 100, (60, 4)), [], []
    for init, share in (("mae", 0.9), ("sup", 0.5)):
        hits = (union * rng.uniform(share - 0.1, share + 0.1, union.shape)).astype(int)
        values.append(100 * float((hits.sum(0) / union.sum(0)).mean()))
        arrays = per_image.segmented_images([([f"{i}.png" for i in range(60)], hits, union)])
        records.append(record(init, 0, values[-1], task="ade20k", **kept(tmp_path / init, arrays)))
    (cell,) = rows(records)["MAE − supervised"]
    found = re.fullmatch(r"\+(\S+) \[\+(\S+), \+(\S+)\]\* \(images\)", cell)
    assert found is not None, cell
    difference, low, high = map(float, found.groups())
    assert difference == pytest.approx(values[0] - values[1], abs=0.051)
    assert low < difference < high


def test_ap_of_a_single_pair(tmp_path: Path) -> None:
    """Box AP alone, as of a set without masks; a run on other images, and of a resample without an object, has none."""
    both = detected_by_two(np.random.default_rng(0), 60, gain=1.0)
    values = [float(AveragePrecision(arrays, "box")(np.ones((1, 60), bool))[0]) for arrays in both]

    def compared(sup: per_image.Arrays, mae: per_image.Arrays, name: str) -> list[str]:
        runs = []
        for init, arrays, value in (("sup", sup, values[0]), ("mae", mae, values[1])):
            runs.append(record(init, 0, value, **kept(tmp_path / f"{name}-{init}", arrays)))
            runs[-1]["metrics"] = {"box_AP": value, "mask_AP": None}
        return rows(runs)["MAE − supervised"]

    box, mask = compared(*both, "same")
    assert mask == "-"
    found = re.fullmatch(r"\+(\S+) \[\+(\S+), \+(\S+)\]\* \(images\)", box)
    assert found is not None, box
    difference, low, high = map(float, found.groups())
    assert difference == pytest.approx(values[1] - values[0], abs=0.051)
    assert (low + high) / 2 == pytest.approx(difference, abs=0.11)
    others = dict(both[1]) | {"ids": np.arange(60, 120).astype("S")}
    few = [part_of(arrays, np.array([int(both[0]["object_image"][0])])) for arrays in both]
    few = [dict(arrays) | {"ids": np.array([b"0", b"1"])} for arrays in few]
    for name, pair in (("others", (both[0], others)), ("few", few)):
        assert compared(*pair, name)[0].endswith(f"{values[1] - values[0]:.1f} (n=1)")


def test_results_of_images_are_the_same_from_any_number_of_processes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    union = rng.integers(0, 3, (7, 5))
    hits, names = union // 2, [f"{i}é.png" for i in range(7)]
    one = per_image.segmented_images([(names, hits, union)])
    parts = [([names[i] for i in range(r, 7, 2)], hits[r::2], union[r::2]) for r in range(2)]
    parts.append(([], np.zeros((0, 5), int), np.zeros((0, 5), int)))
    for folder, arrays in (("a", one), ("b", per_image.segmented_images(parts))):
        (tmp_path / folder).mkdir()
        entry = per_image.write_per_image(tmp_path / folder, arrays)
        found = per_image.read_per_image(tmp_path / folder, entry)
        assert all(
            np.array_equal(part, whole) for part, whole in zip(per_image.dense(found, 5), (hits, union), strict=True)
        )
    assert (tmp_path / "a" / per_image.FILE).read_bytes() == (tmp_path / "b" / per_image.FILE).read_bytes()


def test_the_summary_has_a_row_for_each_main_metric() -> None:
    records = [record(init, s, v + s) for init, v in (("mae", 50.0), ("random", 40.0)) for s in range(2)]
    records += [
        record("mae", 0, 70.0, task="folder", kind="linear"),
        record("beit", 0, 60.0, task="folder", kind="knn"),
    ]
    table = summary_table(records, "random")
    assert table.head == ("", "random", "MAE", "MAE − random", "BEiT", "BEiT − random")
    assert {label: [cell.text for cell in cells] for label, cells in table.rows} == {
        "Detection: mine: AP box": ["40.5 ± 0.7 (n=2)", "50.5 ± 0.7 (n=2)", "+10.0 (n=2)", "-", "-"],
        "Detection: mine: AP mask": ["35.5 ± 0.7 (n=2)", "45.5 ± 0.7 (n=2)", "+10.0 (n=2)", "-", "-"],
        "Classification: mine, knn: top-1": ["-", "-", "-", "60.0 (n=1)", "-"],
        "Classification: mine, linear: top-1": ["-", "70.0 (n=1)", "-", "-", "-"],
    }


def test_costs() -> None:
    gpu = {"device": "NVIDIA H100", "world_size": 8, "wall_seconds": 3600.0, "peak_memory_bytes": 2**31}
    cpu = {"device": "cpu (4 threads)", "world_size": 2, "wall_seconds": 1800.0}
    records = [record("mae", 0, 50.0, **gpu, parameters=86_000_000, encoder_flops=35_000_000_000)]
    records += [record("sup", 0, 50.0, **cpu), record("random", 0, 50.0, schema=1)]
    found = rows(records, ": costs")
    assert found["MAE, B"] == ["1", "8.00", "-", "2.00", "86.0", "35.0"]
    assert found["supervised, B"] == ["1", "-", "4.00", "-", "-", "-"]
    assert found["random, B"] == ["1", "-", "-", "-", "-", "-"]


def test_rows_without_a_run_and_without_a_published_number_are_left_out() -> None:
    text = make_tables([record("mae", 0, 50.0), record("mae", 0, 60.0, task="folder", kind="linear")])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert ["supervised", "-", "-"] not in rows
    assert not [row for row in rows if row[1:] and {*row[1:]} == {"-"}]
    assert "| chance (one of the classes) | 25.0 |" in text
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    alone = [line.endswith("(no full run recorded yet)") for line in titles]
    assert alone == sorted(alone), "tables of published numbers alone come last"
    assert any(alone)


def many() -> list[dict[str, Any]]:
    draw = random.Random(3)
    tasks = ("coco", "ade20k", "imagenet", "folder")
    grid = itertools.product(tasks, ("mae", "sup", "random", "zeta"), "bl", range(3), (1e-4, 2e-4))
    return [record(i, seed, draw.uniform(20, 60), task=t, size=s, lr=lr) for t, i, s, seed, lr in grid]


@pytest.mark.parametrize("style", list(FORMATS))
def test_tables_are_the_same_bytes_in_any_order_of_records(style: str) -> None:
    records = many()
    expected = make_tables(records, style=style)
    for seed in range(3):
        random.Random(seed).shuffle(records)
        assert make_tables(records, style=style).encode() == expected.encode()


NASTY = 'a|b\n<script>&\\_%$#{x}~^,"'


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def test_a_name_cannot_break_out_of_its_cell() -> None:
    records = [record(NASTY, 0, 50.0), record("sup", 0, 40.0)]
    flat = " ".join(NASTY.split())
    lines = [line for line in make_tables(records).splitlines() if line.startswith("| a")]
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {4, 5, 9}, "overview, differences, costs"
    page = Cells()
    page.feed(make_tables(records, style="html"))
    assert "script" not in page.tags
    assert NASTY in page.found
    table = list(csv.DictReader(io.StringIO(make_tables(records, style="csv"))))
    assert {"50.0"} == {row["value"] for row in table if row["row"] == NASTY and row["column"] == "AP box B"}
    latex = make_tables(records, style="latex")
    body = [line for line in latex.splitlines() if line.startswith("a\\textbar{}b")]
    assert body[0].startswith(
        r"a\textbar{}b \textless{}script\textgreater{}\&\textbackslash{}\_\%\$\#\{x\}\textasciitilde{}"
    )
    assert flat not in latex


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles(tmp_path: Path) -> None:
    body = make_tables([*many(), record(NASTY, 0, 1.0)], style="latex").replace("\\begin{table}", "\\begin{table}[p]")
    head = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}\\extrafloats{500}\\begin{document}"
    (tmp_path / "t.tex").write_text(f"{head}\n{body}\n\\end{{document}}")
    command = ["pdflatex", "-interaction=batchmode", "-halt-on-error", "t.tex"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0


def test_csv_holds_the_numbers_unrounded() -> None:
    values = [50.123456, 50.654321]
    table = list(
        csv.DictReader(io.StringIO(make_tables([record("mae", s, v) for s, v in enumerate(values)], style="csv")))
    )
    (row,) = (r for r in table if r["row"] == "MAE" and r["column"] == "AP box B")
    assert float(row["value"]) == pytest.approx(np.mean(values), rel=1e-12)
    assert float(row["std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert row["n"] == "2"


def test_the_long_table() -> None:
    one = record("mae", 0, 50.0)
    one["metrics"]["AP/cat"] = None
    table = long_table([one])
    assert list(table.columns) == list(COLUMNS)
    assert table["metric"].tolist() == ["box_AP", "mask_AP"]
    assert table["value"].tolist() == [50.0, 45.0]
    assert long_table([one], details=True)["value"].isna().tolist() == [False, False, True]
    assert list(long_table([]).columns) == list(COLUMNS)
