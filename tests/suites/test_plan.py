"""A suite file becomes the runs that it asks for, each checked; what is wrong with it is one line, exit code 2."""

import fcntl
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import TOOLS
from support.records import described

from mae_transfer.cli.pretrain import build_parser as build_pretrain_parser
from mae_transfer.cli.suite import main
from mae_transfer.cli.transfer import build_parser
from mae_transfer.config.recipe import config_folder
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.errors import UserError
from mae_transfer.run_folder.schema import SCHEMA
from mae_transfer.runs.plan import plan_runs
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.tasks import task_card
from mae_transfer.suites.config import SuiteConfig
from mae_transfer.suites.estimate import Estimator
from mae_transfer.suites.matrix import duration, show_matrix
from mae_transfer.suites.plan import SuiteRun, check_runs, plan_suite
from mae_transfer.suites.state import RunPlace, is_locked, last_line, take_claim

SUITE: dict[str, Any] = {
    "name": "tiny",
    "preset": "smoke",
    "seeds": [0, 1],
    "pretrain": [{"label": "mae", "method": "mae", "backbone": "vit_nano_p8", "data": "images"}],
    "backbones": [{"name": "random_vit_nano"}],
    "tasks": [{"task": "folder", "protocol": ["knn", "linear"], "data": "images"}],
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(SUITE | changes))
    return path


def resolved_again(run: SuiteRun) -> tuple[Any, Path]:
    """What the run's own command line makes of its arguments."""
    if run.config.task == "pretrain":
        options = vars(build_pretrain_parser().parse_intermixed_args(list(run.arguments)))
        output = options.pop("output")
        for name in ("resume", "eval_only", "print_config", "allow_unread"):
            options.pop(name)
        config = resolve_config("pretrain", options.pop("backbone"), protocol=options.pop("method"), **options)
        return config, Path(output)
    options = vars(build_parser().parse_intermixed_args(list(run.arguments)))
    for name in ("resume", "eval_only", "print_config", "search"):
        options.pop(name)
    (planned,) = plan_runs(**options)
    return planned.config, planned.path


def test_the_commands_are_the_runs(tmp_path: Path) -> None:
    tasks = [
        {"task": "folder", "protocol": ["linear", "partial"], "blocks": "0,0.5,2", "overrides": ["data.flip=0"]},
        {"task": "folder", "protocol": "logreg", "shots": 2, "draws": 2, "label": "few", "seeds": [1]},
        {"task": "ade20k", "search": True, "backbones": ["mae"], "subset": 3},
    ]
    tasks[2]["overrides"] = ["optim.weight_decay=0.2", "optim.lr=[2.0e-4,3.0e-4]"]
    tokenizer = {"label": "tokens", "method": "dvae", "backbone": "vit_nano_p8"}
    beit = {"label": "beit", "method": "beit", "backbone": "vit_nano_p8", "tokenizer": "tokens"}
    path = written(tmp_path, tasks=tasks, pretrain=[beit, tokenizer, *SUITE["pretrain"]], overrides=["data.flip=1"])
    output, runs = plan_suite(path, output=tmp_path / "out", overrides=["device=cpu"])
    for run in runs:
        assert resolved_again(run) == (run.config, run.place.path)
        assert run.place.path.parent == output
        assert run.config.device == "cpu"
    columns = {(run.row, run.column): 0 for run in runs}
    for run in runs:
        columns[run.row, run.column] += 1
    partial = {"folder linear": 2, "folder partial-0.5blocks": 2, "folder partial-2blocks": 2}
    few = {"few logreg-2shot-draw0": 1, "few logreg-2shot-draw1": 1}
    both = partial | few
    assert columns == {
        **{(label, "pre-training"): 2 for label in ("tokens", "beit", "mae")},
        **{("beit", column): number for column, number in both.items()},
        **{("mae", column): number for column, number in both.items()},
        **{("random_vit_nano", column): number for column, number in both.items()},
        ("mae", "ade20k search"): 4,
    }
    rates = [run.config.optim.lr for run in runs if run.column == "ade20k search"]
    assert rates == [2e-4, 3e-4] * 2, "the values of the list, each once"
    linear = next(run for run in runs if run.column == "folder linear")
    assert linear.config.data.flip == 0, "the task's override wins over the suite's"
    of_label = {(run.row, run.seed): run.place.path for run in runs if run.column == "pre-training"}
    for run in runs:
        if run.row in ("mae", "beit") and run.column != "pre-training":
            assert run.needs == (of_label[run.row, run.seed],)
            assert run.config.backbone.checkpoint == str(run.needs[0])
        if run.row == "beit" and run.column == "pre-training":
            assert run.needs == (of_label["tokens", run.seed],)
    order = [run.place.path for run in runs]
    assert all(order.index(path) < order.index(run.place.path) for run in runs for path in run.needs)


