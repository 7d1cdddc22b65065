"""Tables of image classification: protocols of a data set in one table, partial fine-tuning, robustness."""

import itertools
import statistics
from typing import Any

import pytest
from support.records import described
from support.tables import build_tables, make_tables

from mae_transfer.results.published import read_published
from mae_transfer.run_folder.schema import SCHEMA, RunRecord

COUNT = itertools.count()
DENSE = ("coco", "ade20k")
DEFAULT_RECIPES = {"finetune": "finetune_mae", "partial": "partial_mae", "linear": "linear_mae"}


def record(
    protocol: str, top1: float, *, init: str = "mae", size: str = "b", seed: int = 0, draw: int = 0, **change: Any
) -> dict[str, Any]:
    settings = {
        "protocol": protocol,
        "recipe": change.pop("recipe", DEFAULT_RECIPES.get(protocol, protocol)),
        "model.blocks": change.pop("blocks", None),
        "data.image_size": change.pop("image_size", 224),
        "optim.lr": change.pop("lr", 1e-3),
    }
    return {
        "schema": SCHEMA,
        "run_id": f"run{next(COUNT):03}",
        "backbone": {"name": f"{init}_vit_{size}", "init": init, "size": size, "fingerprint": "w0"},
        "preset": change.pop("preset", "full"),
        "seed": seed,
        **described(change.pop("task", "imagenet"), settings),
        "metrics": {"top1": top1, "top5": top1 + 5, "mean_per_class": top1 - 1, **change.pop("metrics", {})},
        "data": {
            "name": change.pop("data", "ImageNet-1K val"),
            "fingerprint": "f0",
            "blind": change.pop("blind", 0.1),
            "draw": draw,
        },
        **change,
    }


def table(text: str, title: str) -> str:
    found = [part for part in text.split("## ")[1:] if part.splitlines()[0] == title]
    assert len(found) == 1, [part.splitlines()[0] for part in text.split("## ")[1:]]
    return found[0]


def row(text: str, name: str) -> list[str]:
    found = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    assert len(found) == 1, text
    return [cell.strip() for cell in found[0].split("|")[2:-1]]


def test_the_protocols_of_a_data_set_stand_in_one_table_beside_the_published_rows() -> None:
    text = make_tables([record("finetune", 83.5), record("linear", 67.9), record("knn", 40.0, init="dino")])
    one = table(text, "ImageNet-1K val")
    assert (
        "| protocol, initialisation | top-1 S | top-1 B | top-1 L | top-1 H | top-1 H 448 | top-1 g | top-5 S |" in one
    )
    assert row(one, "finetune, MAE")[:8] == ["-", "83.5 (n=1)", "-", "-", "-", "-", "-", "88.5 (n=1)"]
    assert row(one, "finetune, MAE, published (MAE (arXiv 2111.06377) Table 3)")[1:5] == [
        "83.6",
        "85.9",
        "86.9",
        "87.8",
    ]
    assert row(one, "linear, MAE, published (MAE (arXiv 2111.06377) Table 12)")[1:4] == ["68.0", "75.8", "76.6"]
    assert row(one, "linear, MAE, published (facebookresearch/mae FINETUNE.md)")[1:4] == ["67.8", "76.0", "77.2"]
    assert row(one, "linear, BEiT, published (MAE (arXiv 2111.06377) Table 12)")[2] == "52.1"
    assert row(one, "knn, DINO")[1] == "40.0 (n=1)"
    assert row(one, "knn, DINO, published (facebookresearch/dino README)")[:2] == ["74.5", "76.1"]
    assert row(one, "blind (the commonest class)")[:7] == [*["0.1"] * 6, "-"]
    names = [line.split(" |")[0][2:] for line in one.splitlines() if line.startswith("| ")]
    kinds = [name.split(",")[0] for name in names[2:]]
    assert kinds == sorted(kinds, key=("finetune", "linear", "knn").index), "protocols in one order"
    assert "partial" not in one.replace("partial fine-tuning", "")


@pytest.mark.parametrize(
    ("task", "title", "values"),
    [
        ("inat2017", "iNaturalist 2017 val", ["70.5", "75.7", "79.3", "83.4"]),
        ("inat2018", "iNaturalist 2018 val", ["75.4", "80.1", "83.0", "86.8"]),
        ("inat2019", "iNaturalist 2019 val", ["80.5", "83.4", "85.7", "88.3"]),
        ("places205", "Places205 val", ["63.9", "65.8", "65.9", "66.8"]),
        ("places365", "Places365 val", ["57.9", "59.4", "59.8", "60.3"]),
    ],
)
def test_table_6_of_the_paper(task: str, title: str, values: list[str]) -> None:
    one = table(make_tables([record("finetune", 50.0, task=task, data=title)]), title)
    assert row(one, "finetune, MAE, published (MAE (arXiv 2111.06377) Table 6)")[: len(values)] == values


