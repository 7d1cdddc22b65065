"""Run folders and checkpoints: locked, whole, refused when they do not fit."""

import copy
import json
import logging
import pickle
import re
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.engine_toy import make_config, outcome, run_ranks, start
from support.paths import ROOT

from mae_transfer.errors import UserError
from mae_transfer.run_folder import folder as folder_module
from mae_transfer.run_folder.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from mae_transfer.run_folder.folder import RunFolder
from mae_transfer.run_folder.metrics import read_metrics
from mae_transfer.runs.names import check_output
from mae_transfer.runs.plan import plan_runs
from mae_transfer.runs.resolve import load_config
from mae_transfer.suites.plan import plan_suite

CONFIG = make_config(seed=1, optim__lr=1e-5)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def state(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"w": torch.full((3,), float(step))}, "optimizer": {}}


def test_last_n_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for step in (1, 2, 3, 100000000):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000003.pt", "step_100000000.pt"]
    assert torch.equal(load_checkpoint(list_checkpoints(tmp_path)[-1])["model"]["w"], torch.full((3,), 1e8))


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "code", "weights"])
def test_unreadable_checkpoint_is_named_with_the_one_before(damage: str, tmp_path: Path) -> None:
    for step in (4, 8):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    newest = list_checkpoints(tmp_path)[-1]
    content = {
        "truncated": newest.read_bytes()[:-100],
        "empty": b"",
        "text": b"not a checkpoint",
        "code": pickle.dumps(print, protocol=2),
        "weights": b"",
    }[damage]
    newest.write_bytes(content)
    if damage == "weights":
        torch.save({"model": {}}, newest)
    with pytest.raises(UserError) as error:
        load_checkpoint(newest)
    assert str(newest) in one_line(error)
    if damage != "weights":
        assert "resume from step_00000004.pt" in one_line(error)


def test_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    """From step 6 on the process can write no file longer than 8 kB, so that a write fails as on a full disk."""
    folder = tmp_path / "run"
    assert run_ranks(folder, fault={"limit_update": 6}) == [2]
    message = outcome(folder)["message"]
    assert "step_00000008.pt: File too large; the last good one is step_00000004.pt" in message
    assert "\n" not in message
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000004.pt"]
    assert load_checkpoint(folder / "checkpoints/step_00000004.pt")["step"] == 4
    assert run_ranks(folder, resume=True) == [0]


def test_full_disk_for_metrics_and_log(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    line = {"step": 1, "epoch": 0.5, "lr": 0.1, "loss": 1.0}  # 50 bytes
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        folder.start_metrics(0)
        folder.append_metrics(line)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))
        try:
            with pytest.raises(UserError) as error:
                folder.append_metrics(line | {"step": 2})
            assert "metrics.jsonl: File too large" in one_line(error)
            with pytest.raises(UserError, match=r"log.txt: File too large"):
                logging.getLogger("mae_transfer").info("a line of more than sixty characters with its time and level")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert read_metrics(tmp_path / "run") == [line]  # the cut line does not count


def test_a_folder_has_one_user(tmp_path: Path) -> None:
    """Refused to this process and to another, free again when its user is gone."""
    folder = tmp_path / "run"
    with RunFolder(folder, CONFIG):
        with pytest.raises(UserError, match="in use by another run"):
            RunFolder(folder, CONFIG)
        assert run_ranks(folder) == [2]
        assert f"output folder {folder} is in use by another run" in outcome(folder)["message"]
    run = start(folder, task={"pause": 0.05}, changes={"optim__ema": None})
    while not read_metrics(folder):
        assert run.processes[0].is_alive()
    with pytest.raises(UserError, match="in use by another run"):
        RunFolder(folder, CONFIG)
    run.processes[0].kill()
    run.wait()
    with pytest.raises(UserError, match="holds a run already; pass --resume or another --output"):
        RunFolder(folder, CONFIG)
    RunFolder(folder, make_config(optim__ema=None), resume=True).close()


def test_resume_with_another_recipe_names_the_keys(tmp_path: Path) -> None:
    RunFolder(tmp_path, CONFIG).close()
    operational = make_config(seed=1, optim__lr=1e-5, device="cuda", data__workers=8, data__on_bad_image="skip")
    RunFolder(tmp_path, operational, resume=True).close()
    changed = make_config(seed=2, optim__lr=2e-5, optim__betas=(0.9, 0.95))
    with pytest.raises(UserError) as error:
        RunFolder(tmp_path, changed, resume=True)
    for part in ("seed: 1 -> 2", "optim.lr: 1e-05 -> 2e-05", "optim.betas: [0.9, 0.999] -> [0.9, 0.95]"):
        assert part in one_line(error)
    assert "device" not in one_line(error).replace(str(tmp_path), "")


