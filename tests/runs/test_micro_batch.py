"""`train.micro_batch: auto` is the plan's answer for the GPU's memory, which is pretended here: once for all ranks, and
for good."""

import json
import logging
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from support import processes
from support.whole_runs import CASES

import mae_transfer.runs.micro_batch as micro_batch
from mae_transfer.config.overrides import flatten
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.distributed import make_fabric
from mae_transfer.errors import UserError
from mae_transfer.run_folder.folder import changes
from mae_transfer.runs.api import run_transfer
from mae_transfer.runs.costs import GIB, Plan, plan_run
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.tasks import make_task


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def configured(name: str, global_batch: int, size: str = "auto") -> RunConfig:
    case = CASES[name]
    batches = (
        "schedule.steps=1",
        "schedule.warmup_steps=0",
        f"train.global_batch={global_batch}",
        f"train.micro_batch={size}",
    )
    return resolve_config(
        case.task,
        "vit_nano_p8" if case.task == "pretrain" else "random_vit_nano",
        protocol=case.protocol,
        preset="smoke",
        subset=8,
        data="synthetic",
        overrides=[*case.overrides, *batches, "train.precision=fp32"],
    )


def room_for(images: float, plan: Plan, reserve: float) -> int:
    """Bytes of a GPU that holds a step of so many images beside what is kept free."""
    assert plan.update_bytes < plan.fixed_bytes + int(images) * plan.image_bytes
    return round((plan.fixed_bytes + images * plan.image_bytes) / (1 - reserve))


