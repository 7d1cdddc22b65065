"""Few labels: our rule and mmdetection's against their definitions, in every task, from the command line to a plot."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from support.coco_command import BASE, TINY
from support.command_line import ADE20K

from mae_transfer.cli.transfer import main
from mae_transfer.config.sections import RunConfig
from mae_transfer.data.fractions import hash_fraction, least_percent, mmdetection_fold
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.errors import UserError
from mae_transfer.results.long_table import long_table
from mae_transfer.results.plots.comparisons import fraction_plots, main_metrics
from mae_transfer.run_folder.record import read_records
from mae_transfer.runs.plan import plan_runs
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.tasks import make_task
from mae_transfer.tasks.ade20k import values

NAMES = [f"{i:012}.jpg" for i in range(200)]


def test_our_rule_is_the_order_of_a_hash_and_fewer_are_a_part_of_more() -> None:
    ordered = sorted(NAMES, key=lambda name: hashlib.sha256(f"3:{name}".encode()).hexdigest())
    before: set[str] = set()
    for percent in (1, 2, 5, 12.5, 50):
        chosen = hash_fraction(NAMES, percent, 3)
        names = {NAMES[i] for i in chosen}
        assert list(chosen) == sorted(chosen)
        assert names == set(ordered[: round(200 * percent / 100)]) > before
        before = names
    shuffled = NAMES[::-1]
    assert {shuffled[i] for i in hash_fraction(shuffled, 50, 3)} == before, "whatever their order"
    assert {NAMES[i] for i in hash_fraction(NAMES, 50, 4)} != before
    with pytest.raises(UserError, match=r"data.fraction=0.1: 0.1 % of 200 training images is no image; give 0.251 or"):
        hash_fraction(NAMES, 0.1, 0)


@pytest.mark.parametrize("wanted", [1, 2])
def test_the_least_percentage_is_enough_and_a_lesser_one_is_not(wanted: int) -> None:
    for images in (2, 3, 5, 7, 8, 18, 200, 1300, 118287, 1281167):
        least = float(f"{least_percent(images, wanted):g}")
        assert round(least / 100 * images) >= wanted
        assert round(0.99 * least / 100 * images) < wanted


@pytest.mark.parametrize("protocol", ["finetune", "knn"])
def test_the_percentage_that_an_error_names_can_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    options = ["--task", "folder", *ADE20K[2:], "--protocol", protocol, "eval.pictures=0"]
    options += ["--output", str(tmp_path / "run"), "--fraction"]
    assert main([*options, "1"]) == 2
    found = re.search(r"data.fraction=1 leaves class .* give (\S+) or more, or --shots", capsys.readouterr().err)
    assert found is not None
    assert main([*options, found[1]]) == 0


@pytest.mark.parametrize("percent", [1, 2, 5, 10])
def test_published_folds_are_those_of_numpys_global_generator(percent: int) -> None:
    """tools/misc/split_coco.py: seed(fold); set(choice(range(N), size=int(percent / 100. * N)))."""
    for fold in range(1, 6):
        np.random.seed(fold)
        expected = sorted(set(np.random.choice(range(118287), size=int(percent / 100.0 * 118287))))
        assert list(mmdetection_fold(118287, percent, fold - 1)) == expected
        assert len(expected) <= int(percent / 100.0 * 118287)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_coco(tmp_path_factory.mktemp("data") / "coco", train_images=20, val_images=3, size=(48, 64))
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["images"] = content["images"][::2] + content["images"][1::2]  # the rule is of the file's order
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != content["images"][0]["id"]]
    file.write_text(json.dumps(content))
    return root


def coco_config(data: Path, *overrides: str) -> RunConfig:
    options = ["subset=null", "data.image_size=64", *overrides]
    return resolve_config("coco", "random_vit_nano", preset="smoke", data=data, overrides=options)


def test_coco_trains_on_the_images_of_either_rule(data: Path) -> None:
    content = json.loads((data / "annotations" / "instances_train2017.json").read_text())
    with_objects = {a["image_id"] for a in content["annotations"] if not a.get("iscrowd")}
    names = {image["id"]: image["file_name"] for image in content["images"]}
    whole = make_task(coco_config(data)).data_summary
    for draw in (0, 1):
        few = make_task(coco_config(data, "data.fraction=30", f"data.draw={draw}"))
        ordered = sorted(
            (names[i] for i in with_objects), key=lambda name: hashlib.sha256(f"{draw}:{name}".encode()).digest()
        )
        chosen = few.train_dataset
        assert (
            {chosen.file_name(i) for i in range(len(chosen))}
            == set(  # type: ignore[attr-defined]
                ordered[: round(0.3 * len(ordered))]
            )
        )
        np.random.seed(draw + 1)
        places = set(np.random.choice(range(20), size=6))
        expected = {names[content["images"][p]["id"]] for p in places if content["images"][p]["id"] in with_objects}
        fold = make_task(coco_config(data, "data.fraction=30", "data.fraction_rule=mmdetection", f"data.draw={draw}"))
        chosen = fold.train_dataset
        assert {chosen.file_name(i) for i in range(len(chosen))} == expected  # type: ignore[attr-defined]
        for task in (few, fold):
            summary = task.data_summary
            assert summary["whole_fingerprint"] == whole["fingerprint"] != summary["fingerprint"]
            assert summary["name"] == f"{whole['name']}, 30 % of the training images"
            assert (summary["draw"], summary["val_images"]) == (draw, whole["val_images"])
        assert few.data_summary["fingerprint"] != fold.data_summary["fingerprint"]
    again = make_task(coco_config(data, "data.fraction=30", "data.draw=0")).data_summary
    assert (
        again["fingerprint"]
        == make_task(coco_config(data, "data.fraction=30", "data.draw=1")).data_summary["fingerprint"]
    )
    one = make_task(coco_config(data, "data.fraction=6"))
    assert any("data.fraction=6 leaves" in line and "classes without a training image" in line for line in one.warnings)


def test_segmentation_and_classification_train_on_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    for protocol in ("linear", "knn"):
        options = {"protocol": protocol, "preset": "smoke", "data": "synthetic"}
        whole, few = (
            make_task(resolve_config("ade20k", "random_vit_nano", overrides=[f"subset={n}", *more], **options))  # type: ignore[arg-type]
            for n, more in ((8, []), (8, ["data.fraction=50", "data.draw=2"]))
        )
        names = [whole.train_dataset.file_name(i) for i in range(8)]  # type: ignore[attr-defined]
        stems = [name.removesuffix(".jpg") for name in names]
        chosen = few.train_dataset
        assert [chosen.file_name(i) for i in range(len(chosen))] == [  # type: ignore[attr-defined]
            names[i] for i in hash_fraction(stems, 50, 2)
        ]
        assert len(few.eval_dataset) == len(whole.eval_dataset)  # type: ignore[attr-defined]
        assert few.data_summary["whole_fingerprint"] == whole.data_summary["fingerprint"]
        assert any("data.fraction=50 leaves" in line for line in few.warnings)
        with monkeypatch.context() as patched:
            patched.setattr(values, "READ_AT_MOST", 2)
            warnings = make_task(few.config).warnings
        assert not any("leaves" in line for line in warnings), "what the other two have is not known"
        assert any("are in none of 2 training images that were looked at" in line for line in warnings)
    options = {"protocol": "linear", "preset": "smoke", "data": "synthetic"}
    whole, few = (
        make_task(resolve_config("folder", "random_vit_nano", overrides=["subset=null", *more], **options))  # type: ignore[arg-type]
        for more in ([], ["data.fraction=25"])
    )
    all_of, part = (np.bincount(task.train_dataset.labels) for task in (whole, few))  # type: ignore[attr-defined]
    assert list(part) == [round(0.25 * n) for n in all_of]
    assert few.data_summary["whole_fingerprint"] == whole.data_summary["fingerprint"]


def test_one_command_makes_the_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--task", "folder", "--backbone", "random_vit_nano", "--preset", "smoke", "--device", "cpu"]
    options += ["--data", "synthetic", "--protocol", "knn", "--output", str(tmp_path), "eval.pictures=0", "subset=null"]
    assert main([*options, "--fraction", "25,50,100", "--draws", "2"]) == 0
    names = {"knn-25percent-draw0", "knn-25percent-draw1", "knn-50percent-draw0", "knn-50percent-draw1", "knn"}
    assert {path.name for path in tmp_path.iterdir()} == names
    records, _ = read_records(tmp_path)
    (plot,) = fraction_plots(main_metrics(long_table(records)))
    (series,) = plot.series
    assert (series.x, series.n) == ((25, 50, 100), (2, 2, 1))
    of_draws = [r["metrics"]["top1"] for r in records if r["settings"].get("data.fraction") == 25]
    assert series.y[0] == pytest.approx(np.mean(of_draws))
    capsys.readouterr()

    from mae_transfer.cli.tables import main as tables

    assert tables(["--runs", str(tmp_path), "--output", str(tmp_path / "t.md")]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line.startswith("## ")]
    for percent in (25, 50):
        assert f"## Classification, smoke: generated images, {percent} % of the training images" in titles


def test_runs_on_all_images_are_named_as_before() -> None:
    (one,) = plan_runs("coco", "mae_vit_b", preset="mini", data="/data/x")
    (all_of_it,) = plan_runs("coco", "mae_vit_b", preset="mini", data="/data/x", fraction="100", draws=3)
    assert (one.path, one.config) == (all_of_it.path, all_of_it.config)
    few = plan_runs("ade20k", "mae_vit_b", preset="mini", data="/data/x", fraction="1,12.5", draws=2)
    assert [run.path.name.split("-mae_")[0] for run in few] == [
        f"ade20k-{percent}percent-draw{draw}" for percent in ("1", "12.5") for draw in (0, 1)
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--fraction", "0"], "--fraction 0: give percent of the training images"),
        (["--fraction", "1,x"], "--fraction x: give percent of the training images"),
        (["--fraction", "0.1"], "data.fraction=0.1: 0.1 % of 18 training images is no image; give 2.78 or more"),
        (["--draws", "2"], "--draws goes with --shots or --fraction, and is 1 or more"),
        (["--fraction", "5", "--search"], "leave out --blocks, --layers, --shots, --fraction and --draws"),
        (["--fraction", "50", "data.fraction_rule=mmdetection", "subset=4"], "of the whole annotation file"),
        (["--fraction", "1", "data.fraction_rule=mmdetection"], "of the 0 images of fold 1"),
    ],
)
def test_bad_fractions_are_one_line(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    arguments = [*BASE, "--data", str(data), *TINY, "subset=null", "--output", str(tmp_path / "run"), *options]
    assert main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "folder", "--shots", "2", "--fraction", "10"], "--shots and --fraction: give one of them"),
        (["--task", "folder", "--fraction", "1"], "data.fraction=1 leaves class number 0, which has"),
        (["--task", "folder", "data.shots=2", "data.fraction=10"], "data.shots and data.fraction: give one of them"),
        (["--task", "ade20k", "data.fraction=100"], "data.fraction"),
        (
            ["--task", "folder", "--protocol", "knn", "--fraction", "50,25", "probe.k=[11]"],
            "there are 7 training images",
        ),
        (["--task", "ade20k", "--protocol", "knn", "--fraction", "100,20"], "of 2 training images sets aside 0"),
        (["--task", "folder", "--fraction", "50,50.0000001"], "--fraction: 50 is there twice; give it once"),
    ],
)
def test_bad_fractions_of_other_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert main([*arguments, *ADE20K[2:], "--output", str(tmp_path / "run")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert not (tmp_path / "run").exists()
