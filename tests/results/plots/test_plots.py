"""Plots: which points they have, deterministic files, names shown as they are, and the learning rate of the recipe."""

import random
import re
import statistics
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support.report_records import HOSTILE, all_records, record

from mae_transfer.results.long_table import long_table
from mae_transfer.results.plots.comparisons import comparison_plots, main_metrics, partial_plots
from mae_transfer.results.plots.curves import loss_plot, metric_plot, schedule_plot
from mae_transfer.results.plots.figure import COLOURS, Plot, Series, page_svg, png, svg, write_plot


def plot(start: str) -> Plot:
    (found,) = [plot for plot in comparison_plots(all_records()) if plot.stem.startswith(start)]
    return found


def series(plot: Plot, name: str) -> Series:
    (found,) = [series for series in plot.series if series.name == name]
    return found


def test_size_curve_has_means_deviations_and_the_published_numbers() -> None:
    found = plot("size-coco-mask-rcnn-li2021-full-coco-val2017-box-ap")
    mae = series(found, "MAE")
    values = [50.0, 50.3, 50.6]
    assert mae.x == ("B", "L")
    assert mae.y[0] == pytest.approx(statistics.mean(values))
    assert mae.std[0] == pytest.approx(statistics.stdev(values))
    assert mae.n == (3, 3)
    published = [s for s in found.series if s.published and s.name.startswith("MAE, ")]
    assert [s.y for s in published] == [(50.3, 53.3)]
    assert published[0].key == mae.key, "one colour for one initialisation"


def test_cost_is_in_device_hours_and_names_the_size() -> None:
    found = series(plot("cost-coco-mask-rcnn-li2021-full-coco-val2017-box-ap"), "MAE")
    assert found.x == (80.0, 320.0)
    assert found.texts == ("B", "L")


def test_partial_curve_begins_with_the_linear_probe() -> None:
    (found,) = partial_plots(main_metrics(long_table(all_records())))
    (own,) = found.series
    assert own.x == (0.0, 0.5, 1.0, 4.0, 12.0)
    assert own.y[0] == 61.0
    assert own.y[2] == pytest.approx(72.5)
    assert own.n == (1, 2, 2, 2, 2)
    assert found.frame().columns.tolist() == ["name", "blocks", "top1", "std", "n"]


def test_published_curve_joins_full_runs_on_imagenet_only() -> None:
    options = {"size": "l", "protocol": {"protocol": "partial", "recipe": "partial_mae", "model.blocks": 1.0}}
    full = [record(0, "imagenet", {"top1": 80.0}, data="ImageNet-1K val", **options)]
    (found,) = partial_plots(main_metrics(long_table(full)))
    quoted = [s for s in found.series if s.published]
    assert [s.name.split(" L,")[0] for s in quoted] == ["MoCo v3", "MAE"]
    assert dict(zip(quoted[1].x, quoted[1].y, strict=True))[24] == 84.9
    mini = [record(0, "imagenet", {"top1": 80.0}, data="ImageNet-1K val", preset="mini", **options)]
    assert not any(s.published for s in partial_plots(main_metrics(long_table(mini)))[0].series)


def test_numbers_of_a_pre_training_have_plots_of_their_own() -> None:
    """A schedule of twice the steps is MAE's Figure 7; what differs in two numbers is in neither plot."""
    base = {"method": "mae", "recipe": "pretrain_mae", "mask.ratio": 0.75, "schedule.steps": 100}
    runs = []
    epochs = {"schedule.steps": None, "schedule.epochs": 150}  # is no number of steps
    changes = ({}, {"schedule.steps": 200}, {"mask.ratio": 0.5, "schedule.steps": 400}, epochs)
    for i, change in enumerate(changes):
        settings = {**base, **change}
        runs.append(record(i, "pretrain", {"val_loss": 0.4}, init="random", protocol=settings, preset="mini"))
        linear = {"protocol": "linear", "recipe": "linear_mae"}
        trained = record(10 + i, "folder", {"top1": 50.0 + i}, protocol=linear, preset="mini")
        trained["backbone"]["trained_as"] = runs[-1]["settings_id"]
        runs.append(trained)
    found = {p.stem.split("-classification")[0]: p.series for p in comparison_plots(runs) if "pre-training" in p.title}
    assert [(s.x, s.y) for s in found.pop("length")] == [((100.0, 200.0), (50.0, 51.0))]
    assert not found


