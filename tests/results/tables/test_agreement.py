"""Rank agreement of columns, and the sensitivity of frozen protocols: what is compared, and what is not."""

from typing import Any

import pytest
from scipy import stats
from support.records import described
from support.tables import build_tables

from mae_transfer.results.plots.comparisons import comparison_plots
from mae_transfer.results.plots.figure import page_svg, png
from mae_transfer.results.tables.agreement import TOO_FEW
from mae_transfer.results.tables.table import Table
from mae_transfer.run_folder.schema import SCHEMA, RunRecord

INITS = ("random", "sup", "mae", "dino", "beit")


def record(number: int, init: str, task: str, value: float, seed: int = 0, **settings: Any) -> RunRecord:
    metric = {"ade20k": "mIoU", "coco": "box_AP"}.get(task, "top1")
    return RunRecord(
        schema=SCHEMA,
        run_id=f"run{number:04}",
        backbone={"name": f"{init}_vit_b", "init": init, "size": "b", "fingerprint": "w"},
        preset="mini",
        seed=seed,
        metrics={metric: value},
        data={"name": "shapes", "fingerprint": "f0"},
        **described(task, {"recipe": "a", **settings}),
    )


def columns(*of_column: tuple[str, dict[str, Any], tuple[float | None, ...]]) -> list[RunRecord]:
    """Runs of each (task, settings, value of each initialisation)."""
    found: list[RunRecord] = []
    for task, settings, values in of_column:
        for init, value in zip(INITS, values, strict=False):
            if value is not None:
                found.append(record(len(found), init, task, value, **settings))
    return found


KNN, LINEAR = {"protocol": "knn"}, {"protocol": "linear"}


def table(records: list[RunRecord], start: str) -> Table:
    (found,) = [table for table in build_tables(records) if table.title.startswith(start)]
    return found


def test_tau_of_each_pair_of_columns_over_common_encoders() -> None:
    knn, linear, dense = (10.0, 30.0, 20.0, 50.0, 40.0), (1.0, 2.0, 2.0, 4.0, None), (5.0, 4.0, 3.0, None, None)
    records = columns(("folder", KNN, knn), ("folder", LINEAR, linear), ("ade20k", {}, dense))
    found = table(records, "Rank agreement, mini")
    assert found.head == ("column", "(1)", "(2)")
    assert [label for label, _ in found.rows] == ["(2) top-1, linear: shapes", "(3) top-1, knn: shapes"]
    cell = found.rows[1][1][1]
    assert cell.n == 4
    assert cell.value == pytest.approx(stats.kendalltau(linear[:4], knn[:4]).statistic)
    assert cell.text.startswith("0.91 [")
    assert [c.text for c in (*found.rows[0][1], found.rows[1][1][0])] == ["-", "-", "-"], "under four in common"
    assert found.footnotes[0] == "(1) is mIoU: shapes."
    assert found.footnotes[1].startswith("2 of 3 pairs are not shown: under 4 common encoders")
    titles = [table.title for table in build_tables(records)]
    assert titles[:2] == ["Overview, mini", "Rank agreement, mini"]


def test_columns_where_lower_is_better_are_turned() -> None:
    errors = [
        {**record(i, init, "folder", value), "task": "depth", "row": {"name": "", "rank": 0, "frozen": False}}
        for i, (init, value) in enumerate(zip(INITS, (0.5, 0.4, 0.3, 0.2, 0.1), strict=True))
    ]
    for each in errors:
        (report,) = [report for report in each["reports"] if report["main"]]
        each["reports"] = [{**report, "better": "lower"}]
    records = [*columns(("coco", {}, (1.0, 2.0, 3.0, 4.0, 5.0))), *(RunRecord(**each) for each in errors)]
    records = [RunRecord(**{**each, "run_id": f"run{i}"}) for i, each in enumerate(records)]
    cell = table(records, "Rank agreement").rows[0][1][0]
    assert (cell.value, cell.high, cell.n) == (1.0, 1.0, 5)
    assert "*" in cell.text


def test_too_few_encoders_are_said_in_one_line() -> None:
    records = columns(("folder", KNN, (1.0, 2.0, 3.0)), ("folder", LINEAR, (1.0, 2.0, 3.0)))
    tables = build_tables(records)
    assert not [table for table in tables if table.title.startswith("Rank agreement")]
    assert tables[0].footnotes == (TOO_FEW,)
    assert not [plot for plot in comparison_plots(records) if plot.stem.startswith("agreement")]


