"""The difference of each row of a table to a control: paired, with an interval, and a mark where that leaves out zero.

The control of MAE's readers is supervised pre-training, the first row of the paper's Tables 4 and 5; where a table has
no such run, and on ImageNet-1K, whose labels supervised pre-training has seen, it is training from random weights (the
"scratch" of Table 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mae_transfer.errors import UserError
from mae_transfer.results.comparable_runs import ComparableRuns, changes
from mae_transfer.results.names import init_title
from mae_transfer.results.statistics import (
    Interval,
    accuracy_interval,
    ap_interval,
    mean_interval,
    miou_interval,
    resampled_ap,
    t_interval,
)
from mae_transfer.results.tables.block import Block, Place, Row
from mae_transfer.results.tables.table import MISSING, Cell, Table
from mae_transfer.run_folder.matches import AveragePrecision
from mae_transfer.run_folder.per_image import (
    IOU,
    KINDS,
    Arrays,
    dense,
    known_source,
    read_per_image,
    same_images,
    values_of,
)

SUPERVISED = ("sup", "supervised (this project)")
NOTE = (
    "Mean difference to the control, in points of the metric. Pairs are runs of one seed; the interval is at 95 %: "
    "Student's t over n seeds or, of a single pair (or of runs that no seed changes), a bootstrap over the val images. "
    "* marks an interval without zero; no correction is made for the number of comparisons."
)


@dataclass
class Comparison:
    """What to compare with, the per-image results read so far, and what was wrong with some."""

    control: str | None = None
    warnings: list[str] = field(default_factory=list)
    _read: dict[str, Arrays | None] = field(default_factory=dict)
    _resampled: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def controls(self, of_task: Sequence[str]) -> list[str]:
        """Initialisations that may be the control, the best first: the one asked for, else those of the task."""
        if self.control is not None:
            return [self.control]
        return [init for control in of_task for init in (SUPERVISED if control == "sup" else (control,))]

    def images(self, run: Mapping[str, Any]) -> Arrays | None:
        """The per-image results of a run, None if it has none that can be used."""
        if run["folder"] is None or run["per_image"] is None:
            return None
        folder = run["folder"]
        if folder not in self._read:
            try:
                self._read[folder] = read_per_image(Path(folder), run["per_image"])
            except UserError as error:
                self.warnings.append(str(error))
                self._read[folder] = None
        return self._read[folder]

    def source(self, folder: str, arrays: Arrays, metric: str, source: str) -> str | None:
        """What the metric follows from in a run's results; None, which is said, if nothing that is known."""
        known = known_source(arrays, source)
        try:
            if known is not None and known not in (IOU, *KINDS):
                values_of(arrays, known)
            why = f"the task's card does not say by per_image what {metric} follows from" if known is None else ""
            why = f"they have no array {source}" if known is None and source else why
        except UserError as error:
            known, why = None, str(error)
        line = f"{folder}: no interval over images from its per-image results: {why}"
        if known is None and line not in self.warnings:
            self.warnings.append(line)
        return known

    def resampled_ap(self, folder: str, arrays: Arrays, kind: str) -> np.ndarray:
        """AP of resamples of a run's images; a run is resampled once, whatever it is compared with."""
        if (folder, kind) not in self._resampled:
            self._resampled[folder, kind] = resampled_ap(AveragePrecision(arrays, kind), len(arrays["ids"]))
        return self._resampled[folder, kind]