def test_presets_data_sets_and_image_sizes_are_kept_apart() -> None:
    text = make_tables(
        [
            record("finetune", 83.0),
            record("finetune", 84.0, image_size=448),
            record("finetune", 70.0, preset="mini"),
            record("finetune", 60.0, data="10 classes (5 train, 5 val images)"),
        ]
    )
    cells = row(table(text, "ImageNet-1K val"), "finetune, MAE")
    heads = next(line for line in text.splitlines() if line.startswith("| protocol, initialisation")).split("|")[2:-1]
    values = dict(zip([head.strip() for head in heads], cells, strict=True))
    assert (values["top-1 B"], values["top-1 B 448"]) == ("83.0 (n=1)", "84.0 (n=1)")
    assert row(table(text, "imagenet, mini: ImageNet-1K val"), "finetune, MAE")[0] == "70.0 (n=1)"
    other = table(text, "imagenet, full: 10 classes (5 train, 5 val images)")
    assert row(other, "finetune, MAE")[0] == "60.0 (n=1)"
    assert "published" not in other.replace("than the published numbers", "")


def test_cells_average_over_seeds_and_draws() -> None:
    values = [50.0, 51.0, 54.0, 40.0]
    runs = [(0, 0), (0, 1), (1, 0), (1, 0)]  # the last repeats one: it alone counts
    records = [record("logreg", v, seed=s, draw=d) for v, (s, d) in zip(values, runs, strict=True)]
    kept = [50.0, 51.0, 40.0]
    expected = f"{statistics.mean(kept):.1f} ± {statistics.stdev(kept):.1f} (n=3)"
    assert row(table(make_tables(records), "ImageNet-1K val"), "logreg, MAE")[1] == expected


@pytest.mark.parametrize("lr", [5e-4, 6e-4, 7e-4, 8e-4])
def test_unlike_runs_get_rows_of_their_own_after_the_reference_run(lr: float) -> None:
    one = table(make_tables([record("finetune", 83.0), record("finetune", 80.0, lr=lr, seed=1)]), "ImageNet-1K val")
    assert row(one, "finetune, MAE")[1] == "83.0 (n=1)"
    assert one.index("finetune, MAE |") < one.index("finetune, MAE [1]")


def test_unlike_runs_get_rows_of_their_own_and_recipes_their_names() -> None:
    text = make_tables([record("finetune", 83.0), record("finetune", 80.0, lr=5e-4, seed=1)])
    one = table(text, "ImageNet-1K val")
    assert "[1] unlike the reference run of its size in b: optim.lr 0.001 -> 0.0005." in one
    two = table(make_tables([record("linear", 68.0), record("linear", 70.0, recipe="linear_sweep")]), "ImageNet-1K val")
    assert row(two, "linear, MAE (linear_mae)")[1] == "68.0 (n=1)"
    assert row(two, "linear, MAE (linear_sweep)")[1] == "70.0 (n=1)"


def test_partial_fine_tuning_has_blocks_as_columns_and_the_linear_probe_at_none() -> None:
    records = [record("partial", 80.0 + b, size="l", blocks=b) for b in (0.5, 1, 4)] + [
        record("linear", 75.0, size="l")
    ]
    one = table(make_tables(records), "ImageNet-1K val, partial fine-tuning")
    assert "| initialisation, size | 0 | 0.5 | 1 | 2 | 4 | 6 | 12 | 18 | 24 |" in one
    published = ["73.5", "79.1", "81.0", "83.1", "84.2", "84.4", "84.6", "84.7", "84.9"]
    assert row(one, "MAE L, published (MAE (arXiv 2111.06377) Figure 9; 0.5 blocks: section 4.3)") == published
    moco = row(one, "MoCo v3 L, published (MAE (arXiv 2111.06377) Figure 9)")
    assert moco == ["77.6", "-", "79.9", "80.8", "81.6", "81.9", "83.2", "83.8", "84.1"]
    assert row(one, "MAE L") == ["75.0 (n=1)", "80.5 (n=1)", "81.0 (n=1)", "-", "84.0 (n=1)", *["-"] * 4]
    unlike = table(
        make_tables([*records, record("partial", 70.0, size="l", blocks=1, lr=1e-4)]),
        "ImageNet-1K val, partial fine-tuning",
    )
    assert "n=2" not in unlike
    assert row(unlike, "MAE L")[2] == "81.0 (n=1)"
    assert row(unlike, "MAE L [1]") == ["75.0 (n=1)", "-", "70.0 (n=1)", *["-"] * 6]
    assert "[1] unlike the first line of MAE L in optim.lr 0.001 -> 0.0001." in unlike


