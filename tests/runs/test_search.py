"""--search: every combination a run, done runs skipped, stopped ones resumed, the best one named."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.command_line import ADE20K, TINY_ADE20K, transfer
from support.paths import GOLDENS

from mae_transfer.cli.transfer import main
from mae_transfer.config.recipe import config_folder, read_recipe
from mae_transfer.data.synthetic.ade20k import make_ade20k
from mae_transfer.errors import UserError
from mae_transfer.run_folder.record import read_record
from mae_transfer.runs.plan import plan_runs
from mae_transfer.runs.search import search_table
from mae_transfer.runs.tasks import task_card
from mae_transfer.tasks.card import metric

BASE = [*ADE20K, "--search"]


def grid(task: str, **options: Any) -> list[dict[str, Any]]:
    return [dict(run.point) for run in plan_runs(task, "mae_vit_b", search=True, **options)]


@pytest.mark.parametrize("task", ["ade20k", "coco"])
def test_the_values_of_every_documented_search_are_valid(task: str) -> None:
    card = task_card(task)
    recipe = read_recipe(task, card.protocols[0].recipe if card.protocols else card.recipe)
    assert recipe["search"].keys() - {"random"} == recipe["presets"].keys()
    for preset in recipe["presets"]:
        assert len(grid(task, preset=preset)) == math.prod(len(values) for values in recipe["search"][preset].values())
    assert len(grid(task)) == {"ade20k": 3, "coco": 9}[task]
    fixed = grid(task, overrides=["optim.lr=1e-5", "schedule.steps=9"])
    assert all(not {"optim.lr", "schedule.epochs"} & set(point) for point in fixed)


def test_random_weights_are_searched_at_100_epochs() -> None:
    """Li et al. 2.4: "using ViT-B and a 25 epoch schedule (or 100 epochs when initializing from scratch)"."""
    for backbone, options, epochs in (
        ("mae_vit_b", {}, 25),
        ("random_vit_b", {}, 100),
        ("mae_vit_b", {"weights": "random"}, 100),
    ):
        runs = plan_runs("coco", backbone, search=True, **options)
        assert len(runs) == 9
        assert {run.config.schedule.epochs for run in runs} == {epochs}
        assert {run.config.backbone.drop_path for run in runs} == {0.0}


def test_a_list_widens_the_grid_and_keeps_the_folders(tmp_path: Path) -> None:
    before = plan_runs("coco", "mae_vit_b", search=True, output=tmp_path)
    overrides = ["optim.lr=[4e-5,8e-5,1.6e-4,3.2e-4]"]
    wider = plan_runs("coco", "mae_vit_b", search=True, output=tmp_path, overrides=overrides)
    assert len(wider) == 12
    assert {run.path for run in before} < {run.path for run in wider}
    assert {run.config.optim.lr for run in wider} == {4e-5, 8e-5, 1.6e-4, 3.2e-4}
    with pytest.raises(UserError, match=r"optim.lr=\[\]: give a list of values to try, such as optim.lr='\[8e-05,"):
        grid("coco", overrides=["optim.lr=[]"])


def test_values_on_the_command_line_need_no_documented_grid() -> None:
    def points(*overrides: str, protocol: str = "finetune") -> list[dict[str, Any]]:
        runs = plan_runs("folder", "mae_vit_b", protocol=protocol, search=True, overrides=list(overrides))
        return [dict(run.point) for run in runs]

    with pytest.raises(
        UserError, match=r"no search for the preset full: give values to try, such as --search optim.lr="
    ):
        points("optim.betas=[0.9,0.95]")
    assert points("optim.lr=1e-4,2e-4", "optim.betas=[0.9,0.95]") == [{"optim.lr": 1e-4}, {"optim.lr": 2e-4}]
    two = points("optim.weight_decay=[0.05,0.1]", "schedule.kind=cosine,poly", "data.train_list=a,b.csv")
    assert [tuple(point.values()) for point in two] == [(d, k) for d in (0.05, 0.1) for k in ("cosine", "poly")]
    with pytest.raises(UserError, match="optim.momentum: optim.kind=adamw never reads it"):
        points("optim.momentum=0.8,0.9")
    with pytest.raises(UserError, match="'optim.lrr', did you mean optim.lr"):
        points("optim.lrr=1,2")
    beside = grid("ade20k", preset="mini", overrides=["schedule.power=0.9,1.0", "optim.lr=1e-4,3e-4"])
    assert sorted(sorted(point.items()) for point in beside) == sorted(
        [("optim.lr", lr), ("schedule.power", power)] for lr in (1e-4, 3e-4) for power in (0.9, 1.0)
    )


def test_a_best_value_on_the_boundary_is_said() -> None:
    """Li et al. 2.4: "If a local optimum is not found (i.e. the best value is a boundary value)", the search grows."""
    higher = metric("mIoU", "mIoU")
    points = [(("optim.lr", lr), ("x", x), ("y", 0.5)) for lr in (8e-5, 1.6e-4, 3.2e-4) for x in (0.05, 0.1, 0.2)]
    inside = search_table(points, [1, 2, 3, 4, 9, 5, 6, 7, 8], higher)
    assert inside.splitlines()[-1].startswith("best: optim.lr=0.00016 x=0.1 ")
    corner = search_table(points, [1, 2, 9, 4, 3, 5, 6, 7, 8], higher).splitlines()
    assert corner[-2].startswith("optim.lr=8e-05 is the lowest value tried, a better one may lie beyond")
    assert "optim.lr='[4e-05,8e-05,0.00016,0.00032]'" in corner[-2]
    assert corner[-1].startswith("x=0.2 is the highest value tried")
    assert "x='[0.05,0.1,0.2,0.4]'" in corner[-1]


def test_a_recipe_without_a_search_is_one_line(tmp_path: Path) -> None:
    text = (config_folder() / "ade20k" / "upernet_mae.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text[: text.index("\nsearch:")])
    with pytest.raises(UserError, match=r"mine\.yaml documents no search for the preset smoke"):
        grid("ade20k", preset="smoke", overrides=[f"recipe={path}"])
    path.write_text(text.replace("optim.lr: [1.0e-4, 2.0e-4]", "optim.lrr: [1]"))
    with pytest.raises(UserError, match="did you mean optim.lr"):
        grid("ade20k", preset="smoke", overrides=[f"recipe={path}"])


def test_the_table_names_the_best() -> None:
    points = [(("optim.lr", 1e-4), ("x", 1)), (("optim.lr", 2e-4), ("x", 1)), (("optim.lr", 4e-4), ("x", 2))]
    higher = metric("mIoU", "mIoU")
    table = search_table(points, [41.234, None, 41.236], higher).splitlines()
    assert table[0] == "| optim.lr | x | mIoU |"
    assert table[2:5] == ["| 0.0001 | 1 | 41.23 |", "| 0.0002 | 1 | diverged |", "| 0.0004 | 2 | 41.24 |"]
    assert table[6].startswith("best: optim.lr=0.0004 x=2 (mIoU 41.24")
    assert "best" not in search_table(points, [None, math.nan, None], higher)
    lower = metric("rmse", "RMSE", better="lower")
    assert "best: optim.lr=0.0001 x=1 (RMSE 41.23)" in search_table(points, [41.234, None, 41.236], lower)


def test_done_runs_are_skipped_and_stopped_ones_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_ade20k(tmp_path / "ade", train_images=4, val_images=2, size=(40, 64))
    command = [*BASE, "--data", str(data), "--output", str(tmp_path / "search"), *TINY_ADE20K]
    assert main(command) == 0
    first = capsys.readouterr()
    assert first.out.splitlines()[0] == "| optim.lr | mIoU |"
    assert "best: optim.lr=" in first.out
    assert "chosen on the validation set" in first.out
    folders = [tmp_path / "search" / f"optim.lr={lr}" for lr in ("0.0001", "0.0002")]
    records = [read_record(folder / "record.json") for folder in folders]
    assert [record["settings"]["optim.lr"] for record in records] == [1e-4, 2e-4]

    done = (folders[0] / "record.json").read_bytes()
    (folders[1] / "record.json").unlink()
    assert main(command) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "run 1 of 2 (optim.lr=0.0001): finished before: " in again.err
    assert "run 2 of 2 (optim.lr=0.0002): " in again.err
    assert (folders[0] / "record.json").read_bytes() == done
    assert read_record(folders[1] / "record.json")["run_id"] == records[1]["run_id"], "resumed, not made anew"

    assert main([*command, "optim.weight_decay=0.1"]) == 2
    assert "optim.weight_decay: 0.05 -> 0.1" in capsys.readouterr().err
    assert main([*command, "eval.mode=whole"]) == 2, "another evaluation of runs that are done"
    assert "optim.lr=0.0001 is of eval.mode=slide, not what is asked now" in capsys.readouterr().err
    assert main([*command, "--eval-only"]) == 2
    record = json.loads(done)
    record["data"]["parts"]["val"] = "of other data"
    (folders[0] / "record.json").write_text(json.dumps(record))
    assert main([*command, "optim.lr=[1.0e-4,2.0e-4,4.0e-4]"]) == 2
    assert "differs from the search's other runs also in data_fingerprint" in capsys.readouterr().err
    assert not (tmp_path / "search" / "optim.lr=0.0004").exists(), "seen before another run is made"

    for name in ("config.yaml", "record.json"):  # as commit a74307d left them, after the same command
        shutil.copy(GOLDENS / "earlier_search" / folders[0].name / name, folders[0])
    config = folders[0] / "config.yaml"
    config.write_text(config.read_text().replace("root: ade", f"root: {data}"))
    data.rename(tmp_path / "moved")
    assert main(command) == 0, "a table needs no data"
    told = capsys.readouterr()
    assert told.out.splitlines()[0] == "| optim.lr | mIoU |"
    assert told.err.count("only one of them has eval.precision\n") == 1


def test_two_ranks_and_a_run_that_diverges(tmp_path: Path) -> None:
    data = make_ade20k(tmp_path / "ade", train_images=4, val_images=2, size=(40, 64))
    text = (config_folder() / "ade20k" / "upernet_mae.yaml").read_text()
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text.replace("optim.lr: [1.0e-4, 2.0e-4]", "optim.lr: [1.0e+18, 1.0e-4]"))
    more = [*TINY_ADE20K, f"recipe={recipe}", "schedule.warmup_steps=0", "train.micro_batch=1"]
    done = transfer([*BASE, "--data", str(data), "--output", str(tmp_path / "search"), *more], ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("diverged") == 1
    assert done.stdout.count("best: optim.lr=0.0001") == 1
