"""Val images that are training images: found by path and by content, in the data sets of every task."""

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.pretraining import resolve_pretrain

from mae_transfer.data import overlap
from mae_transfer.data.dataset import ImageDataset
from mae_transfer.data.synthetic.ade20k import make_ade20k
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.pretrain.task import PretrainTask
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.ade20k.task import Ade20kTask
from mae_transfer.tasks.classification.task import ClassificationTask
from mae_transfer.tasks.coco.task import CocoTask


class Files(ImageDataset[None]):
    def __init__(self, folder: Path, names: list[str]) -> None:
        super().__init__(folder, np.arange(len(names)), "error")
        self.names = names

    def file_name(self, place: int) -> str:
        return self.names[place]

    def read(self, place: int) -> None:
        return None


def test_paths_links_and_copies_are_found(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        for number in range(6):
            (tmp_path / folder / f"{number}.jpg").write_bytes(rng.bytes(20000))
    names = [f"{number}.jpg" for number in range(6)]
    train, val = (Files(tmp_path / folder, list(names)) for folder in ("train", "val"))
    assert overlap.find_overlaps(train, [val]) == [[]]  # all of one size, none of one content
    shutil.copy(tmp_path / "train/3.jpg", tmp_path / "val/1.jpg")
    content = bytearray((tmp_path / "train/4.jpg").read_bytes())
    content[10000] ^= 1
    (tmp_path / "val/2.jpg").write_bytes(content)
    content = bytearray((tmp_path / "train/0.jpg").read_bytes())
    content[7000] ^= 1  # between the pieces that are compared first, as of two drawings on white
    (tmp_path / "val/0.jpg").write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path / "train")
    assert overlap.find_overlaps(train, [val]) == [[1]]
    val.names += ["../link/5.jpg"]
    val.indices = np.arange(7)
    assert overlap.find_overlaps(train, [val]) == [[1, 6]]
    summary: dict[str, Any] = {}
    (line,) = overlap.note_overlap(summary, train, val)
    assert "2 of 7 val images are training images too (1.jpg, ../link/5.jpg)" in line
    assert summary == {"overlap": 2}


def test_the_training_names_are_gone_through_once_for_all_sets(tmp_path):
    class Counted(Files):
        asked = 0

        def span(self, place):
            self.asked += 1
            return super().span(place)

    for folder in ("train", "val", "beside"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            (tmp_path / folder / f"{number}.jpg").write_bytes(f"{folder} {number}".encode())
    shutil.copy(tmp_path / "train/2.jpg", tmp_path / "beside/0.jpg")
    names = [f"{number}.jpg" for number in range(3)]
    train, (val, beside) = Counted(tmp_path / "train", names), (Files(tmp_path / f, names) for f in ("val", "beside"))
    summary: dict[str, Any] = {}
    (line,) = overlap.note_overlap(summary, train, val, beside, beside)[:1]
    assert line.startswith(f"{tmp_path}/beside: 1 of 3 val images are training images too (0.jpg)")
    assert summary == {}
    assert train.asked == 6, "once for the paths, once for the contents"


def test_files_that_differ_between_the_pieces_alone_are_no_overlap(tmp_path):
    """A white picture of 128 x 128 with one coloured square in rows 14 to 51, uncompressed."""
    sets = []
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        names = [f"{number}.bmp" for number in range(18)]
        for number, name in enumerate(names):
            pixels = np.full((128, 128, 3), 255, np.uint8)
            row, column = 14 + number % 16, 5 * number + (folder == "val")
            pixels[row : row + 22, column : column + 22] = (200, 30, 10 * number)
            Image.fromarray(pixels).save(tmp_path / folder / name)
        sets.append(Files(tmp_path / folder, names))
    train, val = sets
    assert len({path.read_bytes() for path in tmp_path.glob("*/*.bmp")}) == 36
    assert overlap.find_overlaps(train, [val]) == [[]]
    shutil.copy(tmp_path / "train/5.bmp", tmp_path / "val/7.bmp")
    assert overlap.find_overlaps(train, [val]) == [[7]]


def test_members_of_shards_are_compared(tmp_path):
    rng = np.random.default_rng(0)
    content = [rng.bytes(30000) for _ in range(7)]
    for shard, members in {"train-000": content[:4], "val-000": [*content[4:], content[2]]}.items():
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number, data in enumerate(members):
                for suffix, part in (("jpg", data), ("cls", b"%d" % (number % 2))):
                    info = tarfile.TarInfo(f"{number}.{suffix}")
                    info.size = len(part)
                    tar.addfile(info, io.BytesIO(part))
    task = PretrainTask(resolve_pretrain("supervised", "vit_nano_p8", data=tmp_path))
    assert task.data_summary["overlap"] == 1
    (line,) = [line for line in task.warnings if "training images too" in line]
    assert "1 of 4 val images are training images too (val-000.tar/3.jpg)" in line


Tasks = tuple[Any, Any, int]
"""A task of splits apart, one of splits that overlap, and in how many images."""


def coco(folder: Path) -> Tasks:
    root = make_coco(folder, train_images=4, val_images=3)
    same = [f"data.val_json={root}/annotations/instances_train2017.json", f"data.val_images={root}/train2017"]
    return *(build(CocoTask, "coco", root, "data.image_size=64", *more) for more in ((), same)), 3  # one has no object


def ade20k(folder: Path) -> Tasks:
    root = make_ade20k(folder, train_images=4, val_images=3, size=(40, 64))
    same = [f"data.val_images={root}/images/training", f"data.val_masks={root}/annotations/training"]
    small = ("data.image_size=32", "eval.stride=32")
    return *(build(Ade20kTask, "ade20k", root, *small, *more) for more in ((), same)), 4


def build(kind: Any, name: str, root: Path, *overrides: str) -> Any:
    return kind(load_config(name, "random_vit_nano", options={"data.root": str(root)}, overrides=overrides))


def folder_of_classes(folder: Path) -> Tasks:
    root = make_classification(folder, "folder", train_images=3, val_images=2)
    apart = build(ClassificationTask, "folder", root, "data.image_size=32")
    copy_one(root)
    return apart, ClassificationTask(apart.config), 1


def pretraining(folder: Path) -> Tasks:
    root = make_classification(folder, "folder", train_images=3, val_images=2)
    apart = PretrainTask(resolve_pretrain("mae", "vit_nano_p8", data=root, overrides=["data.image_size=32"]))
    copy_one(root)
    return apart, PretrainTask(apart.config), 1


def copy_one(root: Path) -> None:
    train, val = (min((root / split).glob("*/*")) for split in ("train", "val"))
    shutil.copy(train, val)


@pytest.mark.parametrize("make", [coco, ade20k, folder_of_classes, pretraining])
def test_every_task_says_it(tmp_path, make):
    apart, overlapping, count = make(tmp_path / "set")
    assert "overlap" not in apart.data_summary
    assert overlapping.data_summary["overlap"] == count
    (line,) = [line for line in overlapping.warnings if "val images are training images too" in line]
    assert f": {count} of " in line
