"""What a data set is called where it is given no name, and places that are not on this machine."""

from pathlib import Path

import pytest

from mae_transfer.cli.main import main
from mae_transfer.config.sections import DataSection
from mae_transfer.data.paths import set_name


def test_a_set_is_called_as_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("flowers/imgs", "flowers/masks", "other"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "flowers")
    monkeypatch.setenv("HOME", str(tmp_path))
    own = (tmp_path / "flowers/a.json", tmp_path / "flowers/imgs", None)
    for root in (
        "~/flowers",
        f"{tmp_path}/flowers/",
        ".",
        "../flowers",
        str(tmp_path / "flowers" / "train-{0..9}.tar"),
    ):
        assert set_name(DataSection(root=root), [tmp_path / "other"]) == "flowers", root
    assert set_name(DataSection(), own) == "flowers"
    assert set_name(DataSection(), ["a.json", "imgs"]) == "flowers"
    assert set_name(DataSection(), [tmp_path / "flowers/imgs", "~/other"]) == tmp_path.name
    assert set_name(DataSection(root="/"), []) == "/"
    assert set_name(DataSection(root="/data/x", name="roses 2024"), own) == "roses 2024"


@pytest.mark.parametrize(
    "data",
    [
        "--task coco --data https://host/coco",
        "--task ade20k --data s3://bucket/ade20k",
        "--task folder --data gs://host/set",
        "--task folder data.train_list=s3://b/t.csv data.val_list=v.csv",
        "--task coco data.val_json=https://host/val.json",
    ],
)
def test_addresses_are_for_pre_training(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--backbone",
        "random_vit_nano",
        "--preset",
        "smoke",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "run"),
    ]
    assert main(["transfer", *data.split(), *options]) == 2
    error = capsys.readouterr().err
    assert "://" in error
    assert ": transfer reads folders of this machine, and addresses are for the shards of a pre-training" in error
    assert error.count("\n") == 1