@pytest.mark.parametrize(
    ("name", "global_batch", "fitting", "chosen", "reserve"),
    [
        ("coco", 8, 3.5, 3, 0.25),
        ("ade20k", 11, 5.5, 4, 0.1),  # 5 + 5 + 1: batch norm refuses one image
        ("linear", 16, 5.5, 4, 0.1),  # 5 + 5 + 5 + 1
        ("finetune", 14, 5.5, 4, 0.1),  # pairs: 5 is odd, 4 + 4 + 4 + 2 are even
        ("mae", 8, 100, 8, 0.1),  # a GPU's whole part
    ],
)
def test_it_is_the_plans_answer(
    name: str, global_batch: int, fitting: float, chosen: int, reserve: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(name, global_batch)
    memory = room_for(fitting, plan_run(config, gpus=1, gpu_memory=80), reserve)
    plan = plan_run(config, gpus=1, gpu_memory=memory / GIB)
    assert plan.largest == plan.micro_batch == chosen
    assert "train.micro_batch=auto takes it" in str(plan)
    monkeypatch.setattr(micro_batch, "device_memory", lambda device: memory)
    task = micro_batch.settled(make_fabric("cpu", "fp32"), make_task(config), Path("none"), begun=False)
    assert (task.config.train.micro_batch, task.config.train.micro_batch_auto) == (chosen, True)
    given = configured(name, global_batch, str(chosen))
    assert task.config.train.model_copy(update={"micro_batch_auto": False}) == given.train


def test_a_run_keeps_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mae_transfer")
    small = ["data.image_size=32", "eval.pictures=0", "schedule.steps=1", "schedule.warmup_steps=0"]

    def run(output: str, size: str, **options: Any) -> dict[str, Any]:
        overrides = [*small, "train.global_batch=8", f"train.micro_batch={size}"]
        options |= {"protocol": "linear", "preset": "smoke", "data": "synthetic", "device": "cpu"}
        return dict(run_transfer("folder", "random_vit_nano", output=tmp_path / output, overrides=overrides, **options))

    with pytest.raises(UserError, match="this run is on a CPU; give a number, such as train.micro_batch=4"):
        run("auto", "auto")
    assert not (tmp_path / "auto").exists()

    config = resolve_config(
        *("folder", "random_vit_nano"),
        protocol="linear",
        preset="smoke",
        data="synthetic",
        overrides=[*small, "train.global_batch=8", "train.micro_batch=auto"],
    )
    memory = room_for(3.5, plan_run(config, gpus=1, gpu_memory=80), 0.1)
    monkeypatch.setattr(micro_batch, "device_memory", lambda device: memory)
    record = run("auto", "auto")
    assert (record["micro_batch"], record["micro_batch_auto"], record["settings"]["norm_batch"]) == (3, True, 3)
    line = "train.micro_batch=auto: 3 images in a forward pass; batch norm takes its statistics over 3 images"
    assert line in caplog.text
    assert line in (tmp_path / "auto" / "log.txt").read_text()
    stored = yaml.safe_load((tmp_path / "auto" / "config.yaml").read_text())["train"]
    assert (stored["micro_batch"], stored["micro_batch_auto"]) == (3, True)

    given = run("given", "3")
    assert (given["micro_batch"], given["micro_batch_auto"]) == (3, False)
    assert given["settings_id"] == record["settings_id"], "they share a column"
    assert given["metrics"] == record["metrics"]

    monkeypatch.setattr(micro_batch, "device_memory", lambda device: 2 * memory)
    for options in ({"resume": True}, {"resume": "auto"}, {"eval_only": True}):
        (tmp_path / "auto" / "record.json").unlink()
        again = run("auto", "auto", **options)
        assert again["settings_id"] == record["settings_id"]
        assert (again["micro_batch"], again["metrics"]) == (3, record["metrics"])
    assert run("auto", "3", resume=True)["micro_batch"] == 3
    with pytest.raises(UserError, match=r"train\.micro_batch: 3 -> auto"):
        run("given", "auto", resume="auto")

    monkeypatch.setattr(micro_batch, "device_memory", lambda device: 1000)
    with pytest.raises(UserError, match="no micro-batch that this recipe can train on fits"):
        run("none", "auto")
    small.append("schedule.warmup_steps=2")
    with pytest.raises(UserError, match="warmup"):  # what else is wrong is said before the memory is blamed
        run("none", "auto")


def test_a_number_that_was_chosen_is_what_auto_asks_for() -> None:
    asked, given = configured("mae", 8), configured("mae", 8, "4")
    chosen = given.model_copy(update={"train": given.train.with_micro_batch(4, auto=True)})
    stored = flatten(chosen.model_dump(mode="json"))
    assert changes(stored, asked) == changes(stored, given) == []
    assert changes(stored, configured("mae", 8, "2")) == ["train.micro_batch: 4 -> 2"]
    assert changes(flatten(given.model_dump(mode="json")), asked) == ["train.micro_batch: 4 -> auto"]


def test_methods_without_a_choice_and_the_runs_own_key_are_refused() -> None:
    with pytest.raises(UserError, match=r"train\.micro_batch=auto is not train\.global_batch=4096: --method mocov3"):
        resolve_config("pretrain", "vit_nano", protocol="mocov3", data="a", overrides=["train.micro_batch=auto"])
    with pytest.raises(UserError, match=r"give train\.micro_batch=auto"):
        resolve_config("imagenet", "vit_nano", data="a", overrides=["train.micro_batch_auto=true"])
    with pytest.raises(UserError, match=r"key 'train\.micro_batch': Input should be greater than or equal to 1, got 0"):
        resolve_config("imagenet", "vit_nano", data="a", overrides=["train.micro_batch=0"])


def _choose(rank: int, memory: tuple[int, int], config: RunConfig, folder: str) -> None:
    fabric = make_fabric("cpu", "fp32")
    task = make_task(config)
    planned: dict[str, Any] = {} if rank == 0 else {"side_effect": AssertionError("planned on rank 0 alone")}
    chosen = patch.object(micro_batch, "largest_micro_batch", wraps=micro_batch.largest_micro_batch, **planned)
    with patch.object(micro_batch, "device_memory", lambda device: memory[rank]), chosen:
        task = micro_batch.settled(fabric, task, Path(folder), begun=False)
    Path(folder, f"{rank}.json").write_text(json.dumps(task.config.train.micro_batch))


def test_two_ranks_take_what_fits_the_smaller_gpu(tmp_path: Path) -> None:
    config = configured("mae", 16)
    plan = plan_run(config, gpus=2, gpu_memory=80)
    assert plan.largest == 8, "a GPU's part"
    memory = (room_for(6.5, plan, 0.1), room_for(3.5, plan, 0.1))
    assert processes.start(_choose, memory, config, str(tmp_path), ranks=2).wait() == [0, 0]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [3, 3]
