"""ADE20K's data path against mmsegmentation's transforms, and every way in which folders can be wrong."""

import io
import warnings
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from PIL import Image

from mae_transfer.data import index_cache
from mae_transfer.data.decode import open_file
from mae_transfer.data.synthetic.ade20k import make_ade20k
from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.ade20k import pairs as ade20k_pairs
from mae_transfer.tasks.ade20k.data import Ade20kEval, Ade20kTrain
from mae_transfer.tasks.ade20k.labels import class_names
from mae_transfer.tasks.ade20k.pairs import find_pairs
from mae_transfer.tasks.ade20k.transforms import (
    IGNORE,
    Distortion,
    augment,
    draw_crop,
    draw_distortion,
    rescaled_size,
    resize_for_evaluation,
    resize_image,
)


def make_config(*overrides):
    return load_config("ade20k", "random_vit_nano", overrides=["data.image_size=64", "eval.stride=42", *overrides])


def pair_folders(folder, *masks, image_size=None, suffix=".png"):
    """A data set of one image per mask (array or Pillow image) as training and validation split; its overrides."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number, mask in enumerate(masks):
        mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        pixels = np.random.default_rng(number).integers(0, 256, (*(image_size or mask.size)[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg")
        mask.save(folder / "masks" / f"{number}{suffix}")
    return [f"data.{split}_{kind}={folder}/{kind}" for split in ("train", "val") for kind in ("images", "masks")]


def first_label(config):
    return Ade20kEval(find_pairs(config.data, "val"), config)[0]["label"].numpy()


def import_mmseg_transforms():
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mmseg.datasets.transforms import transforms
    return transforms


@pytest.mark.parametrize("size", [(300, 1300), (683, 512), (512, 683), (77, 333), (1200, 900)])
def test_resizing_equals_mmcv(size):
    import mmcv

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    label = rng.integers(-1, 150, size).astype(np.int16)
    config = make_config("data.image_size=512").data
    np.testing.assert_array_equal(resize_for_evaluation(image, config), mmcv.imrescale(image, (2048, 512)))
    for ratio, same_as in ((0.5, 1), (0.75, 1), (1.25, 1.25)):
        expected = mmcv.imrescale(image, (int(2048 * same_as), int(512 * same_as)))
        np.testing.assert_array_equal(resize_for_evaluation(image, config, ratio), expected)
    for ratio in (0.5, 0.777, 2.0):
        scale = (int(2048 * ratio), int(512 * ratio))
        ours = rescaled_size(*size, scale[1], scale[0])
        np.testing.assert_array_equal(resize_image(image, ours), mmcv.imrescale(image, scale))
        expected = mmcv.imrescale(label, scale, interpolation="nearest")
        import cv2

        np.testing.assert_array_equal(cv2.resize(label, ours[::-1], interpolation=cv2.INTER_NEAREST), expected)


def test_crop_equals_mmsegmentation(monkeypatch):
    transforms = import_mmseg_transforms()
    label = np.full((200, 300), 4, dtype=np.int16)
    label[60:75, 200:230] = 7
    label[:30] = IGNORE
    theirs = transforms.RandomCrop((64, 64), cat_max_ratio=0.75)
    redrawn = 0
    for seed in range(40):
        stream = np.random.default_rng(seed)
        monkeypatch.setattr(transforms.np.random, "randint", lambda low, high, s=stream: int(s.integers(high)))
        expected = theirs.crop_bbox({"img": label, "gt_seg_map": np.where(label == IGNORE, 255, label)})
        rng = np.random.default_rng(seed)
        rows, columns = draw_crop(label, 64, 0.75, rng)
        assert (rows.start, rows.stop, columns.start, columns.stop) == expected
        assert rng.integers(2**40) == stream.integers(2**40)  # as many draws
        redrawn += (rows, columns) != draw_crop(label, 64, 1.0, np.random.default_rng(seed))
    assert 0 < redrawn <= 40


@pytest.mark.parametrize("first", [False, True])
def test_distortion_equals_mmsegmentation(monkeypatch, first):
    transforms = import_mmseg_transforms()
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    drawn = Distortion(brightness=-20.3, contrast=1.37, contrast_first=first, saturation=0.6, hue=-11)
    integers = [1, 1, 1, 1, 1, -11] if first else [1, 0, 1, 1, -11, 1]  # yes, contrast first?, and yes again
    numbers = [-20.3, 1.37, 0.6] if first else [-20.3, 0.6, 1.37]
    monkeypatch.setattr(transforms.random, "randint", lambda *_: integers.pop(0))
    monkeypatch.setattr(transforms.random, "uniform", lambda *_: numbers.pop(0))
    expected = transforms.PhotoMetricDistortion().transform({"img": image[..., ::-1].copy()})["img"][..., ::-1]
    np.testing.assert_array_equal(drawn.apply(image), expected)
    assert not integers
    assert not numbers
    assert abs(expected.astype(int) - image).mean() > 5


def test_distortion_draws_each_step_half_the_time():
    rng = np.random.default_rng(0)
    drawn = [draw_distortion(rng) for _ in range(2000)]
    for step in ("brightness", "contrast", "saturation", "hue"):
        assert sum(getattr(d, step) is not None for d in drawn) == pytest.approx(1000, abs=100)
    hues = {d.hue for d in drawn if d.hue is not None}
    assert (min(hues), max(hues)) == (-18, 17)


def test_augmentation_draws_what_the_recipe_says(tmp_path):
    """Sizes, mirror images and colours of many draws of one picture, whose left half is dark and right half bright."""
    pixels = np.full((64, 128, 3), 60, np.uint8)
    pixels[:, 64:] = 180
    label = np.zeros((64, 128), np.int16)
    label[:, 64:] = 1
    config = make_config(
        "data.image_size=512", "data.short_side=512", "data.long_side=2048", "data.cat_max_ratio=1"
    ).data
    rng = np.random.default_rng(0)
    drawn = [augment(pixels, label, config, rng) for _ in range(60)]
    heights = [image.shape[0] for image, _ in drawn]
    assert min(heights) < 300 < max(heights) == 512  # ratio 0.5 gives 256 rows, 1 and more the whole crop
    plain = make_config("data.image_size=64", "data.short_side=64", "data.long_side=256", "data.photometric=false").data
    sides = [augment(pixels, label, plain, np.random.default_rng(seed)) for seed in range(200)]
    mirrored = [mask[0, 0] > mask[0, -1] for _, mask in sides if mask[0, 0] != mask[0, -1]]
    assert len(mirrored) > 30
    assert 0.3 < np.mean(mirrored) < 0.7
    distortions = [draw_distortion(np.random.default_rng(seed)) for seed in range(3000)]
    for name, low, high in (("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5)):
        values = [getattr(d, name) for d in distortions if getattr(d, name) is not None]
        share = (high - low) / 50
        assert low <= min(values) < low + share, name
        assert high - share < max(values) <= high, name


def test_masks_of_every_kind(tmp_path):
    values = np.array([[0, 1, 2], [255, 150, 3]])
    expected = np.array([[-1, 0, 1], [-1, 149, 2]])
    palette = Image.fromarray(values.astype(np.uint8))
    palette.putpalette([i // 3 % 256 for i in range(768)])
    assert palette.mode == "P"
    for kind, mask in {"8": values.astype(np.uint8), "16": values.astype(np.uint16), "P": palette}.items():
        np.testing.assert_array_equal(first_label(make_config(*pair_folders(tmp_path / kind, mask))), expected)

    many = pair_folders(tmp_path / "many", np.array([[0, 299], [65535, 255]], dtype=np.uint16))
    config = make_config(*many, "data.num_classes=300", "data.reduce_zero_label=false", "data.ignore_value=65535")
    np.testing.assert_array_equal(first_label(config), [[0, 299], [-1, 255]])  # 255 is a class like any other

    binary = pair_folders(tmp_path / "binary", Image.fromarray(np.array([[True, False]])))
    config = make_config(*binary, "data.num_classes=2", "data.reduce_zero_label=false", "data.ignore_value=null")
    np.testing.assert_array_equal(first_label(config), [[1, 0]])


@pytest.mark.parametrize(
    ("mask", "overrides", "message"),
    [
        (
            np.array([[1, 151]], np.uint8),
            (),
            r"0\.png: value 151 at row 0, column 1; .* 1\.\.150 or ignored",
        ),
        (np.array([[0, 7]], np.uint8), ("data.num_classes=7", "data.reduce_zero_label=false"), r"value 7 .* 0\.\.6"),
        (np.array([[255]], np.uint8), ("data.ignore_value=null",), r"value 255 .*ignored \(0\)"),
        (np.array([[70000]], np.int32), ("data.mask_suffix=.tif",), "0\\.tif: value 70000"),
    ],
)
def test_value_out_of_range_names_file_and_value(tmp_path, mask, overrides, message):
    suffix = ".tif" if mask.dtype == np.int32 else ".png"
    config = make_config(*pair_folders(tmp_path, mask, suffix=suffix), *overrides)
    with pytest.raises(UserError, match=message):
        first_label(config)
    # also out of a loader's process, still in one line
    loader = torch.utils.data.DataLoader(Ade20kEval(find_pairs(config.data, "val"), config), num_workers=1)
    with pytest.raises(UserError, match=message) as caught:
        next(iter(loader))
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_the_folders_is_found_at_the_start(tmp_path):
    def message(*overrides):
        with pytest.raises(UserError) as caught:
            find_pairs(make_config(*overrides).data, "train")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    grey = np.ones((20, 30), np.uint8)
    assert "neither data.root (--data) nor data.train_images" in message()
    assert "is not there; expected is ADE20K's layout" in message(f"data.root={tmp_path / 'none'}")
    good = pair_folders(tmp_path / "good", grey, grey)
    assert "no file ends in '.webp' (it holds .jpg)" in message(*good, "data.image_suffix=.webp")
    (tmp_path / "good/masks/1.png").unlink()
    assert "1 of 2 images have no mask" in message(*good)
    assert "1.jpg" in message(*good)
    wrong_size = pair_folders(tmp_path / "size", grey, image_size=(30, 21))
    assert "the mask is 30x20 pixels and" in message(*wrong_size)
    rgb = pair_folders(tmp_path / "rgb", np.zeros((20, 30, 3), np.uint8))
    assert "mode RGB" in message(*rgb)
    damaged = pair_folders(tmp_path / "damaged", grey)
    (tmp_path / "damaged/images/0.jpg").write_bytes(b"no image")
    assert "not a readable image" in message(*damaged)


def test_headers_are_read_once_and_again_of_changed_files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "LEAST_FILES", 1)
    monkeypatch.setattr(index_cache, "SETTLED", -(10**12))
    config = make_config(*pair_folders(tmp_path / "set", *[np.ones((20, 30), np.uint8)] * 2)).data
    opened = []
    monkeypatch.setattr(ade20k_pairs, "open_file", lambda path: opened.append(path) or open_file(path))
    first, again = (find_pairs(config, "train") for _ in range(2))
    assert first == again
    assert len(opened) == 4 + 2  # and each time a mask of each palette
    Image.fromarray(np.ones((21, 30), np.uint8)).save(tmp_path / "set/masks/1.png")
    with pytest.raises(UserError, match=r"1\.png: the mask is 30x21 pixels and .*1\.jpg is 30x20"):
        find_pairs(config, "train")
    Image.new("RGB", (30, 21)).save(tmp_path / "set/images/1.jpg")
    changed = find_pairs(config, "train")
    assert changed.sizes == [(20, 30), (21, 30)]
    assert changed.names_fingerprint != first.names_fingerprint


def test_rotated_photo_fits_its_upright_mask(tmp_path):
    overrides = pair_folders(tmp_path, np.ones((20, 30), np.uint8))
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    stored.save(tmp_path / "images/0.jpg", exif=exif, quality=100)
    config = make_config(*overrides)
    image, label = Ade20kEval(find_pairs(config.data, "val"), config).read(0)
    assert image.shape[:2] == label.shape == (20, 30)
    upright = np.asarray(Image.open(tmp_path / "images/0.jpg").transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(image, upright)


@pytest.mark.parametrize("which", ["images/0.jpg", "masks/0.png"])
def test_truncated_file_is_an_error_or_skipped(tmp_path, which):
    mask = np.random.default_rng(0).integers(1, 150, (80, 90), dtype=np.uint8)
    overrides = pair_folders(tmp_path, mask, mask)
    path = tmp_path / which
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    config = make_config(*overrides)
    pairs = find_pairs(config.data, "train")
    with pytest.raises(UserError, match=f"{which}: truncated or corrupt"):
        Ade20kTrain(pairs, config.data, seed=0)[0, 0]
    config = make_config(*overrides, "data.on_bad_image=skip")
    train, val = Ade20kTrain(pairs, config.data, seed=0), Ade20kEval(pairs, config)
    batch = train.collate([train[0, 0], train[0, 1]])
    assert batch["skipped"] == ["0.jpg"]
    assert batch["file_names"] == ["1.jpg", "1.jpg"]
    batch = val.collate([val[0], val[1]])
    assert (batch["skipped"], batch["file_names"], len(batch["views"])) == (["0.jpg"], ["1.jpg"], 1)


def test_training_samples_depend_on_their_key_alone(tmp_path):
    config = make_config("data.short_side=64", "data.long_side=256", f"data.root={make_ade20k(tmp_path / 'ade')}")
    pairs = find_pairs(config.data, "train")
    dataset = Ade20kTrain(pairs, config.data, seed=0)
    keys = [(epoch, index) for epoch in range(2) for index in range(len(dataset))]
    once = [dataset[key] for key in keys]
    np.random.default_rng().random()
    np.random.seed(1)
    loader = torch.utils.data.DataLoader(dataset, sampler=keys, batch_size=None, num_workers=2)
    for first, again in zip(once, loader, strict=True):
        torch.testing.assert_close(again["image"], first["image"], rtol=0, atol=0)
        torch.testing.assert_close(again["label"], first["label"], rtol=0, atol=0)
        assert first["image"].dtype == torch.uint8
        assert first["label"].dtype == torch.int16
        assert max(first["label"].shape) <= 64
        assert first["image"].shape[1:] == first["label"].shape
        assert first["label"].min() >= IGNORE
    half = len(dataset)
    assert not all(torch.equal(a["image"], b["image"]) for a, b in zip(once[:half], once[half:], strict=True))
    other = Ade20kTrain(pairs, config.data, seed=1)[0, 0]
    assert not torch.equal(other["image"], once[0]["image"])


def test_image_and_label_stay_together(tmp_path):
    """The generated images have a colour per class, so after every transform the label can be read off the image."""
    overrides = [f"data.root={make_ade20k(tmp_path / 'ade', size=(150, 200))}", "data.photometric=false"]
    config = make_config("data.short_side=150", "data.long_side=600", *overrides)
    dataset = Ade20kTrain(find_pairs(config.data, "train"), config.data, seed=0)
    for index in (0, 2, 3, 4):  # 1 is greyscale
        sample = dataset[0, index]
        classes = [k for k in sample["label"].unique().tolist() if k != IGNORE]
        for k in classes:
            inside = sample["image"][:, sample["label"] == k].float()
            if inside.shape[1] > 100:
                expected = {
                    0: (120, 120, 200),
                    2: (200, 60, 60),
                    4: (60, 160, 60),
                    20: (220, 200, 60),
                    149: (160, 60, 200),
                }[k]
                torch.testing.assert_close(inside.median(1).values, torch.tensor(expected).float(), atol=12, rtol=0)


def test_subset_is_the_same_and_nested(tmp_path):
    config = make_config(f"data.root={make_ade20k(tmp_path / 'ade', train_images=12)}")
    pairs = find_pairs(config.data, "train")
    assert len(pairs) == 12
    chosen = [
        set(Ade20kTrain(pairs, config.data, seed=s, subset=n).indices.tolist()) for s, n in [(0, 4), (9, 4), (0, 7)]
    ]
    assert chosen[0] == chosen[1] < chosen[2]
    assert (
        find_pairs(config.data, "train").names_fingerprint
        == pairs.names_fingerprint
        != find_pairs(config.data, "val").names_fingerprint
    )


def test_class_names(tmp_path):
    names = class_names(make_config().data)
    assert (len(names), names[0], names[7]) == (150, "wall", "bed")
    path = tmp_path / "classes.txt"
    path.write_text("1\t1\tperson\n2\t2\tbicycle\n")
    assert class_names(make_config("data.num_classes=2", f"data.class_names={path}").data) == ["person", "bicycle"]
    with pytest.raises(UserError, match="has 2 names and data.num_classes is 3"):
        class_names(make_config("data.num_classes=3", f"data.class_names={path}").data)
