"""What a data set is called where it is given no name."""

from pathlib import Path

import pytest

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