def test_mask_ratio_joins_pre_trainings_with_what_their_weights_reach() -> None:
    (found,) = plot("mask-ratio-").series
    assert (found.x, found.y) == ((0.25, 0.5, 0.75), (81.0, 83.0, 84.0))


def test_unlike_protocols_are_series_of_their_own() -> None:
    runs = [
        record(i, "coco", {"box_AP": 40.0 + i}, size=size, protocol={"optim.lr": lr})
        for i, (size, lr) in enumerate([("b", 1e-3), ("l", 1e-3), ("b", 2e-3)])
    ]
    (found,) = [p for p in comparison_plots(runs) if p.stem.startswith("size-")]
    assert sorted((s.name, len(s.x)) for s in found.series) == [("MAE", 2), ("MAE (2)", 1)]


def test_the_order_of_records_does_not_matter() -> None:
    records = all_records()
    shuffled = records.copy()
    random.Random(0).shuffle(shuffled)
    assert [p.frame().to_csv() for p in comparison_plots(records)] == [
        p.frame().to_csv() for p in comparison_plots(shuffled)
    ]


def test_curves_of_a_run() -> None:
    run = record(0, "coco", {"box_AP": 50.0, "mask_AP": 45.0})
    losses = loss_plot(run)
    assert losses is not None
    assert [s.name for s in losses.series] == ["loss", "loss_a", "loss_b"]
    metric = metric_plot(run)
    assert metric is not None
    assert metric.series[0].x == (2, 4, 6)
    assert metric.series[0].y == pytest.approx((50 * 2 / 7, 50 * 4 / 7, 50.0))
    rate = schedule_plot(run)
    assert rate is not None
    by_recipe, in_run = rate.series
    curve = dict(zip(by_recipe.x, by_recipe.y, strict=True))
    assert in_run.x == (1, 2, 3, 4, 5, 6)
    for epoch, lr in zip(in_run.x, in_run.y, strict=True):  # the closed form of the fixture is written independently
        assert curve[epoch] == pytest.approx(lr, abs=1e-12)
    steps = [{"step": i, "epoch": i / 10, "loss": 1.0} for i in range(1, 4)]
    one_epoch = loss_plot(run | {"history": run["history"][:1]}, steps)
    assert one_epoch is not None
    assert one_epoch.series[0].x == (0.1, 0.2, 0.3)


def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    found = plot("size-coco-mask-rcnn-li2021-full-coco-val2017-box-ap")
    assert png(found) == png(found)
    assert svg(found) == svg(found)
    write_plot(found, tmp_path / "new" / "curve")
    assert (tmp_path / "new" / "curve.png").read_bytes().startswith(b"\x89PNG")
    ET.parse(tmp_path / "new" / "curve.svg")
    lines = (tmp_path / "new" / "curve.csv").read_text().splitlines()
    assert lines[0] == "name,size,box_AP,std,n"


def test_names_are_shown_as_they_are_and_ids_are_the_page_s_own() -> None:
    names = (HOSTILE, "_hidden", "$\\frac{1}{$")
    made = Plot("x", HOSTILE, "x", "y", tuple(Series(name, (1, 2), (1.0, 2.0)) for name in names))
    element = ET.fromstring(page_svg(made, "p1-"))
    text = " ".join("".join(e.itertext()) for e in element.iter() if e.tag.endswith("text"))
    for name in names:
        assert name[:60].strip() in text.replace("\u00a0", "")
    ids = [e.attrib["id"] for e in element.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    assert all(name.startswith("p1-") for name in ids)
    assert not [e for e in element.iter() if e.tag.endswith(("script", "image", "foreignObject"))]
    markup = page_svg(made, "p1-")
    assert set(re.findall(r"#p1-[^)\"]*|url\(#(?!p1-)", markup)) <= {f"#{name}" for name in ids}


def test_series_differ_without_colour() -> None:
    from mae_transfer.results.plots.figure import LINES, MARKERS

    looks = {(MARKERS[i % len(MARKERS)], str(LINES[(i // len(MARKERS) + i) % len(LINES)])) for i in range(18)}
    assert len(looks) == 18
    assert len(set(COLOURS)) == len(COLOURS)
