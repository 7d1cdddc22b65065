"""Copies of one picture under several ids are said, of either split."""

import json
import shutil
from pathlib import Path

import pytest

from mae_transfer.data import index_cache
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.coco import files
from mae_transfer.tasks.coco.task import CocoTask


def said(root: Path) -> list[str]:
    options = {"data.root": str(root)}
    task = CocoTask(load_config("coco", "random_vit_nano", options=options, overrides=["data.image_size=64"]))
    return [line for line in task.warnings if "several image ids" in line or "same bytes" in line]


@pytest.mark.parametrize(("split", "least"), [("train", 1000), ("val", 1000), ("val", 1)])
def test_a_copy_and_a_hard_link_are_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, least: int
) -> None:
    """least: files from which on what was found is kept until one changes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "LEAST_FILES", least)
    monkeypatch.setattr(index_cache, "SETTLED", 0)
    root = make_coco(tmp_path / "data", train_images=4, val_images=3)
    assert said(root) == []
    file, folder = root / f"annotations/instances_{split}2017.json", root / f"{split}2017"
    content = json.loads(file.read_text())
    owner = next(entry for entry in content["annotations"] if not entry["iscrowd"])
    (image,) = (image for image in content["images"] if image["id"] == owner["image_id"])
    content["images"].append(image | {"id": 900, "file_name": "again.jpg"})
    content["annotations"].append(owner | {"id": 900, "image_id": 900})
    file.write_text(json.dumps(content))
    original, again = folder / image["file_name"], folder / "again.jpg"
    shutil.copy(original, again)
    (line,) = said(root)
    assert said(root) == [line]
    assert bool([*tmp_path.glob("cache/**/*.index")]) == (least == 1)
    names = f"{image['file_name']} (id {image['id']}), again.jpg (id 900)"
    assert line.startswith(f"{file}: 2 images have")
    assert f"images have the same bytes as another under other names ({names})" in line
    again.unlink()
    again.hardlink_to(original)
    (line,) = said(root)
    assert f"is there under several image ids ({original.name}: {image['id']}, 900)" in line
    content = bytearray(original.read_bytes())
    content[len(content) // 2] ^= 1
    again.unlink()
    again.write_bytes(content)
    assert said(root) == [], "of one size"
