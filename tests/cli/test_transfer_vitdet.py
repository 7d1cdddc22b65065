"""ViTDet's recipes from the command line to the record, and the encoder that comes out of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.coco_command import BASE, TINY
from support.command_line import assert_same_run, transfer

from mae_transfer import load_backbone
from mae_transfer.backbones.positions.decomposed import DecomposedTables
from mae_transfer.cli.transfer import main
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.run_folder.record import read_record

STAGES = [f"{name}_stage{k}" for k in range(3) for name in ("loss_box_reg", "loss_cls")]
OTHERS = ["loss_mask", "loss_rpn_cls", "loss_rpn_loc"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("data") / "coco", train_images=6, val_images=3, size=(48, 64))


def arguments(output: Path, data: Path, recipe: str, *more: str) -> list[str]:
    return [*BASE, "--data", str(data), "--output", str(output), f"recipe={recipe}", *TINY, *more]


def losses(output: Path) -> list[dict[str, float]]:
    lines: list[dict[str, Any]] = [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name.startswith("loss_")} for line in lines]


@pytest.mark.parametrize(
    ("recipe", "names"),
    [("vitdet_mask_rcnn", sorted([*OTHERS, "loss_box_reg", "loss_cls"])), ("vitdet_cascade", sorted(STAGES + OTHERS))],
)
def test_a_run_from_command_to_record(recipe: str, names: list[str], tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    assert main(arguments(output, data, recipe)) == 0
    record = read_record(output / "record.json")
    assert record["settings"]["recipe"] == recipe
    assert record["steps"] == 4
    assert {"box_AP", "mask_AP"} <= record["metrics"].keys()
    assert [sorted(step) for step in losses(output)] == [names] * 4
    assert "zeros" in next(line for line in record["backbone"]["load_report"] if "rel_pos_h" in line)

    encoder = load_backbone("vit_nano", checkpoint=output, img_size=64, window_size=2)
    assert isinstance(encoder.position, DecomposedTables)
    state = torch.load(next((output / "checkpoints").glob("*.pt")), weights_only=True)["model"]
    name = "vit.blocks.1.attn.rel_pos_w"
    assert torch.equal(encoder.state_dict()[name], state[f"encoder.{name}"])
    assert state[f"encoder.{name}"].any(), "tables learn"


def test_two_ranks_train_as_one_and_go_on_after_a_stop(tmp_path: Path, data: Path) -> None:
    one, two, part = (tmp_path / name for name in ("one", "two", "part"))
    more = ["train.checkpoint_every=2", "backbone.drop_path=0"]
    assert main(arguments(one, data, "vitdet_cascade", *more)) == 0
    done = transfer(arguments(two, data, "vitdet_cascade", *more), ranks=2)
    assert done.returncode == 0, done.stderr
    assert losses(two)[0] == pytest.approx(losses(one)[0], rel=1e-4)
    shutil.copytree(two, part)
    (part / "record.json").unlink()
    (part / "checkpoints" / "step_00000004.pt").unlink()
    resumed = transfer([*arguments(part, data, "vitdet_cascade", *more), "--resume"], ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(two, part)
