"""`mae-transfer plan --suite`: each kind of run once, and the sum over all runs."""

import json
from pathlib import Path

import pytest

from mae_transfer.cli.main import main
from mae_transfer.errors import UserError
from mae_transfer.runs.costs import plan
from mae_transfer.suites.plan import plan_suite

SUITE = """\
name: mine
seeds: [0, 1]
pretrain:
  - label: m
    method: mae
    backbone: vit_nano
    overrides: [data.image_size=64, model.decoder_width=64, model.decoder_depth=1]
backbones:
  - {name: random_vit_nano, seeds: [0]}
tasks:
  - {task: imagenet, protocol: [finetune, knn], overrides: [data.image_size=64]}
"""


def test_runs_that_differ_in_seed_are_planned_once_and_all_are_summed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text(SUITE)
    assert main(["plan", "--suite", str(suite), "--gpus", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    runs = {kind["title"]: kind["runs"] for kind in found["kinds"]}
    assert runs == {
        "m pre-training": 2,
        "m imagenet finetune": 2,
        "m imagenet knn": 2,
        "random_vit_nano imagenet finetune": 1,
        "random_vit_nano imagenet knn": 1,
    }
    alone = plan("imagenet", "random_vit_nano", gpus=8, overrides=["data.image_size=64"]).to_dict()
    (kind,) = (kind for kind in found["kinds"] if kind["title"] == "random_vit_nano imagenet finetune")
    assert {key: kind[key] for key in alone if key != "title"} == {k: v for k, v in alone.items() if k != "title"}
    assert found["hours"]["H100"] == pytest.approx(sum(k["runs"] * k["hours"]["H100"] for k in found["kinds"]))
    assert found["checkpoint_bytes"] == sum(k["runs"] * k["checkpoint_bytes"] for k in found["kinds"]) > 0


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (SUITE, ["--task", "coco"], "leave out --task"),
        (SUITE, ["--data", "photos=/x"], "the suite has no 'photos'"),
        (SUITE.replace("imagenet", "folder"), [], "folder is unknown; give --data"),
        (None, [], "mine.yaml"),
    ],
)
def test_bad_input_is_one_line(
    content: str | None, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "mine.yaml"
    if content is not None:
        suite.write_text(content)
    assert main(["plan", "--suite", str(suite), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert main(["plan", "--backbone", "vit_nano"]) == 2
    assert "give --task and --backbone, or --suite FILE" in capsys.readouterr().err


def test_no_weights_are_needed(tmp_path: Path) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text(SUITE.replace("  - {name: random_vit_nano, seeds: [0]}", "  - {name: mocov3_vit_b, seeds: [0]}"))
    sets = {"pre-training": "synthetic", "imagenet": "synthetic"}
    _, runs = plan_suite(suite, data=sets, weights=False)
    assert [run.config.backbone.name for run in runs].count("mocov3_vit_b") == 2
    with pytest.raises(UserError, match="mocov3_vit_b' has no published weights"):
        plan_suite(suite, data=sets)