def test_no_line_of_partial_fine_tuning_mixes_unlike_runs() -> None:
    records = [
        record("partial", 10 * blocks + 1000 * lr, size="l", blocks=blocks, lr=lr)
        for lr in (1e-4, 2e-4, 3e-4)
        for blocks in (1, 2, 4)
    ]
    probes = [record("linear", 50.0, size="l", lr=lr) for lr in (0.1, 0.2)]
    one = table(make_tables([*records, *probes]), "ImageNet-1K val, partial fine-tuning")
    lines = [row(one, f"MAE L{mark}") for mark in ("", " [1]", " [2]", " [3]", " [4]")]
    for cells, last in zip(lines, "123", strict=False):
        found = [cell.split()[0] for cell in (cells[2], cells[3], cells[4])]
        assert found == [f"{10 * blocks + int(last) / 10:.1f}" for blocks in (1, 2, 4)]
    assert [cells[0] for cells in lines] == ["-", "-", "-", "50.0 (n=1)", "50.0 (n=1)"], "unlike probes: own lines"


def test_robustness_has_a_table_of_its_own() -> None:
    metrics = {"imagenet_c_mCE": 51.2, "imagenet_a_top1": 36.0}
    one = table(make_tables([record("finetune", 83.5, metrics=metrics)]), "ImageNet-1K val, robustness")
    assert row(one, "finetune, MAE")[0] == "51.2 (n=1)"
    published = row(one, "finetune, MAE, published (MAE (arXiv 2111.06377) Table 13)")
    assert published[:8] == ["51.7", "41.8", "33.8", "36.8", "35.9", "57.1", "68.2", "76.7"]
    assert published[8:] == ["48.3", "59.9", "64.4", "66.5", "34.5", "45.3", "49.6", "50.9"]
    scratch = row(
        one, "finetune, random, published (MAE (arXiv 2111.06377) Table 13, trained from scratch by Table 11)"
    )
    assert scratch[:3] == ["45.8", "42.3", "41.3"]
    assert "imagenet" not in make_tables([record("finetune", 1.0, task="folder", data="mine")])


def test_classification_tables_appear_with_their_first_record_only() -> None:
    assert "iNaturalist" not in make_tables([])
    assert "COCO val2017" in make_tables([])
    missing = make_tables([record("finetune", 1.0, task="inat2018", preset="smoke", data="generated images")])
    assert "## iNaturalist 2018 val (no full run recorded yet)" in missing


def test_every_published_number_names_its_protocol_and_source() -> None:
    frame = read_published()
    own = frame[~frame["task"].isin(["coco", "ade20k"])]
    assert len(own) > 80
    assert (own["protocol"] != "").all()
    assert (own["source"] != "").all()
    assert (own["blocks"].notna() == (own["protocol"] == "partial")).all()
    assert not own.duplicated(["task", "init", "size", "protocol", "blocks", "metric", "source"]).any()


def test_variants_have_tables_of_their_own_and_never_stand_in_a_cell_of_the_others() -> None:
    variants, main = read_published(variants=True), read_published()
    assert len(variants) > 190
    assert (variants["source"] != "").all()
    assert (variants["variant"] != "").all()
    assert (main["variant"] == "").all()
    assert not variants.duplicated(["task", "recipe", "init", "size", "protocol", "variant", "metric", "source"]).any()
    of_paper = variants["source"].str.extract(r"^MAE \(arXiv 2111.06377\) (Table [127]|Figure [57])[a-f]?$")[0]
    assert of_paper.value_counts().to_dict() == {
        "Table 1": 48,
        "Table 2": 5,
        "Table 7": 21,
        "Figure 5": 20,
        "Figure 7": 10,
    }
    assert not main["source"].str.contains(r"2111.06377\) (?:Table [127]|Figure [57])[a-f]?$").any()
    runs = [record("finetune", 83.5), record("linear", 67.9)]
    runs += [record("", 50.0, task=task, data=f"{task.upper()} val{'2017' * (task == 'coco')}") for task in DENSE]
    tables = build_tables([RunRecord(**run) for run in runs])
    shown = [table for table in tables if table.title.startswith("Published variants: ")]
    cells = [cell.value for table in shown for _, row in table.rows for cell in row if cell.value is not None]
    of_tasks = variants[variants["task"].isin(["imagenet", *DENSE])]
    assert sorted(cells) == sorted(of_tasks["value"])
    assert all(table.published_only for table in shown)
    labels = [label for table in shown for label, _ in table.rows]
    assert all("published (" in label for label in labels)
    others = [label for table in tables if table not in shown for label, _ in table.rows]
    for text in set(variants["variant"]):
        assert any(f": {text}, published (" in label for label in labels)
        assert not any(f": {text}, " in label for label in others)
    published = [label.split("published (")[1][:-1] for label in others if "published (" in label]
    assert set(published) <= set(main["source"])


def test_linear_segmentation_is_published_per_recipe() -> None:
    one = table(make_tables([]), "ADE20K: ADE20K val, by protocol (no full run recorded yet)")
    assert "| mIoU linear_dinov3 S | mIoU linear_dinov3 S+ | mIoU linear_dinov3 B |" in one
    cells = row(one, "DINOv3, published (facebookresearch/dinov3 MODEL_CARD.md)")
    assert cells == ["-", "-", "-", "47.0", "48.8", "51.8", "54.9", "54.8", "55.9"]
