"""A series has the data of one run at a time in memory, reads none for runs that are done, and keeps every curve."""

import gc
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.report_records import record

from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.engine.task import BaseTask
from mae_transfer.errors import UserError
from mae_transfer.runs.curve import draw_curves
from mae_transfer.runs.plan import plan_runs
from mae_transfer.runs.series import run_series


class Counter(logging.Handler):
    """How many tasks are there while each run is made."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("run folder"):
            gc.collect()
            self.tasks.append(sum(issubclass(type(thing), BaseTask) for thing in gc.get_objects()))


def test_one_task_at_a_time_and_none_for_runs_that_are_done(tmp_path: Path) -> None:
    data = make_classification(tmp_path / "set", "folder", train_images=4, val_images=2)
    options: dict[str, Any] = {"preset": "smoke", "device": "cpu", "output": tmp_path / "out", "data": data}
    series = ("folder", "random_vit_nano")
    options |= {"protocol": "knn,linear,finetune", "overrides": ["data.image_size=32", "schedule.steps=2"]}
    logger, counter = logging.getLogger("mae_transfer"), Counter()
    logger.addHandler(counter)
    try:
        records = run_series(*series, **options, progress=True)
    finally:
        logger.removeHandler(counter)
    assert counter.tasks == [1, 1, 1]

    data.rename(tmp_path / "moved")
    again = run_series(*series, **options, resume=True)
    assert [one["run_id"] for one in again] == [one["run_id"] for one in records]
    (tmp_path / "out" / "linear" / "record.json").unlink()
    with pytest.raises(UserError, match="set"):
        run_series(*series, **options, resume=True)


def partial(blocks: float, fingerprint: str = "a") -> Any:
    settings = {"protocol": "partial", "recipe": "partial_mae", "model.blocks": blocks}
    one = record(0, "folder", {"top1": 70 + blocks}, protocol=settings)
    return one | {"data": one["data"] | {"fingerprint": fingerprint}}


def points(stem: Path) -> list[float]:
    return pd.read_csv(f"{stem}.csv")["blocks"].tolist()


def test_no_curve_takes_the_file_of_another(tmp_path: Path) -> None:
    stem = tmp_path / "partial_curve"
    draw_curves([partial(1), partial(2), partial(3, "b"), partial(4, "b")], stem)
    second = tmp_path / "partial_curve-2"
    assert (points(stem), points(second)) == ([1, 2], [3, 4])
    draw_curves([partial(2), partial(3)], stem)
    assert points(stem) == [1, 2], "not lost to a curve without one of its points"
    assert points(tmp_path / "partial_curve-3") == [2, 3]
    draw_curves([partial(1), partial(2), partial(4)], stem)
    assert points(stem) == [1, 2, 4], "the same curve with a point more"
    for kind in ("png", "svg"):
        assert len(list(tmp_path.glob(f"*.{kind}"))) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocol": "knn,logreg, knn"}, "--protocol: knn is there twice; give it once"),
        ({"protocol": "knn", "layers": "3,5,03,3"}, "--layers: 3 is there 3 times; give it once"),
        ({"protocol": "partial", "blocks": "1,2,1.0"}, "--blocks: 1 is there twice; give it once"),
        ({"protocol": "knn", "fraction": "5,50,5.0"}, "--fraction: 5 is there twice; give it once"),
    ],
)
def test_what_is_there_twice_is_refused(options: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{said}$"):
        plan_runs("folder", "random_vit_nano", data=tmp_path, **options)