def test_a_plain_text_is_an_entry(tmp_path: Path) -> None:
    short = {"name": "s", "backbones": ["mae_vit_b"], "tasks": ["coco", {"task": "ade20k", "seeds": [1]}]}
    long = short | {"backbones": [{"name": "mae_vit_b"}], "tasks": [{"task": "coco"}, {"task": "ade20k", "seeds": [1]}]}
    assert SuiteConfig.model_validate(short) == SuiteConfig.model_validate(long)
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(short | {"tasks": ["cocoo"]}))
    with pytest.raises(UserError, match="tasks: unknown task 'cocoo', did you mean coco"):
        plan_suite(tmp_path / "suite.yaml")
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(short | {"tasks": [3]}))
    with pytest.raises(UserError, match="tasks.0: Input should be a valid dictionary"):
        plan_suite(tmp_path / "suite.yaml")


def test_blocks_are_an_option_of_the_protocol_partial_alone(tmp_path: Path) -> None:
    tasks = [{"task": "folder", "protocol": ["finetune", "partial"], "overrides": ["model.blocks=2"]}]
    _, runs = plan_suite(written(tmp_path, pretrain=[], seeds=[0, 7], tasks=tasks), output=tmp_path / "out")
    assert [run.config.protocol for run in runs if "--blocks" in run.arguments] == ["partial"] * 2
    for run in runs:
        assert resolved_again(run) == (run.config, run.place.path)


def test_an_override_of_the_suite_needs_one_run_that_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path, pretrain=[], overrides=["probe.k=[5]", "data.holdout=0"])
    _, runs = plan_suite(path, output=tmp_path / "out", data={"images": str(tmp_path)})
    allowed = {run.column: "--allow-unread" in run.arguments for run in runs}
    assert allowed == {"images knn": False, "images linear": True}
    with pytest.raises(UserError, match=r"probe.c_count: protocol=knn never reads it \(logreg does\)"):
        plan_suite(path, output=tmp_path / "out", data={"images": str(tmp_path)}, overrides=["probe.c_count=3"])


def test_the_shipped_suites(tmp_path: Path) -> None:
    folder = config_folder() / "suites"
    names = ["imagenet", "inat2017", "inat2018", "inat2019", "places205", "places365", "coco", "ade20k"]
    data = {name: f"/nowhere/{name}" for name in names}
    with pytest.raises(
        UserError, match="mocov3_vit_b' has no published weights; give them by --checkpoint mocov3_vit_b="
    ):
        plan_suite(folder / "mae_vs_baselines.yaml", data=data)
    mocov3 = tmp_path / "mocov3.pth"
    mocov3.touch()
    _, runs = plan_suite(folder / "mae_vs_baselines.yaml", data=data, checkpoints={"mocov3_vit_b": str(mocov3)})
    assert len(runs) == 3 * (9 * 4 + 7 * 5)
    assert {run.config.preset for run in runs} == {"full"}
    _, runs = plan_suite(folder / "mae_vs_baselines.yaml", data=data, preset="smoke")
    rows = {run.row for run in runs}
    assert {"mae_vit_b", "mae_vit_l", "sup_vit_b", "sup_vit_l", "beit_vit_b", "beit_vit_l"} < rows
    assert {run.config.task for run in runs} == set(names)
    data = {"tiny_imagenet": "/a", "persons": "/b", "camvid": "/c", "flowers": "/d"}
    _, runs = plan_suite(folder / "transfer_study.yaml", data=data)
    assert len(runs) == 9 + 12 * 9
    pretrainings = {run.place.path.name for run in runs if not run.needs and run.config.task == "pretrain"}
    _, runs = plan_suite(folder / "paper_claims.yaml", data={"tiny_imagenet": "/a"})
    assert len(runs) == 7 * 3 * 2 + 3
    assert len(pretrainings & {run.place.path.name for run in runs}) == 3, "both have the same MAE"
    del data["tiny_imagenet"]
    _, runs = plan_suite(folder / "real_weights.yaml", data=data | {"panoptic": "/e"})
    assert len(runs) == 2 * 13
    _, runs = plan_suite(folder / "dense_protocols.yaml", data={"tiny_imagenet": "/a", "camvid": "/c"})
    assert len(runs) == 9 + 12 * 7
    dense = {run.place.path.name for run in runs if run.config.task == "pretrain"}
    assert dense == pretrainings, "the study's own"
    _, runs = plan_suite(folder / "many_classes.yaml", data={"tiny_imagenet": "/a", "panoptic": "/e"})
    assert len(runs) == 3 + 4 * 5
    assert {run.place.path.name for run in runs if run.config.task == "pretrain"} < pretrainings


