"""Images to pre-train on: layouts, labels, crops and jitter, bad files, and that a sample depends on its key alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.pretraining import resolve_pretrain
from torchvision.transforms.v2 import functional as F

from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.errors import UserError
from mae_transfer.pretrain.data import PretrainImages, find_images
from mae_transfer.pretrain.methods.mae import MaeViews
from mae_transfer.pretrain.views import Views, jitter


def config_of(root, *overrides: str):
    return resolve_pretrain(
        "mae", "vit_nano_p8", data=root, overrides=["data.image_size=32", "data.workers=0", *overrides]
    )


def dataset_of(root, *overrides: str, seed: int = 0, split: str = "train") -> PretrainImages:
    config = config_of(root, *overrides)
    source = getattr(find_images(config.data), split)
    return PretrainImages(source, np.arange(len(source)), MaeViews(config), config.data, seed=seed)


def picture(path, size=(50, 40), shade: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(shade)
    pixels = rng.integers(0, 30, (size[1], size[0], 3), dtype=np.uint8) + np.uint8(shade)
    Image.fromarray(pixels).save(path)


def test_class_folders_have_labels(tmp_path) -> None:
    root = make_classification(tmp_path / "set", "folder", train_images=2, val_images=1)
    images = find_images(config_of(root).data)
    assert (len(images.train), len(images.val), images.num_classes) == (10, 5, 5)
    assert images.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert images.val.labels.tolist() == [0, 1, 2, 3, 4]
    assert images.train.names[0] == "anemone/train_0000.JPEG"


def test_plain_folders_have_none_and_are_searched_to_any_depth(tmp_path) -> None:
    for name in ("a.jpg", "deep/er/b.png", "deep/c.jpeg"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    images = find_images(config_of(tmp_path).data)
    assert list(images.train.names) == ["a.jpg", "deep/c.jpeg", "deep/er/b.png"]
    assert (images.train.labels, images.val, images.num_classes) == (None, None, None)
    assert images.warnings == ["no val images: nothing is evaluated; data.val_root=FOLDER names some"]


def test_val_images_from_elsewhere(tmp_path) -> None:
    picture(tmp_path / "t" / "a.jpg")
    picture(tmp_path / "v" / "b.jpg")
    images = find_images(config_of(tmp_path / "t", f"data.val_root={tmp_path / 'v'}").data)
    assert (list(images.train.names), list(images.val.names)) == (["a.jpg"], ["b.jpg"])


def test_fingerprint_is_of_names_and_labels(tmp_path) -> None:
    picture(tmp_path / "one" / "a.jpg")
    picture(tmp_path / "two" / "a.jpg", shade=50)
    picture(tmp_path / "three" / "b.jpg")
    one, two, three = (
        find_images(config_of(tmp_path / name).data).names_fingerprint() for name in ("one", "two", "three")
    )
    assert one == two != three


def test_a_sample_depends_on_its_key_and_the_seed_alone(tmp_path) -> None:
    root = make_classification(tmp_path / "set", "folder", train_images=2, val_images=1)
    first, again, other = dataset_of(root), dataset_of(root), dataset_of(root, seed=1)
    again[(0, 3)]  # what was read before does not matter
    for key in ((0, 0), (5, 7)):
        a, b, c = (dataset[key] for dataset in (first, again, other))
        assert torch.equal(a["image"], b["image"])
        assert np.array_equal(a["noise"], b["noise"])
        assert not torch.equal(a["image"], c["image"])
        assert not np.array_equal(a["noise"], c["noise"])
    assert not np.array_equal(first[(0, 0)]["noise"], first[(1, 0)]["noise"])


def test_masks_of_val_images_never_change(tmp_path) -> None:
    root = make_classification(tmp_path / "set", "folder", train_images=2, val_images=1)
    one, two = dataset_of(root, split="val"), dataset_of(root, split="val", seed=5)
    assert np.array_equal(one[2]["noise"], two[2]["noise"])
    assert torch.equal(one[2]["image"], two[2]["image"])
    assert not np.array_equal(one[2]["noise"], one[3]["noise"])


def test_collate(tmp_path) -> None:
    dataset = dataset_of(make_classification(tmp_path / "set", "folder", train_images=2, val_images=1))
    batch = dataset.collate([dataset[(0, i)] for i in (0, 9)])
    assert batch["images"].shape == (2, 3, 32, 32)
    assert batch["images"].dtype == torch.uint8
    assert (batch["noise"].shape, batch["noise"].dtype) == ((2, 16), torch.float32)
    assert batch["labels"].tolist() == [0, 4]
    assert batch["names"][1] == "estuary/train_0001.JPEG"


def test_corrupt_images(tmp_path) -> None:
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / name)
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 no jpeg")
    with pytest.raises(UserError, match=r"a.jpg: truncated or corrupt image .*data.on_bad_image=skip"):
        dataset_of(tmp_path)[(0, 0)]
    skipping = dataset_of(tmp_path, "data.on_bad_image=skip")
    sample = skipping[(0, 0)]
    assert (sample["name"], sample["skipped"]) == ("b.jpg", ["a.jpg"])
    batch = skipping.collate([skipping[0], skipping[1]])  # evaluation leaves it out
    assert (batch["names"], batch["skipped"], len(batch["images"])) == (["b.jpg"], ["a.jpg"], 1)


def test_grey_images_and_arrays_of_any_channels(tmp_path) -> None:
    picture(tmp_path / "grey" / "a.jpg")
    grey = dataset_of(tmp_path / "grey", "data.channels=1", "data.mean=[.5]", "data.std=[.2]")
    assert grey[(0, 0)]["image"].shape == (1, 32, 32)
    (tmp_path / "many").mkdir()
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 6), dtype=np.uint8)
    np.save(tmp_path / "many" / "a.npy", array)
    options = ("data.channels=6", "data.mean=[0,0,0,0,0,0]", "data.std=[1,1,1,1,1,1]")
    many = dataset_of(tmp_path / "many", *options)
    assert torch.equal(many.read(0), torch.from_numpy(array).permute(2, 0, 1))
    assert many[(0, 0)]["image"].shape == (6, 32, 32)
    np.save(tmp_path / "many" / "b.npy", array[:, :, :3])
    with pytest.raises(UserError, match=r"b.npy: uint8 \(40, 50, 3\), but data.channels=6 asks for uint8 \(H, W, 6\)"):
        dataset_of(tmp_path / "many", *options).read(1)


def test_crops_of_random_size_have_the_area_and_place_of_random_resized_crop(tmp_path) -> None:
    """Every crop of a picture whose pixels tell their place covers at least 20 % of it, and they differ."""
    height, width = 60, 90
    rows = torch.arange(height, dtype=torch.uint8)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.uint8).expand(height, width)
    image = torch.stack([rows, columns, rows])
    views = Views(config_of(tmp_path, "data.flip=0"))
    areas = []
    for i in range(200):
        seen = views.train(image, np.random.default_rng(i))["image"].float()
        # the centres of the outermost pixels of 32 lie half a pixel inside
        h, w = ((seen[c].max() - seen[c].min()) * 32 / 31 for c in (0, 1))
        areas.append(float(h * w) / (height * width))
    assert min(areas) > 0.15  # 0.2, less what rounding to whole numbers takes
    assert max(areas) > 0.75
    assert np.std(areas) > 0.1


@pytest.mark.parametrize(("crop", "varies"), [("fixed", True), ("center", False)])
def test_crops_of_fixed_size_show_as_much_as_the_test_crop(tmp_path, crop: str, varies: bool) -> None:
    image = torch.arange(90, dtype=torch.uint8).expand(3, 60, 90)
    views = Views(config_of(tmp_path, f"data.crop={crop}", "data.flip=0"))
    found = [views.train(image, np.random.default_rng(i))["image"][0, 0].float() for i in range(20)]
    spans = {round(float(row.max() - row.min())) for row in found}
    assert spans <= {50, 51, 52}  # 60 x 224 / 256 = 52.5 pixels, the shorter side without the margin
    assert (len({float(row[0]) for row in found}) > 5) is varies
    centre = views.test(image, np.random.default_rng(0))["image"][0, 0].float()
    assert (float(centre[0]) + float(centre[-1])) / 2 == pytest.approx(44.5, abs=1)


def test_the_test_view_is_resize_and_centre_crop(tmp_path) -> None:
    """As classification's: the shorter side to 256 / 224 of the input, then the centre; to the rounding of pixels."""
    rng = np.random.default_rng(0)
    small = torch.from_numpy(rng.integers(0, 256, (3, 8, 12), dtype=np.uint8))
    image = F.resize(small, [120, 180])  # smooth, so that half a pixel's shift is not seen
    seen = Views(config_of(tmp_path)).test(image, rng)["image"].float()
    height = int(32 * 256 / 224)
    expected = F.center_crop(F.resize(image, [height, height * 180 // 120], antialias=True), [32, 32]).float()
    assert float((seen - expected).abs().mean()) < 4


def test_flip_and_jitter(tmp_path) -> None:
    image = torch.from_numpy(np.random.default_rng(3).integers(60, 200, (3, 32, 32), dtype=np.uint8))
    flipped = Views(config_of(tmp_path, "data.flip=1", "data.scale_min=1", "data.crop=center"))
    plain = Views(config_of(tmp_path, "data.flip=0", "data.scale_min=1", "data.crop=center"))
    rng = np.random.default_rng
    assert torch.equal(flipped.train(image, rng(0))["image"], plain.train(image, rng(0))["image"].flip(-1))
    changed = [jitter(image, 0.4, rng(i)).float() for i in range(100)]
    brightness = torch.tensor([float(c.mean()) for c in changed]) / float(image.float().mean())
    assert 0.55 < float(brightness.min()) < 0.75
    assert 1.2 < float(brightness.max()) < 1.45
    assert torch.equal(jitter(image, 0.0, rng(0)), image)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.image_size=36"], r"data.image_size=36x36 is no multiple of the patch 8 of .*; use 32x32 or 40x40"),
        (["data.channels=4"], r"data.channels=4 has no usual statistics; give data.mean and data.std"),
        (["data.mean=[0.5]"], r"data.mean has 1 numbers for data.channels=3"),
        (["mask.ratio=0.99"], r"mask.ratio=0.99 leaves no patch visible of 4x4"),
        (["mask.kind=grid", "mask.ratio=0.5"], r"mask.kind=grid keeps one of every four patches"),
        (["model.decoder_width=30"], r"model.decoder_width=30 has to be a multiple of 4"),
        (["data.crop=center", "data.color_jitter=0.4"], r"data.crop=center is for no augmentation"),
        (["backbone.window_size=7"], r"pre-training starts from new weights"),
        (["mask.sort=block"], r"unknown config key 'mask.sort'"),
        (["model.pca_coefficients=500", "model.target=pca"], r"a patch of vit_nano_p8 has 192 values"),
        (["eval.knn=5", "data.root={plain}"], r"eval.knn needs labels of training and val images"),
        (["data.root={plain}/nothing"], r"nothing \(--data\) is not there"),
        (["data.root={empty}"], r"has no images \(.jpg, "),
    ],
)
def test_bad_input_is_one_line(tmp_path, overrides, message) -> None:
    from mae_transfer.pretrain.task import PretrainTask

    picture(tmp_path / "plain" / "a.jpg")
    (tmp_path / "empty").mkdir()
    places = {"plain": tmp_path / "plain", "empty": tmp_path / "empty"}

    def build() -> None:
        task = PretrainTask(config_of(tmp_path / "plain", *(text.format(**places) for text in overrides)))
        task.build_model(task.build_encoder())

    with pytest.raises(UserError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