def test_the_plot_has_the_numbers_of_the_table() -> None:
    records = columns(
        ("folder", KNN, (1.0, 2.0, 3.0, 4.0, 5.0)),
        ("folder", LINEAR, (1.0, 2.0, 3.0, 5.0, 4.0)),
        ("coco", {}, (5.0, 4.0, 3.0, 2.0, 1.0)),
    )
    (plot,) = [plot for plot in comparison_plots(records) if plot.stem == "agreement-mini"]
    frame = plot.frame()
    found = table(records, "Rank agreement")
    cells = {f"{j + 1}–{i + 2}": c for i, (_, row) in enumerate(found.rows) for j, c in enumerate(row) if c.value}
    assert len(frame) == 3
    for row in frame.to_dict("records"):
        cell = cells[row["pair"]]
        assert (row["tau"], row["low"], row["high"], row["n"]) == (cell.value, cell.low, cell.high, cell.n)
    assert [series.name.split(" ")[0] for series in plot.series] == ["(1)", "(2)", "(3)"], "each column is named"
    assert png(plot) == png(plot)
    assert "Rank agreement" in page_svg(plot, "p-")


def test_a_sweep_of_layers_has_a_table_and_a_plot_of_its_own_and_is_in_no_other() -> None:
    settings = {"protocol": "knn", "data.mask_suffix": "", "probe.standardise": True}
    values = {("mae", 0): 10.0, ("mae", 5): 30.0, ("mae", 11): 20.0, ("sup", 0): 12.0, ("sup", 5): 25.0}
    values |= {("sup", 11): 35.0, ("dino", 3): 50.0}
    records = [
        record(i, init, "ade20k", value, **settings, **{"probe.layers": [layer]})
        for i, ((init, layer), value) in enumerate(values.items())
    ]
    records.append(record(10, "mae", "ade20k", 31.0, 1, **settings, **{"probe.layers": [5]}))
    records.append(record(11, "mae", "ade20k", 21.5, **settings, **{"probe.layers": "last"}))
    found = table(records, "Layer by layer, mini: Segmentation, knn, recipe a: shapes")
    assert found.head == ("encoder, mIoU at block", "0", "5", "11")
    rows = {label: [cell.text for cell in cells] for label, cells in found.rows}
    assert rows == {
        "supervised, B": ["12.0 (n=1)", "25.0 (n=1)", "35.0 (n=1)"],
        "MAE, B": ["10.0 (n=1)", "30.5 ± 0.7 (n=2)", "20.0 (n=1)"],
    }, "DINO has one layer, which is no sweep"
    others = [t for t in build_tables(records) if t != found and not t.published_only]
    cells = [cell.value for t in others for _, row in t.rows for cell in row]
    assert {21.5, 50.0} <= {*cells}
    assert not {10.0, 30.0, 30.5, 20.0, 12.0, 25.0, 35.0} & {*cells}
    plots = comparison_plots(records)
    (plot,) = [plot for plot in plots if plot.stem.startswith("layers-")]
    assert {series.name: (series.x, series.y) for series in plot.series} == {
        "supervised sup_vit_b": ((0, 5, 11), (12.0, 25.0, 35.0)),
        "MAE mae_vit_b": ((0, 5, 11), (10.0, 30.5, 20.0)),
    }
    assert "Layer by layer" in page_svg(plot, "p-")


def test_sensitivity_is_of_runs_that_differ_in_nothing_else() -> None:
    settings = {"protocol": "knn", "probe.k": (1,), "data.mask_suffix": "", "probe.layers": "last"}
    records = [
        record(i, init, "ade20k", value, seed, **{**settings, "probe.standardise": standardise, **more})
        for i, (init, standardise, value, seed, more) in enumerate(
            [
                ("mae", True, 30.0, 0, {}),
                ("mae", True, 31.0, 1, {}),
                ("mae", False, 20.0, 0, {}),
                ("mae", False, 20.5, 1, {}),
                ("sup", True, 40.0, 0, {}),
                ("sup", False, 39.0, 0, {}),
                ("dino", True, 50.0, 0, {}),
                ("dino", False, 48.0, 0, {"probe.k": (3,)}),
            ]
        )
    ]
    found = table(records, "Sensitivity, mini: Segmentation, knn, recipe a: shapes")
    assert found.head == (
        "encoder",
        "mIoU, standardise True",
        "mIoU, standardise False",
        "standardise False − standardise True",
    )
    rows = dict(found.rows)
    assert list(rows) == ["supervised, B", "MAE, B"], "DINO differs in k too"
    assert rows["supervised, B"][2].text == "−1.0 (n=1)"
    paired = stats.ttest_rel([20.0, 20.5], [30.0, 31.0]).confidence_interval(0.95)
    assert (rows["MAE, B"][2].low, rows["MAE, B"][2].high) == pytest.approx((paired.low, paired.high))
    assert not [
        t for t in build_tables([*records[:2], *records[4:5], *records[7:]]) if t.title.startswith("Sensitivity")
    ]