def difference_table(block: Block, comparison: Comparison) -> Table | None:
    """The rows of each section against its control; None where no section has a control and another run to compare."""
    rows, notes = [], list[str]()
    for section in map(block.runs_of, block.sections):
        groups = [group for row in section for group in row.places.values()]
        control = next((c for c in comparison.controls(block.controls) if any(g.init == c for g in groups)), None)
        for row in section:
            others = {place: group for place, group in row.places.items() if group.init != control}
            if control is None or not others:
                continue
            found = {place: _control(section, place, control, group) for place, group in others.items()}
            cells, said = [], list[str]()
            for column in block.columns:
                against = found.get(column.place)
                cells.append(
                    MISSING if against is None else difference(others[column.place], against, column.metric, comparison)
                )
            for place, against in found.items():
                if against is not None and (unlike := changes(others[place], against, ignore=("model.blocks",))):
                    said.append(f"{_title(place)}: {unlike}")
                if against is not None and not others[place].runs.keys() & against.runs.keys():
                    said.append(f"{_title(place)}: no seed that both have")
            if all(cell is MISSING for cell in cells) and not said:
                continue
            label = f"{row.label} − {init_title(control)}"
            if said:
                notes.append(f"[d{len(notes) + 1}] unlike its control in {'; '.join(said)}.")
                label += f" [d{len(notes)}]"  # the label has the number of its own table's footnote already
            rows.append((label, tuple(cells)))
    head = (block.first, *(column.head for column in block.columns))
    return Table(f"{block.title}: differences", NOTE, head, tuple(rows), tuple(notes)) if rows else None


def _control(section: Sequence[Row], place: Place, control: str, group: ComparableRuns) -> ComparableRuns | None:
    """At this place the control's runs of the same settings, else its first ones."""
    there = [row.places[place] for row in section if place in row.places and row.places[place].init == control]
    return next((g for g in there if g.settings_id == group.settings_id), there[0] if there else None)


def difference(group: ComparableRuns, control: ComparableRuns, metric: str, comparison: Comparison) -> Cell:
    """'+2.4 [+1.8, +3.0]* (n=3)', '+2.4 [+0.9, +3.9]* (images)', '+2.4 (n=1)', or '-' without a pair."""
    of_group, of_control = group.of(metric), control.of(metric)
    pairs = sorted(of_group.keys() & of_control.keys())
    if not pairs:
        return MISSING
    differences = [of_group[pair] - of_control[pair] for pair in pairs]
    mean, over = float(np.mean(differences)), f"n={len(pairs)}"
    interval = t_interval(differences)
    # where a seed moves neither side (knn), or there is but one: what remains is what other images would change
    still = all(len({of[pair] for pair in pairs}) == 1 for of in (of_group, of_control))
    if interval is None and still:
        interval = _over_images(group.runs[pairs[-1]], control.runs[pairs[-1]], metric, mean, comparison)
        over = over if interval is None else "images"
    if interval is None:
        return Cell(f"{_signed(mean)} ({over})", mean, n=len(pairs))
    mark = "*" if interval.excludes_zero else ""
    text = f"{_signed(mean)} [{_signed(interval.low)}, {_signed(interval.high)}]{mark} ({over})"
    return Cell(text, mean, n=len(pairs), low=interval.low, high=interval.high)


def _over_images(
    run: Mapping[str, Any], control: Mapping[str, Any], metric: str, measured: float, comparison: Comparison
) -> Interval | None:
    if metric not in run["sources"] or metric not in control["sources"]:
        return None
    one, other = comparison.images(run), comparison.images(control)
    if one is None or other is None or not same_images(one, other) or not len(one["ids"]):
        return None
    found = [
        comparison.source(of["folder"], arrays, metric, of["sources"][metric])
        for of, arrays in ((run, one), (control, other))
    ]
    if found[0] is None or found[0] != found[1]:
        return None
    if found[0] == IOU:
        classes = 1 + int(max(one["label"].max(initial=0), other["label"].max(initial=0)))
        return miou_interval(*dense(one, classes), *dense(other, classes))
    if found[0] in KINDS:
        resampled = [
            comparison.resampled_ap(of["folder"], arrays, found[0]) for of, arrays in ((run, one), (control, other))
        ]
        return ap_interval(measured, *resampled)
    values, others = values_of(one, found[0]), values_of(other, found[0])
    both_bool = values.dtype == others.dtype == bool
    return accuracy_interval(values, others) if both_bool else mean_interval(values, others)


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def _title(place: Place) -> str:
    return f"{place:g} blocks" if isinstance(place, float) else str(place)