def test_the_suite_of_frozen_protocols_has_every_one_of_them(tmp_path: Path) -> None:
    mocov3 = tmp_path / "mocov3.pth"
    mocov3.touch()
    data = {name: f"/nowhere/{name}" for name in ("imagenet", "ade20k", "coco")}
    path = config_folder() / "suites" / "frozen.yaml"
    _, runs = plan_suite(path, data=data, checkpoints={"mocov3_vit_b": str(mocov3)})
    found = {(run.config.task, getattr(run.config, "protocol", None)) for run in runs}
    known = {(task, p.name) for task in data for p in task_card(task).protocols if p.frozen}
    assert found == known
    assert len(runs) == 6 * len(found)
    assert not [run.title for run in runs if "--allow-unread" in run.arguments]


BAD: list[tuple[dict[str, Any], list[str], str]] = [
    ({"seed": [1]}, [], "seed: Extra inputs are not permitted, did you mean seeds?"),
    ({"tasks": [{"task": "folder", "protocl": "knn"}]}, [], "tasks.0.protocl: .*did you mean protocol?"),
    ({"tasks": [{"task": "pretrain"}]}, [], "tasks: pretrain is no task to transfer to; run mae-transfer pretrain"),
    ({"tasks": [{"task": "foldr"}]}, [], "unknown task 'foldr', did you mean folder?"),
    ({"tasks": [{"task": "folder", "protocol": "kn"}]}, [], "unknown protocol 'kn', did you mean knn"),
    ({"tasks": [{"task": "folder", "backbones": ["mea"]}]}, [], "no backbone 'mea', did you mean mae"),
    ({"backbones": [{"name": "mae_vit_q"}]}, [], "backbone 'mae_vit_q': unknown"),
    ({"backbones": [{"name": "random_vit_nano", "label": "mae"}]}, [], "'mae' is the label of two entries"),
    ({"backbones": [{"name": "random_vit_nano"}, {"name": "random_vit_nano", "label": "b"}]}, [], "is the same run as"),
    ({"overrides": ["data.flp=1"]}, [], "mae images seed 0: unknown config key 'data.flp', did you mean data.flip"),
    ({"overrides": ["optim.lr=1"]}, [], r"optim.lr would reach runs of several recipes \(knn, linear\)"),
    ({"pretrain_overrides": ["mask.ratio=2"]}, [], "mae pre-training seed 0: config key 'mask.ratio'"),
    ({"seeds": [0, 0]}, [], r"seeds \[0, 0\]: give different whole numbers"),
    ({"seeds": []}, [], "seeds: "),
    ({"backbones": [{"name": "mae_vit_nano", "checkpoint": "no.pth"}]}, [], "no weights file no.pth; .*--checkpoint"),
    ({"preset": "mini"}, [], "no folder for the data set 'images'; give --data images=FOLDER"),
    ({}, ["--data", "imges=x"], "--data imges=: the suite has no 'imges', did you mean images?"),
    ({}, ["--data", "images"], "--data images: write NAME=VALUE"),
    ({}, ["--checkpoint", "mae=x"], "--checkpoint mae=: the suite has no 'mae'.*random_vit_nano"),
    ({}, ["--data", "images=nowhere"], "mae pre-training seed 0: .*nowhere"),
    ({}, ["--set", "schedule.warmup_steps=4"], "mae pre-training seed 0: "),
    ({}, ["--jobs", "0"], "--jobs is 1 or more"),
    ({}, ["--gpus", "2", "--jobs", "2"], "--jobs 2 of 2 GPUs each, but 0 are visible"),
    ({}, ["--launcher", "slurm"], "--launcher slurm: "),
    ({}, ["--launcher", "slurm", "--slurm", "x=[1"], "override 'x=.1': the value is not valid YAML"),
    ({"pretrain": [], "backbones": []}, [], "a suite needs pre-trainings"),
    ({"tasks": [{"task": "pretrain"}]}, [], "pretrain is no task to transfer to"),
]


