"""Plots over many runs: size, cost, few labels, MAE's ablations, trained blocks, layers, rank agreement. No torch.

All are made from the long table. Points are means over seeds and draws with the standard deviation as error bars; runs
of unlike settings are never averaged: they are series of their own. Presets and data sets have plots of
their own, and published numbers join those of full runs on the benchmark itself.
"""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from mae_transfer.results.factors import FACTORS, Factor, amount
from mae_transfer.results.layers import sweeps
from mae_transfer.results.long_table import long_table
from mae_transfer.results.names import INIT_ORDER, SIZE_ORDER, init_title, metric_title
from mae_transfer.results.plots.agreement import agreement_plots
from mae_transfer.results.plots.figure import Plot, Series
from mae_transfer.results.published import read_published
from mae_transfer.results.tables.described import described_tasks
from mae_transfer.results.tables.partial import LINEAR, LINEAR_RECIPE, PARTIAL
from mae_transfer.run_folder.schema import RunRecord
from mae_transfer.run_folder.settings import settings_id

COMPARABLE = ["task", "protocol", "recipe", "preset", "data", "data_fingerprint"]
"""Columns of the long table that runs in one plot agree in."""
UNITS = {"GPU": "GPU-hours", "CPU": "CPU core-hours"}


def comparison_plots(records: Iterable[RunRecord]) -> list[Plot]:
    """Every plot that has something to compare, in a fixed order, whatever the order of the records."""
    records = list(records)
    long = long_table(records)
    of_layers = layer_plots(main_metrics(long))
    long = long[sweeps(long).isna()]
    table = main_metrics(long)
    plots = [*size_plots(table), *cost_plots(table), *partial_plots(table), *fraction_plots(table)]
    plots += [*of_layers, *ablation_plots(table)]
    plots = [plot for plot in plots if len({x for s in plot.series if not s.published for x in s.x}) > 1]
    plots += agreement_plots(described_tasks(long, records, ()))
    return [_numbered(plot, plots[:i]) for i, plot in enumerate(plots)]