def test_a_field_that_a_stored_configuration_lacks_had_its_default(tmp_path: Path) -> None:
    RunFolder(tmp_path, CONFIG).close()
    file = tmp_path / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    del stored["schedule"]["power"], stored["data"]["on_bad_image"]
    file.write_text(yaml.safe_dump(stored))
    RunFolder(tmp_path, CONFIG, resume=True).close()
    file.write_text(yaml.safe_dump(stored))
    with pytest.raises(UserError, match=r"schedule.power: 1.0 -> 0.9"):
        RunFolder(tmp_path, make_config(seed=1, optim__lr=1e-5, schedule__power=0.9), resume=True)


def test_folders_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file.*Not a directory"):
        RunFolder(tmp_path / "file" / "run", CONFIG)
    with pytest.raises(UserError, match="nothing to resume or evaluate in .*none"):
        RunFolder(tmp_path / "none", CONFIG, resume=True)
    (tmp_path / "husk" / "checkpoints").mkdir(parents=True)  # stopped before it wrote anything
    with RunFolder(tmp_path / "husk", CONFIG, resume=True):
        assert (tmp_path / "husk" / "config.yaml").exists()
    RunFolder(tmp_path / "early", CONFIG).close()  # ended before its first step: no run to protect
    RunFolder(tmp_path / "early", make_config(seed=9)).close()
    (tmp_path / "early" / "record.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run already"):
        RunFolder(tmp_path / "early", CONFIG)


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    left = [".record.json.ab12_cd9", ".per_image.npz.abcdefgh", "config.tmp", "metrics.tmp"]
    kept = [".hidden", "notes.tmp", "record.json.bak"]
    for name in (*left, *kept):
        (tmp_path / name).write_text("")
    RunFolder(tmp_path, CONFIG).close()
    there = {path.name for path in tmp_path.iterdir()}
    assert not there & set(left)
    assert there >= set(kept)


def test_metrics_without_a_line_are_no_file(tmp_path: Path) -> None:
    """A finished run is resumed whose file was deleted: an empty one would look cut."""
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        folder.start_metrics(4)
        assert (tmp_path / "run/metrics.jsonl").exists()
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_an_empty_output_is_refused() -> None:
    with pytest.raises(UserError, match="--output is empty"):
        check_output("")


def test_a_file_is_no_output(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    said = re.escape(f"--output {file} is a file; give another folder")
    with pytest.raises(UserError, match=f"^{said}$"):
        plan_runs("folder", "random_vit_nano", data=tmp_path, output=file)
    said = re.escape(f"--output {file}/run lies below {file}, which is a file; give another folder")
    with pytest.raises(UserError, match=f"^{said}$"):
        check_output(file / "run")
    with pytest.raises(UserError, match="is a file"):
        plan_suite(ROOT / "configs" / "suites" / "demo.yaml", output=file)


def test_the_root_and_the_folder_of_the_data_are_no_output(tmp_path: Path) -> None:
    config = load_config("folder", "random_vit_nano", options={"data.root": str(tmp_path / "data")})
    for output in ("/", "//", "/tmp/.."):
        with pytest.raises(UserError, match="is the root of the file system"):
            check_output(output)
    for output in (tmp_path / "data", f"{tmp_path}/runs/../data/"):
        with pytest.raises(UserError, match=r"is the folder of the data \(data.root\)"):
            plan_runs("folder", "random_vit_nano", data=tmp_path / "data", output=output)
        with pytest.raises(UserError, match=r"is the folder of the data \(data.root\)"):
            check_output(output, config)
    check_output(tmp_path / "data" / "runs", config)


@pytest.mark.parametrize("checked", [0, 10**6])
def test_metrics_are_cut_to_the_resumed_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: int) -> None:
    monkeypatch.setattr(folder_module, "CHECKED", checked)
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.start_metrics(0)
        for step in range(1, 5):
            folder.append_metrics({"step": step, "epoch": step / 2, "lr": 0.1, "loss": float(step), "loss_a": 1.0})
        of_checkpoint = copy.deepcopy(folder.history.epochs)  # an evaluation comes after it
        folder.append_metrics({"step": 4, "epoch": 2.0, "eval": {"AP": 3.0, "APs": float("nan")}})
        folder.append_metrics({"step": 5, "epoch": 2.5, "lr": 0.1, "loss": float("inf"), "loss_a": 1.0})
        logging.getLogger("mae_transfer.test").info("kept in the log")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # as a kill leaves it
        whole = folder.history.entries()
    assert [entry["loss"] for entry in whole] == [1.5, 3.5, None]
    expected = [
        {"epoch": 1, "step": 2, "lr": 0.1, "loss": 1.5, "loss_a": 1.0},
        {"epoch": 2, "step": 4, "lr": 0.1, "loss": 3.5, "loss_a": 1.0, "eval": {"AP": 3.0, "APs": None}},
    ]
    with RunFolder(tmp_path, CONFIG, resume=True) as folder:
        folder.start_metrics(4, of_checkpoint)
        assert folder.history.entries() == expected
    with RunFolder(tmp_path, CONFIG, resume=True) as folder:
        folder.start_metrics(4, None)  # of a checkpoint of an earlier version
        assert folder.history.entries() == expected
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert lines[-1]["eval"] == {"AP": 3.0, "APs": None}
    assert "kept in the log" in (tmp_path / "log.txt").read_text()