@pytest.mark.parametrize(("changes", "options", "message"), BAD, ids=[message[:30] for _, _, message in BAD])
def test_a_bad_suite_is_one_line(
    changes: dict[str, Any],
    options: list[str],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    command = [str(written(tmp_path, **changes)), "--output", str(tmp_path / "out"), *options]
    assert main(command) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert not list(tmp_path.glob("out/*/config.yaml")), "nothing was started"


def test_files_that_are_no_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "suite.yaml"
    assert main([str(path)]) == 2
    path.write_text("name: [")
    assert main([str(path)]) == 2
    path.write_text("- name")
    assert main([str(path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert f"{path} is not there; give the path of a file that is" in errors[0]
    assert "not valid YAML" in errors[1]
    assert "no mapping" in errors[2]


def test_a_lock_is_seen_and_not_touched(tmp_path: Path) -> None:
    place = RunPlace(tmp_path / "run")
    place.path.mkdir()
    assert place.seen_state() == "missing"
    (place.path / "config.yaml").write_text("{}")
    assert place.seen_state() == "stopped"
    lock = place.path / "run.lock"
    code = f"import fcntl, os; f = os.open({str(lock)!r}, os.O_RDWR | os.O_CREAT); fcntl.lockf(f, fcntl.LOCK_EX); "
    holder = subprocess.Popen(
        [sys.executable, "-c", code + "print(1, flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    assert is_locked(lock)
    assert place.state() == "running"
    holder.kill()
    holder.wait()
    assert not is_locked(lock)
    with lock.open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    claim = take_claim(place)
    assert claim is not None
    assert take_claim(place) is None
    assert place.seen_state() == "running"
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(claim,))
    os.close(claim)
    assert take_claim(place) is None, "the child of a runner that is gone holds it"
    child.kill()
    child.wait()
    assert place.seen_state() == "stopped"
    place.note_failure("it broke")
    assert (place.seen_state(), place.reason()) == ("failed", "it broke")
    (place.path / "record.json").write_text("{}")
    assert place.seen_state() == "done"


def test_estimates(tmp_path: Path) -> None:
    data = make_classification(tmp_path / "set", "folder", train_images=4, val_images=2)
    path = written(tmp_path, pretrain=[], seeds=[0, 1])
    _, runs = plan_suite(path, output=tmp_path / "out", data={"images": str(data)})
    steps = check_runs(runs, 1)
    knn, linear = runs[0], next(run for run in runs if "linear" in run.column)
    assert steps[knn.place.path] is None
    total = steps[linear.place.path]
    assert total is not None
    assert Estimator([tmp_path / "out"]).estimate(linear, total) is None

    protocol = {
        **{"protocol": "linear", "data.image_size": linear.config.data.image_size, "train.precision": "fp32"},
        "train.global_batch": linear.config.train.global_batch,
    }
    record = {
        **{"schema": SCHEMA, "run_id": "a", "preset": "smoke", "seed": 7, "metrics": {}},
        "data": {"name": "set", "fingerprint": "f"},
        "backbone": {"name": "random_vit_nano", "init": "random", "size": "nano"},
        **described("folder", protocol),
        **{"steps": 2 * total, "wall_seconds": 50.0, "peak_memory_bytes": 1000},
    }
    for number, seconds in enumerate((50.0, 10.0, 60.0)):
        folder = tmp_path / "earlier" / str(number)
        folder.mkdir(parents=True)
        text = json.dumps(record | {"run_id": str(number), "wall_seconds": seconds})
        (folder / "record.json").write_text(text)
    estimator = Estimator([tmp_path / "earlier"])
    estimate = estimator.estimate(linear, total)
    assert estimate is not None
    assert (estimate.seconds, estimate.memory) == (25.0, 1000)
    assert estimator.estimate(knn, None) is None

    linear.place.path.mkdir(parents=True)
    lines = [{"step": n, "loss": 1.0, "seconds": 100.0 + 3 * n, "memory": n} for n in range(1, 6)]
    (linear.place.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    estimate = estimator.estimate(linear, 105)
    assert estimate is not None
    assert (estimate.seconds, estimate.memory) == (300.0, 5)
    states = {run: run.place.seen_state() for run in runs}
    shown = show_matrix(runs, states, dict.fromkeys(runs) | {linear: estimate})
    assert "| random_vit_nano | 2 missing  | 2 missing (5m00s, 0.0 GiB) |" in shown
    assert "0 of 4 runs are done; 1 of the other 4 take about 5m00s together" in shown
    assert [duration(s) for s in (59.4, 60, 3599, 7260, 180000)] == ["59s", "1m00s", "59m59s", "2h01m", "2d02h"]


def test_the_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old\nolder\n")
    start = log.stat().st_size
    assert last_line(log, start) == ""
    with log.open("a") as file:
        file.write("error: bad\rworse\n\n  \n")
    assert last_line(log, start) == "worse"


def test_help_is_fast_and_loads_no_torch() -> None:
    tool = TOOLS / "run_suite.py"
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    watched = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); {code}"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", watched, str(tool), "--help"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "--dry-run" in done.stdout
    assert done.stderr.strip() == "False"
    assert after.ru_utime - before.ru_utime < 0.5, "of the processor, however busy the machine is"
