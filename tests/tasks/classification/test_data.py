"""Reading images, which ones a run trains on, and what becomes of those that cannot be read."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import pil_loader

from mae_transfer.data.decode import read_rgb
from mae_transfer.data.images import ImageError, UndecodableImageError
from mae_transfer.data.names import Names
from mae_transfer.data.synthetic.classification import draw, make_classification
from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.classification.config import ClassificationConfig, DataConfig
from mae_transfer.tasks.classification.data import (
    ClassificationEval,
    ClassificationTrain,
    choose_training_images,
)
from mae_transfer.tasks.classification.layouts.find import find_images
from mae_transfer.tasks.classification.layouts.listing import Listing
from mae_transfer.tasks.classification.transforms import EvalTransform, TrainTransform


def data_config(**more: Any) -> DataConfig:
    return DataConfig(image_size=32, crop="random", flip=0.5, **more)


def run_config(*overrides: str) -> ClassificationConfig:
    loaded = load_config("folder", "random_vit_nano", overrides=["data.image_size=32", *overrides])
    assert isinstance(loaded, ClassificationConfig)
    return loaded


def listing_of(counts: list[int]) -> Listing:
    """A listing with this many images of each class, that need not exist."""
    names = [f"c{label}/{i}.jpg" for label, count in enumerate(counts) for i in range(count)]
    return Listing(Path("/none"), Names(names), np.repeat(np.arange(len(counts)), counts))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classification(tmp_path_factory.mktemp("data") / "set", "folder", train_images=3, val_images=2)


def save(image: Image.Image, path: Path, **options: Any) -> str:
    image.save(path, **options)
    return str(path)


def test_files_are_read_as_torchvisions_loader_reads_them(tmp_path: Path) -> None:
    """Every kind of file that turns up in real sets: the pixels of torchvision's ImageFolder loader."""
    image = draw(1, 40, 60, np.random.default_rng(0))
    exif = Image.Exif()
    exif[274] = 6
    files = [
        save(image, tmp_path / "rgb.jpg", quality=95),
        save(image, tmp_path / "turned.jpg", exif=exif),
        save(image.convert("L"), tmp_path / "grey.jpg"),
        save(image.convert("CMYK"), tmp_path / "cmyk.jpg"),
        save(image, tmp_path / "progressive.jpg", progressive=True),
        save(image, tmp_path / "a png.JPEG", format="PNG"),
        save(image.convert("P"), tmp_path / "palette.png"),
        save(image.convert("LA"), tmp_path / "grey_alpha.png"),
        save(image.convert("1"), tmp_path / "bits.png"),
        save(image, tmp_path / "b.bmp"),
        save(image, tmp_path / "t.tif"),
        save(image, tmp_path / "w.webp", lossless=True),
        save(image, tmp_path / "p.ppm"),
    ]
    for file in files:
        reference = np.asarray(pil_loader(file)).transpose(2, 0, 1).astype(int)
        ours = read_rgb(file)
        assert ours.dtype == torch.uint8, file
        assert ours.shape == reference.shape, file
        # another JPEG library may round a grey level otherwise
        assert np.abs(ours.numpy().astype(int) - reference).max() <= 1, file


