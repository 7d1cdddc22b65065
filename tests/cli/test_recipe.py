"""`mae-transfer recipe new`: the copy is the recipe under another name, and nothing is overwritten."""

from pathlib import Path

import pytest

from mae_transfer.cli.main import main
from mae_transfer.config.recipe import read_recipe
from mae_transfer.config.yaml import read_yaml
from mae_transfer.runs.resolve import load_config
from mae_transfer.runs.tasks import task_cards

RECIPES = [
    (card.name, protocol.name if protocol else "", protocol.recipe if protocol else card.recipe)
    for card in task_cards()
    if card.name not in ("inat2017", "inat2018", "inat2019", "inat2021", "places205", "places365", "folder")
    for protocol in (card.protocols or (None,))
]


@pytest.mark.parametrize(("task", "protocol", "recipe"), RECIPES)
def test_a_copy_is_the_recipe_by_another_name(task: str, protocol: str, recipe: str, tmp_path: Path) -> None:
    file, option = tmp_path / "new" / "1e5.yaml", ["--protocol", protocol] if protocol else []
    assert main(["recipe", "new", str(file), "--task", task, *option]) == 0
    (card,) = (card for card in task_cards() if card.name == task)
    assert read_recipe(card.folder, str(file)) == read_recipe(card.folder, recipe) | {"recipe": "1e5"}
    assert read_yaml(file, "recipe")["recipe"] == "1e5", "a text that looks like a number"


def test_it_is_used_by_its_path_and_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    command = ["recipe", "new", "~/mine.yaml", "--task", "coco", "--recipe", "vitdet_cascade"]
    assert main(command) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"transfer --task coco ... recipe={tmp_path}/mine.yaml")
    text = (tmp_path / "mine.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text + "  optim: {lr: 0.5}\n")
    config = load_config("coco", "mae_vit_b", overrides=["recipe=~/mine.yaml"])
    assert (config.recipe, config.optim.lr) == ("mine", 0.5)
    assert main(command) == 2
    assert "mine.yaml is there already" in capsys.readouterr().err
    assert main(["recipe", "new", str(tmp_path / "x"), "--task", "coco"]) == 2
    assert main(["recipe", "new", str(tmp_path / "x.yaml"), "--task", "coco", "--recipe", "vitdet_cascad"]) == 2
    assert "did you mean vitdet_cascade" in capsys.readouterr().err
    assert not (tmp_path / "x.yaml").exists()
