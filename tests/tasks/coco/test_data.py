"""The datasets: the same samples in any worker, every kind of image file, and one line for each that is no good."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mae_transfer.data.decode import read_image
from mae_transfer.data.images import ImageError, UndecodableImageError, choose_subset
from mae_transfer.data.synthetic.coco import make_coco
from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.annotations import CocoAnnotations
from mae_transfer.tasks.coco.config import DataConfig
from mae_transfer.tasks.coco.data import CocoEval, CocoTrain, resolve_paths


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("data") / "coco", train_images=6, val_images=4)


def config(**changes: Any) -> DataConfig:
    return DataConfig.model_validate({"image_size": 64, "scale_min": 0.5, "scale_max": 2.0} | changes)


def train_set(folder: Path, seed: int = 0, subset: int | None = None, **changes: Any) -> CocoTrain:
    annotations = CocoAnnotations(folder / "annotations/instances_train2017.json")
    return CocoTrain(annotations, folder / "train2017", config(**changes), seed=seed, subset=subset)


def eval_set(folder: Path, subset: int | None = None, images: int | None = None, **changes: Any) -> CocoEval:
    annotations = CocoAnnotations(folder / "annotations/instances_val2017.json")
    return CocoEval(annotations, folder / "val2017", config(**changes), subset=subset, images=images)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flat(value: Any) -> bytes:
    """The value's content as bytes, tensors included."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return str((value.dtype, value.shape)).encode() + value.tobytes()
    if isinstance(value, dict):
        return b"".join(str(k).encode() + flat(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return b"[" + b",".join(flat(v) for v in value) + b"]"
    return pickle.dumps(value)


def test_samples_depend_on_the_key_alone(coco):
    keys = [(epoch, index) for epoch in (0, 3) for index in range(5)]
    expected = [flat(train_set(coco)[key]) for key in keys]
    torch.manual_seed(1)
    np.random.seed(1)
    dataset = train_set(coco)
    assert [flat(dataset[key]) for key in reversed(keys)] == expected[::-1]
    for workers in (1, 2):
        loader = DataLoader(dataset, sampler=keys, batch_size=None, num_workers=workers)
        assert [flat(sample) for sample in loader] == expected
    assert len(set(expected)) == len(keys)
    assert flat(train_set(coco, seed=1)[keys[0]]) != expected[0]


def test_train_batch_is_as_promised(coco):
    dataset = train_set(coco)
    assert len(dataset) == 5  # image 3 has no object
    assert 3 not in dataset.image_ids
    samples = [dataset[(0, index)] for index in range(5)]
    batch = dataset.collate(samples)
    assert sorted(batch) == ["file_names", "image_ids", "images", "sizes", "skipped", "targets"]
    assert batch["image_ids"] == dataset.image_ids
    assert batch["file_names"][0] == "000000000001.jpg"
    assert batch["skipped"] == []
    kinds = set()
    for image, target, size in zip(batch["images"], batch["targets"], batch["sizes"], strict=True):
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        assert max(image.shape[1:]) <= 64
        assert min(size) >= 96
        count = len(target["classes"])
        assert (target["boxes"].dtype, tuple(target["boxes"].shape)) == (torch.float32, (count, 4))
        assert (target["classes"].dtype, len(target["masks"])) == (torch.int64, count)
        assert all(0 <= c < 5 for c in target["classes"].tolist())
        assert isinstance(target["seed"], int)
        torch.Generator().manual_seed(target["seed"])
        for mask in target["masks"]:
            kinds.add(type(mask))
            if isinstance(mask, np.ndarray):
                assert (mask.dtype, mask.shape) == (np.uint8, tuple(image.shape[1:]))
            else:
                assert all(p.dtype == np.float64 and p.ndim == 1 and len(p) >= 6 for p in mask)
    assert kinds == {list, np.ndarray}
    assert len({target["seed"] for target in batch["targets"]}) == 5


def test_eval_has_every_image_once_at_the_test_size(coco):
    dataset = eval_set(coco)
    assert dataset.image_ids == [1, 2, 3, 4]
    batch = dataset.collate([dataset[i] for i in range(4)])
    assert sorted(batch) == ["file_names", "image_ids", "images", "sizes", "skipped", "skipped_ids"]
    assert [max(image.shape[1:]) for image in batch["images"]] == [64] * 4
    grey = batch["images"][1]
    assert (grey[0] == grey[1]).all()
    assert (grey[0] == grey[2]).all()


def test_subset_is_fixed_nested_and_in_order(coco):
    ids = np.arange(100, 200)
    small, large = ids[choose_subset(ids, 5)], ids[choose_subset(ids, 20)]
    assert small.tolist() == [125, 146, 149, 152, 178]  # for ever: a subset named in a record must stay what it was
    assert set(small) <= set(large)
    assert large.tolist() == sorted(large)
    assert choose_subset(ids, None).tolist() == choose_subset(ids, 1000).tolist() == list(range(100))
    chosen = {tuple(train_set(coco, seed=seed, subset=3).image_ids) for seed in (0, 1)}
    assert len(chosen) == 1
    assert len(chosen.pop()) == 3
    assert len(eval_set(coco, subset=2)) == 2
    some = eval_set(coco, subset=3, images=2)
    assert len(some) == 2
    assert set(some.image_ids) <= set(eval_set(coco, subset=3).image_ids)


def test_a_set_of_crowds_alone_is_refused(coco, tmp_path):
    content = json.loads((coco / "annotations/instances_train2017.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["iscrowd"]]
    (tmp_path / "crowds.json").write_text(json.dumps(content))
    annotations = CocoAnnotations(tmp_path / "crowds.json")
    with pytest.raises(UserError, match="nothing to train on"):
        CocoTrain(annotations, coco / "train2017", config(), seed=0)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    read = read_image(path, 20, 30)
    assert read.mode == "RGB"
    assert read.tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """The stored pixels, seen as the tag says, are the picture; the table is that of the EXIF standard."""
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    store = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(store(picture))).save(tmp_path / "image.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "image.png", 20, 30)), picture)


def test_broken_exif_is_passed_over(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "image.jpg", exif=b"Exif\x00\x00rubbish that is no TIFF header")
    assert read_image(tmp_path / "image.jpg", 20, 30).size == (30, 20)


def test_unusable_images_are_named(tmp_path):
    path = tmp_path / "image.jpg"
    Image.new("RGB", (30, 20)).save(path)
    with pytest.raises(ImageError, match=r"image\.jpg: the image is 30x20 pixels and the annotation file says 20x30"):
        read_image(path, 30, 20)
    damage(path)
    with pytest.raises(UndecodableImageError, match=r"image\.jpg: truncated or corrupt image .*on_bad_image=skip"):
        read_image(path, 20, 30)
    path.write_bytes(b"")
    with pytest.raises(UndecodableImageError, match=r"image\.jpg: truncated or corrupt"):
        read_image(path, 20, 30)
    path.unlink()
    with pytest.raises(ImageError, match=r"cannot be read \(No such file") as caught:
        read_image(path, 20, 30)
    assert not isinstance(caught.value, UndecodableImageError)  # a lost disk is never skipped


@pytest.mark.parametrize("workers", [0, 2])
def test_a_workers_error_is_one_line(coco, tmp_path, workers):
    folder = shutil.copytree(coco, tmp_path / "coco")
    damage(folder / "val2017/000000000002.jpg")
    loader = DataLoader(eval_set(folder), batch_size=2, num_workers=workers, collate_fn=CocoEval.collate)
    with pytest.raises(UndecodableImageError) as caught:
        list(loader)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder / 'val2017/000000000002.jpg'}: truncated or corrupt image")


def test_skipping_takes_the_next_image(coco, tmp_path, caplog):
    folder = shutil.copytree(coco, tmp_path / "coco")
    for number in (4, 5):
        damage(folder / f"train2017/{number:012d}.jpg")
    dataset = train_set(folder, on_bad_image="skip")
    assert dataset.image_ids == [1, 2, 4, 5, 6]
    keys = [(1, index) for index in range(5)]
    samples = list(DataLoader(dataset, sampler=keys, batch_size=None, num_workers=2))
    assert [sample["image_id"] for sample in samples] == [1, 2, 6, 6, 6]
    assert [flat(s) for s in samples] == [flat(dataset[key]) for key in keys]
    batch = dataset.collate(samples)
    assert batch["skipped"] == ["000000000004.jpg", "000000000005.jpg", "000000000005.jpg"]
    dataset.report_skipped(batch)
    dataset.report_skipped(batch)
    assert dataset.skipped == {"000000000004.jpg": 2, "000000000005.jpg": 4}
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        str(folder / "train2017/000000000004.jpg"),
        str(folder / "train2017/000000000005.jpg"),
    ]
    with pytest.raises(UndecodableImageError):
        train_set(folder)[(0, 2)]
    for path in (folder / "train2017").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ImageError, match="none of the 5 training images can be decoded"):
        dataset[(0, 0)]


def test_a_skipped_evaluation_image_leaves_its_id(coco, tmp_path):
    folder = shutil.copytree(coco, tmp_path / "coco")
    damage(folder / "val2017/000000000001.jpg")
    dataset = eval_set(folder, on_bad_image="skip")
    batch = dataset.collate([dataset[0], dataset[1]])
    assert (batch["image_ids"], batch["skipped_ids"], len(batch["images"])) == ([2], [1], 1)
    assert batch["skipped"] == ["000000000001.jpg"]
    assert dataset.collate([dataset[0]])["images"] == []


def test_paths_of_the_layout_and_of_ones_own(coco, tmp_path):
    paths = resolve_paths(config(root=str(coco)))
    assert paths.train_json == coco / "annotations/instances_train2017.json"
    assert paths.val_images == coco / "val2017"
    (tmp_path / "photos").mkdir()
    own = resolve_paths(config(root=str(coco), train_images=str(tmp_path / "photos")))
    assert own.train_images == tmp_path / "photos"
    assert own.val_json == paths.val_json


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "neither data.root .* nor data.train_json"),
        ({"root": "{tmp}/nowhere"}, r"data folder .*nowhere \(data.root\) is not there"),
        ({"root": "{tmp}"}, r"file .*annotations/instances_train2017.json \(in data.root\) is not there"),
        ({"root": "{coco}", "val_images": "{tmp}/x"}, r"folder .*/x \(data.val_images\) is not there"),
        ({"root": "{coco}", "val_json": "{tmp}"}, r"file .* \(data.val_json\) is not there"),
    ],
)
def test_missing_parts_are_told_with_the_layout(coco, tmp_path, changes, message):
    filled = {key: value.format(tmp=tmp_path, coco=coco) for key, value in changes.items()}
    with pytest.raises(UserError, match=message) as caught:
        resolve_paths(config(**filled))
    for part in ("train2017", "annotations/instances_val2017.json", "cocodataset.org/#download", "data.train_json="):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