def test_damaged_and_absent_files_are_one_line(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    draw(1, 80, 90, np.random.default_rng(0)).save(buffer, "JPEG")
    whole = buffer.getvalue()
    for content in (whole[:300], whole[: len(whole) // 2], b"", b"no image at all"):
        (tmp_path / "bad.jpg").write_bytes(content)
        with pytest.raises(UndecodableImageError, match="bad.jpg: truncated or corrupt.*data.on_bad_image=skip") as bad:
            read_rgb(str(tmp_path / "bad.jpg"))
        assert "\n" not in str(bad.value)
    with pytest.raises(ImageError, match="none.jpg: cannot be read"):
        read_rgb(str(tmp_path / "none.jpg"))


def test_shots_are_deterministic_nested_and_of_every_class() -> None:
    listing = listing_of([20, 30, 2])
    chosen = {
        (shots, draw): choose_training_images(listing, data_config(shots=shots, draw=draw), None)[0]
        for shots in (1, 2, 5)
        for draw in (0, 1, 2)
    }
    for (shots, draw_number), indices in chosen.items():
        assert np.bincount(listing.labels[indices]).tolist() == [shots, shots, min(shots, 2)]
        again = choose_training_images(listing, data_config(shots=shots, draw=draw_number), None)[0]
        assert indices.tolist() == again.tolist()
    for draw_number in (0, 1, 2):
        assert set(chosen[1, draw_number]) < set(chosen[2, draw_number]) < set(chosen[5, draw_number])
    assert len({tuple(chosen[5, draw_number]) for draw_number in (0, 1, 2)}) == 3
    # the rule itself, written again: the first by SHA-256 of "<draw>:<name>"
    digest = {i: hashlib.sha256(f"1:{listing.names[i]}".encode()).digest() for i in range(20)}
    assert set(chosen[5, 1][:5]) == set(sorted(digest, key=digest.__getitem__)[:5])
    _, _, warnings = choose_training_images(listing, data_config(shots=5), None)
    assert warnings == ["1 classes have fewer than data.shots=5 training images; all are taken"]


def test_holdout_is_stratified_disjoint_and_apart_from_the_shots() -> None:
    listing = listing_of([20, 30, 10])
    kept, held, _ = choose_training_images(listing, data_config(holdout=0.1), None)
    assert sorted([*kept, *held]) == list(range(60))
    assert np.bincount(listing.labels[held]).tolist() == [2, 3, 1]
    few_kept, few_held, _ = choose_training_images(listing, data_config(holdout=0.2, shots=5), None)
    assert np.bincount(listing.labels[few_kept]).tolist() == [4, 4, 4]
    assert np.bincount(listing.labels[few_held]).tolist() == [1, 1, 1]
    uneven_kept, uneven_held, _ = choose_training_images(listing_of([1, 2, 30]), data_config(holdout=0.1), None)
    assert np.bincount(listing_of([1, 2, 30]).labels[uneven_held]).tolist() == [0, 1, 3], "a single image is kept"
    assert len(uneven_kept) == 29
    with pytest.raises(UserError, match="data.holdout=0.1: every class has one training image"):
        choose_training_images(listing, data_config(holdout=0.1, shots=1), None)


def train_set(root: Path, seed: int = 0, on_bad_image: str = "error", *overrides: str) -> ClassificationTrain:
    images = find_images("folder", data_config(root=str(root)))
    transform = TrainTransform(run_config(*overrides), (0.485, 0.456, 0.406))
    return ClassificationTrain(
        images.train, np.arange(len(images.train)), transform, seed=seed, on_bad_image=on_bad_image
    )


def test_samples_depend_on_seed_epoch_and_index_alone(root: Path) -> None:
    """Whatever was read before, so that workers, ranks and restarts do not matter."""
    one, other = train_set(root), train_set(root)
    for index in (3, 0):
        other[(5, index)]
    assert torch.equal(one[(2, 7)]["image"], other[(2, 7)]["image"])
    assert not torch.equal(one[(2, 7)]["image"], one[(3, 7)]["image"])
    assert not torch.equal(one[(2, 7)]["image"], train_set(root, seed=1)[(2, 7)]["image"])
    batch = one.collate([one[(0, index)] for index in (0, 4, 14)])
    assert batch["images"].shape == (3, 3, 32, 32)
    assert batch["images"].dtype == torch.uint8
    assert batch["labels"].tolist() == [0, 1, 4]
    assert batch["names"][1].startswith("birch/")


def test_an_undecodable_image_stops_or_is_replaced_and_counted(tmp_path: Path) -> None:
    root = make_classification(tmp_path / "set", "folder", train_images=2, val_images=2)
    bad = root / "train" / "birch" / "train_0001.JPEG"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(UndecodableImageError, match="birch/train_0001.JPEG"):
        train_set(root)[(0, 3)]
    dataset = train_set(root, 0, "skip")
    sample = dataset[(0, 3)]
    assert (sample["name"], sample["label"]) == ("crane/train_0000.JPEG", 2), "the next image, with its own label"
    batch = dataset.collate([sample, dataset[(1, 3)]])
    dataset.report_skipped(batch)
    assert dataset.skipped == {"birch/train_0001.JPEG": 2}
    for file in (root / "train").rglob("*.JPEG"):
        file.write_bytes(b"")
    with pytest.raises(ImageError, match="none of the 10 training images can be decoded"):
        dataset[(0, 0)]


def test_evaluation_leaves_out_what_it_cannot_decode(tmp_path: Path) -> None:
    root = make_classification(tmp_path / "set", "folder", train_images=2, val_images=2)
    bad = root / "val" / "birch" / "val_0000.JPEG"
    bad.write_bytes(b"")
    images = find_images("folder", data_config(root=str(root)))
    dataset = ClassificationEval(images.val, np.arange(10), EvalTransform(run_config()), on_bad_image="skip")
    batch = dataset.collate([dataset[index] for index in range(10)])
    assert batch["images"].shape == (9, 3, 32, 32)
    assert batch["labels"].tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 4]
    assert batch["skipped"] == ["birch/val_0000.JPEG"]
    empty = dataset.collate([dataset[2]])
    assert len(empty["labels"]) == 0
    strict = ClassificationEval(images.val, np.arange(10), EvalTransform(run_config()), on_bad_image="error")
    with pytest.raises(UndecodableImageError):
        strict[2]