def main_metrics(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the metrics that a task is judged by, with a column `title` of the metric's name and unit."""
    table = table[(table["main"] == True) & table["transfers"] & table["value"].notna()]  # noqa: E712, None is no main
    titles = [
        metric_title(str(row.metric_title) + (f" ({row.unit!s})" if row.unit else ""), str(row.better))
        for row in table.itertuples()
    ]
    return table.assign(title=pd.Series(titles, index=table.index, dtype=object))


def size_plots(table: pd.DataFrame) -> list[Plot]:
    """The metric over the encoder's size, a series each initialisation."""
    plots = []
    table = table[table["protocol"] != PARTIAL]
    for keys, group in _groups(table):
        series = []
        for init, name, rows in _series_of(group):
            points = [(str(size), *_mean(of_size)) for size, of_size in rows.groupby("size", sort=False)]
            series.append(_series(name, sorted(points, key=lambda point: _size_place(point[0])), key=init))
        for init, source, quoted in _published(group.iloc[0]):
            quoted = quoted.sort_values("size", key=lambda sizes: sizes.map(_size_place))
            name = f"{init_title(init)}, published ({source})"
            series.append(Series(name, tuple(quoted["size"]), tuple(quoted["value"]), key=init, published=True))
        places = sorted({size for s in series for size in s.x}, key=_size_place)
        shown = {size: _size_title(size) for size in places}
        series = [_renamed(s, shown) for s in series]
        plots.append(
            Plot(
                f"size-{keys}",
                f"Model size: {_about(group)}",
                "encoder",
                str(group["title"].iloc[0]),
                tuple(series),
                ("size", str(group["metric"].iloc[0])),
                tuple(shown.values()),
            )
        )
    return plots


def cost_plots(table: pd.DataFrame) -> list[Plot]:
    """The metric over the cost of training, a point for each set of comparable runs, its encoder's size beside it."""
    plots = []
    table = table[(table["hours"] > 0) & (table["preset"] != "smoke")]  # the cost of a few steps says nothing
    for keys, group in _groups(table, ["processor"]):
        series = []
        for init, name, rows in _series_of(group):
            points: list[tuple[float, float, float, int, str]] = [
                (float(_once(like)["hours"].mean()), *_mean(like), _size_title(str(size)))
                for (size, *_), like in rows.groupby(["size", "blocks"], sort=False, dropna=False)
            ]
            points.sort()
            texts = tuple(point[-1] for point in points)
            series.append(_series(name, [point[:-1] for point in points], key=init, texts=texts, line=False))
        hours = [x for s in series for x in s.x]
        unit = UNITS.get(str(group["processor"].iloc[0]), "hours")
        plots.append(
            Plot(
                f"cost-{keys}",
                f"Cost: {_about(group)}",
                f"{unit} of a run (wall time of training, all processes)",
                str(group["title"].iloc[0]),
                tuple(series),
                ("hours", str(group["metric"].iloc[0])),
                log_x=max(hours) > 8 * min(hours),
            )
        )
    return plots


def partial_plots(table: pd.DataFrame) -> list[Plot]:
    """Accuracy over the number of trained blocks; the linear probe of the same weights and data stands at 0.

    Runs that differ in the number of blocks alone are a series. Linear probes that are not alike are left out.
    """
    plots = []
    like = [
        settings_id({key: value for key, value in settings.items() if key != "model.blocks"})
        for settings in table["settings"]
    ]
    table = table.assign(like=pd.Series(like, index=table.index, dtype=object))
    probes = table[(table["protocol"] == LINEAR) & (table["recipe"] == LINEAR_RECIPE)].assign(blocks=0.0)
    same = ["backbone", "weights", "task", "preset", "data_fingerprint", "size"]
    for keys, group in _groups(table[table["protocol"] == PARTIAL]):
        series, names = [], list[str]()
        order = ["init", "size", "backbone", "weights", "like"]
        found: list[Any] = list(group.groupby(order))
        for values, rows in sorted(found, key=lambda item: (_init_place(item[0][0]), item[0])):
            init, backbone = values[0], values[2]
            linear = probes[(probes[same] == rows.iloc[0][same]).all(axis=1)]
            if linear["settings_id"].nunique() == 1:
                rows = pd.concat([linear, rows])
            points = [(float(str(blocks)), *_mean(at)) for blocks, at in rows.groupby("blocks", sort=True)]
            names.append(f"{init_title(init)} {backbone}")
            series.append(_series(_unique(names), points, key=init))
        for init, source, quoted in _published(group.iloc[0]):
            for size, of_size in quoted[quoted["size"].isin(set(group["size"]))].groupby("size", sort=True):
                ordered = of_size.sort_values("blocks")
                name = f"{init_title(init)} {_size_title(str(size))}, published ({source})"
                x, y = tuple(ordered["blocks"]), tuple(ordered["value"])
                series.append(Series(name, x, y, key=init, published=True))
        plots.append(
            Plot(
                f"partial-{keys}",
                f"Partial fine-tuning: {_about(group)}",
                "blocks fine-tuned (0: linear probe)",
                str(group["title"].iloc[0]),
                tuple(series),
                ("blocks", str(group["metric"].iloc[0])),
                tuple(sorted({x for s in series for x in s.x})),  # evenly spaced, as in the paper
            )
        )
    return plots


def layer_plots(table: pd.DataFrame) -> list[Plot]:
    """The metric over the block whose features a frozen protocol reads; runs that differ in it alone are a series."""
    table = table.assign(like=sweeps(table))
    plots = []
    for keys, group in _groups(table[table["like"].notna()]):
        series, names = [], list[str]()
        values: Any
        for values, rows in group.groupby(["init", "size", "backbone", "weights", "like"], sort=True):
            points = [(int(float(str(layer))), *_mean(at)) for layer, at in rows.groupby("layer", sort=True)]
            names.append(f"{init_title(values[0])} {values[2]}")
            series.append(_series(_unique(names), points, key=values[0]))
        plots.append(
            Plot(
                f"layers-{keys}",
                f"Layer by layer: {_about(group)}",
                "block that is read, numbered from 0",
                str(group["title"].iloc[0]),
                tuple(sorted(series, key=lambda each: _init_place(str(each.key)))),
                ("layer", str(group["metric"].iloc[0])),
                tuple(sorted({x for s in series for x in s.x})),
            )
        )
    return plots


def fraction_plots(table: pd.DataFrame) -> list[Plot]:
    """The metric over the percentage of the training images, with a point at 100 for runs on all of them.

    Runs that differ in the percentage and its draw alone are a series; means are over draws and seeds.
    """
    own = ("data.fraction", "data.fraction_rule", "data_fingerprint")
    like = [settings_id({k: v for k, v in settings.items() if k not in own}) for settings in table["settings"]]
    rule = [settings.get("data.fraction_rule") or "" for settings in table["settings"]]
    table = table.assign(like=pd.Series(like, index=table.index, dtype=object))
    table = table.assign(rule=pd.Series(rule, index=table.index, dtype=object))
    few, whole, plots = table[table["fraction"] < 100], table[table["fraction"] == 100], []
    same = ["init", "size", "backbone", "weights", "like"]
    keys: Any
    for keys, group in few.groupby(["task", "protocol", "recipe", "preset", "whole_fingerprint", "metric"], sort=True):
        *parts, fingerprint, metric = keys
        series, names = [], list[str]()
        found: list[Any] = list(group.groupby([*same, "rule"]))
        for values, rows in sorted(found, key=lambda item: (_init_place(item[0][0]), item[0])):
            all_of_it = whole[(whole["metric"] == metric) & (whole["whole_fingerprint"] == fingerprint)]
            rows = pd.concat([rows, all_of_it[(all_of_it[same] == rows.iloc[0][same]).all(axis=1)]])
            points = [(float(str(percent)), *_mean(at)) for percent, at in rows.groupby("fraction", sort=True)]
            names.append(f"{init_title(values[0])} {values[2]}")
            series.append(_series(_unique(names), points, key=values[0]))
        stem = "-".join(filter(None, (*parts, metric, str(fingerprint)[:6]))).lower()
        first = group.iloc[0]
        about = _about(group).replace(f", {first['fraction']:g} % of the training images", "")
        plots.append(
            Plot(
                f"fraction-{re.sub('[^a-z0-9]+', '-', stem)}",
                f"Few labels: {about}",
                "percent of the training images",
                str(first["title"]),
                tuple(series),
                ("percent", str(metric)),
                log_x=True,
            )
        )
    return plots


def ablation_plots(table: pd.DataFrame) -> list[Plot]:
    """The metric of transfer over a number of MAE's pre-training (`factors.py`: mask ratio, decoder, length), for
    weights whose pre-training has a record.

    Pre-trainings that differ in that alone are a series.
    """
    by_mae = [bool(settings) and settings.get("method") == "mae" for settings in table["pretraining"]]
    known = table[np.array(by_mae, dtype=bool)]
    return [plot for factor in FACTORS for plot in _plots_of(factor, known)]


def _plots_of(factor: Factor, known: pd.DataFrame) -> list[Plot]:
    like = pd.Series([factor.rest(settings) for settings in known["pretraining"]], index=known.index, dtype=object)
    known = known.assign(like=like)[like.notna()]
    amounts = [amount(factor.name(settings)) for settings in known["pretraining"]]
    known = known.assign(amount=pd.Series(amounts, index=known.index, dtype=float))
    plots = []
    for keys, group in _groups(known[known["amount"].notna()]) if factor.title != "mask sampling" else ():
        series, names = [], list[str]()
        order = ["init", "size", "backbone", "like", "settings_id", "blocks"]
        values: Any
        for values, rows in group.groupby(order, sort=True, dropna=False):
            blocks = "" if values[-1] != values[-1] else f", {values[-1]:g} blocks"
            names.append(f"{init_title(values[0])} {values[2]}{blocks}")
            points = [(float(str(x)), *_mean(at)) for x, at in rows.groupby("amount", sort=True)]
            series.append(_series(_unique(names), points))
        series = [each for each in series if len(each.x) > 1]
        stem = factor.title.replace(" ", "-")
        plots.append(
            Plot(
                f"{stem}-{keys}",
                f"{factor.title.capitalize()} of the pre-training: {_about(group)}",
                f"{factor.title} of the pre-training",
                str(group["title"].iloc[0]),
                tuple(series),
                (stem.replace("-", "_"), str(group["metric"].iloc[0])),
            )
        )
    return plots


def _groups(table: pd.DataFrame, more: Iterable[str] = ()) -> list[tuple[str, pd.DataFrame]]:
    """(part of a file name, comparable runs of one metric), in a fixed order."""
    found = []
    keys: Any
    for keys, group in table.groupby([*COMPARABLE, *more, "metric"], sort=True):
        _, protocol, recipe, preset, data, fingerprint, *_, metric = keys
        heading, name = group["heading"].iloc[0], data.split(" (")[0]  # without its counts
        parts = (heading, protocol, recipe, preset, name, metric, str(fingerprint)[:6])
        found.append((re.sub("[^a-z0-9]+", "-", "-".join(filter(None, parts)).lower()), group))
    return found


def _series_of(group: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """(initialisation, name, rows): an initialisation has a series for each of its rows in the tables."""
    found = []
    for init in sorted({*group["init"]}, key=_init_place):
        rows: list[list[pd.DataFrame]] = []
        for _, of_size in group[group["init"] == init].groupby(["size", "blocks"], sort=True, dropna=False):
            for k, (_, like) in enumerate(of_size.groupby(["backbone", "weights", "settings_id"], sort=True)):
                if k == len(rows):
                    rows.append([])
                rows[k].append(like)
        found += [
            (init, init_title(init) + (f" ({k + 1})" if k else ""), pd.concat(parts)) for k, parts in enumerate(rows)
        ]
    return found


def _mean(rows: pd.DataFrame) -> tuple[float, float, int]:
    """Mean, standard deviation and number over seeds and draws, each counted once."""
    values = _once(rows)["value"]
    return float(values.mean()), float(values.std(ddof=1)), len(values)


def _once(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop_duplicates(["seed", "draw"], keep="last")


def _series(name: str, points: list[Any], **options: Any) -> Series:
    x, y, std, n = zip(*points, strict=True)
    return Series(name, x, y, std, n, **options)


def _renamed(series: Series, shown: dict[str, str]) -> Series:
    return Series(**{**vars(series), "x": tuple(shown[x] for x in series.x)})


def _published(run: pd.Series) -> list[tuple[str, str, pd.DataFrame]]:
    """(initialisation, source, rows) of the published numbers that runs like this one are comparable with."""
    if run["preset"] != "full" or not run["benchmark"] or run["data"] != run["benchmark"]:
        return []
    quoted = read_published()
    same = (
        (quoted["task"] == run["task"]) & (quoted["metric"] == run["metric"]) & (quoted["protocol"] == run["protocol"])
    )
    same &= quoted["recipe"].isin(["", run["recipe"]])
    for column in ("task", "metric", "protocol"):
        same &= quoted[column] == run[column]
    groups = quoted[same].groupby(["init", "source"], sort=True)
    found = [(str(init), str(source), rows) for (init, source), rows in groups]
    return sorted(found, key=lambda item: (_init_place(item[0]), item[1]))


def _about(group: pd.DataFrame) -> str:
    run = group.iloc[0]
    what = " ".join(filter(None, (run["heading"], run["protocol"])))
    return f"{what}, {run['preset']}, {run['data']}, recipe {run['recipe']}"


def _init_place(init: str) -> tuple[int, str]:
    return (INIT_ORDER.index(init) if init in INIT_ORDER else len(INIT_ORDER), init)


def _size_place(size: str) -> tuple[int, str]:
    letters = size.rstrip("0123456789")
    return (SIZE_ORDER.index(letters) if letters in SIZE_ORDER else len(SIZE_ORDER), size)


def _size_title(size: str) -> str:
    letters = size.rstrip("0123456789")
    return size if letters not in SIZE_ORDER else f"{letters.capitalize()} {size[len(letters) :]}".strip()


def _unique(names: list[str]) -> str:
    """The last name, numbered if it has come before."""
    before = names.count(names[-1])
    return names[-1] if before == 1 else f"{names[-1]} ({before})"


def _numbered(plot: Plot, before: list[Plot]) -> Plot:
    """With a stem of its own: data sets that differ may shorten to the same."""
    same = sum(other.stem == plot.stem for other in before)
    return Plot(**{**vars(plot), "stem": f"{plot.stem}-{same + 1}"}) if same else plot
