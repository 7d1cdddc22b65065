"""knn, logreg and in_context against scikit-learn and plain numpy; the features that they share."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from support.command_line import transfer

from mae_transfer.cli.transfer import main
from mae_transfer.data.images import choose_subset
from mae_transfer.run_folder.record import read_record
from mae_transfer.tasks.ade20k.bank import votes
from mae_transfer.tasks.ade20k.patch_tokens import PatchTokens
from mae_transfer.tasks.ade20k.pictures import SIDE
from mae_transfer.tasks.ade20k.transforms import IGNORE

CLASSES, PATCH, SIZE = 4, 16, (32, 48)
OPTIONS = ["data.num_classes=4", "data.image_size=[32,48]", "data.workers=0", "eval.batch_size=3", "eval.pictures=1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """12 + 5 images whose colours tell their classes; 0 is ignored, 1 .. 4 are the classes."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    colours = rng.integers(0, 256, (CLASSES + 1, 3))
    for split, images in (("training", 12), ("validation", 5)):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(images):
            cells = rng.integers(0, CLASSES + 1, (4, 6))
            mask = np.kron(cells, np.ones((10, 10), int)).astype(np.uint8)
            noise = rng.integers(-40, 40, (*mask.shape, 3))
            image = (colours[mask] + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / "images" / split / f"{number:02}.png")
            Image.fromarray(mask).save(folder / "annotations" / split / f"{number:02}.png")
    return folder


def command(root, output, protocol, *more):
    arguments = ["--task", "ade20k", "--backbone", "random_vit_nano", "--preset", "smoke", "--device", "cpu"]
    arguments += ["--subset", "100", "--data", str(root), "--output", str(output), "--protocol", protocol]
    return [*arguments, "data.image_suffix=.png", *OPTIONS, *more]


def stored(output, split):
    """Features (n, 6, C) and pixels (n, 6, 256) of the run's files, in the order of the images' names."""
    (pixels,) = output.glob(f"features/{split}-labels-*.npy")
    (features,) = set(output.glob(f"features/{split}-*.npy")) - {pixels}
    return np.load(features), np.load(pixels)


def aside():
    names = [f"{number:02}.png" for number in range(12)]
    held = np.zeros(12, dtype=bool)
    held[choose_subset(names, 3)] = True
    return held


def miou(pixels, predicted):
    truth, predicted = pixels.ravel(), predicted.ravel()
    matrix = confusion_matrix(truth[truth != IGNORE], predicted[truth != IGNORE], labels=range(CLASSES))
    with np.errstate(invalid="ignore"):
        return 100 * np.nanmean(matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal()))


def mode(values):
    """The commonest, of equals the lowest."""
    found, counts = np.unique(values, return_counts=True)
    return found[counts.argmax()]


def test_knn_is_scikit_learns_with_a_vote_of_each_pixel(root, tmp_path):
    record = run_cli(command(root, tmp_path / "run", "knn", "probe.k=[1,3,5]"))
    (features, pixels), (val, truth) = stored(tmp_path / "run", "train"), stored(tmp_path / "run", "val")
    held = aside()
    scaler = StandardScaler().fit(features[~held].reshape(-1, 64).astype(np.float64))

    def predict(of, queries, k, metric):
        bank = scaler.transform(features[of].reshape(-1, 64).astype(np.float64))
        labels = pixels[of].reshape(-1, PATCH**2)
        kept = np.array([mode(row) != IGNORE for row in labels])
        name = {"cosine": "cosine", "l2": "euclidean"}[metric]
        search = KNeighborsClassifier(k, metric=name).fit(bank[kept], np.zeros(kept.sum()))
        _, near = search.kneighbors(scaler.transform(queries.reshape(-1, 64).astype(np.float64)))
        chosen = labels[kept][near]  # (q, k, 256)
        found = np.empty((len(near), PATCH**2), int)
        for i, neighbours in enumerate(chosen):
            every = [np.bincount(neighbours[:, j][neighbours[:, j] != IGNORE], minlength=CLASSES) for j in range(256)]
            for j, counts in enumerate(every):
                found[i, j] = counts.argmax() if counts.any() else np.sum(every, axis=0).argmax()
        return found

    expected = {
        f"k{k}-{metric}": miou(pixels[held], predict(~held, features[held], k, metric))
        for k, metric in itertools.product((1, 3, 5), ("cosine", "l2"))
    }
    for name, value in expected.items():
        assert record["metrics"][f"holdout_mIoU/{name}"] == pytest.approx(value, abs=1e-6), name
    best = max(expected, key=expected.__getitem__)
    assert record["data"]["selected_head"] == best
    k, metric = int(best[1]), best[3:]
    predicted = predict(np.ones(12, dtype=bool), val, k, metric)
    assert record["metrics"]["mIoU"] == pytest.approx(miou(truth, predicted), abs=1e-6)
    assert record["row"] == {"name": "knn", "frozen": True, "rank": 2}
    with Image.open(tmp_path / "run/pictures/00.jpg") as picture:
        assert picture.width >= 4 * SIDE, "image, truth, prediction, features"


def test_logreg_is_scikit_learns_and_its_c_is_chosen_without_val(root, tmp_path):
    options = ["probe.c_powers=[-3,1]", "probe.c_count=3"]
    record = run_cli(command(root, tmp_path / "run", "logreg", *options))
    (features, pixels), (val, truth) = stored(tmp_path / "run", "train"), stored(tmp_path / "run", "val")
    held = aside()
    scaler = StandardScaler().fit(features[~held].reshape(-1, 64).astype(np.float64))

    def predict(of, queries, c):
        labels = np.array([mode(row) for row in pixels[of].reshape(-1, PATCH**2)])
        inputs = scaler.transform(features[of].reshape(-1, 64).astype(np.float64))
        model = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(inputs[labels != IGNORE], labels[labels != IGNORE])
        found = model.predict(scaler.transform(queries.reshape(-1, 64).astype(np.float64)))
        return np.repeat(found[:, None], PATCH**2, 1)

    expected = {c: miou(pixels[held], predict(~held, features[held], c)) for c in (1e-3, 1e-1, 1e1)}
    for c, value in expected.items():
        assert record["metrics"][f"holdout_mIoU/C{c:.3g}"] == pytest.approx(value, abs=0.5)
    best = max(expected, key=expected.__getitem__)
    predicted = predict(np.ones(12, dtype=bool), val, best)
    assert record["data"]["selected_head"] == f"C{best:.3g}"
    assert record["metrics"]["mIoU"] == pytest.approx(miou(truth, predicted), abs=0.5)
    assert record["metrics"]["mIoU"] > 25


def test_in_context_is_the_attention_written_in_numpy(root, tmp_path):
    record = run_cli(command(root, tmp_path / "run", "in_context", "probe.neighbours=7", "probe.temperature=0.05"))
    (features, pixels), (val, truth) = stored(tmp_path / "run", "train"), stored(tmp_path / "run", "val")
    labels = pixels.reshape(-1, PATCH**2)
    shares = np.stack([(labels == k).mean(1) for k in range(CLASSES)], 1)
    kept = shares.sum(1) > 0
    memory = features.reshape(-1, 64)[kept].astype(np.float64)
    memory /= np.linalg.norm(memory, axis=1, keepdims=True)
    queries = val.reshape(-1, 64).astype(np.float64)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    similar = queries @ memory.T
    near = np.argsort(-similar, axis=1, kind="stable")[:, :7]
    weights = np.exp(np.take_along_axis(similar, near, 1) / 0.05)
    weights /= weights.sum(1, keepdims=True)
    found = (weights[..., None] * shares[kept][near]).sum(1).reshape(5, 2, 3, CLASSES)
    maps = torch.from_numpy(found).permute(0, 3, 1, 2)
    large = torch.nn.functional.interpolate(maps, size=SIZE, mode="bilinear", align_corners=False).argmax(1)
    target = truth.reshape(5, 2, 3, PATCH, PATCH).transpose(0, 1, 3, 2, 4).reshape(5, *SIZE)
    assert record["metrics"]["mIoU"] == pytest.approx(miou(target, large.numpy()), abs=0.05)


def test_three_protocols_take_one_pass_and_other_pixels_another(root, tmp_path, monkeypatch):
    seen = []
    original = PatchTokens.__call__

    def counted(self, images):
        seen.append(len(images))
        return original(self, images)

    monkeypatch.setattr(PatchTokens, "__call__", counted)
    again = command(root, tmp_path / "runs", "knn,logreg,in_context", "eval.pictures=0")
    assert main(again) == 0
    assert sum(seen) == 12 + 5
    records = {each.parent.name: read_record(each) for each in tmp_path.glob("runs/*/record.json")}
    assert records.keys() == {"knn", "logreg", "in_context"}
    assert len({record["settings_id"] for record in records.values()}) == 3

    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    path = copy / "images/training/03.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert main(command(copy, tmp_path / "runs/other", "knn", "eval.pictures=0")) == 0
    assert sum(seen) == 12 + 5 + 12, "val images are the same"
    assert main(command(root, tmp_path / "runs/layer", "knn", "eval.pictures=0", "probe.layers=[3]")) == 0
    assert sum(seen) == 12 + 5 + 12 + 17
    windows = ("backbone.window_size=2", "backbone.num_global_blocks=1")
    assert main(command(root, tmp_path / "runs/windows", "knn", "eval.pictures=0", *windows)) == 0
    assert sum(seen) == 12 + 5 + 12 + 17 + 17


def test_every_layer_of_one_pass_is_that_of_a_run_of_its_own(root, tmp_path, monkeypatch):
    """Features to the last bit, metrics, settings; neither the pass nor the files of other layers reach a run."""
    seen = []
    original = PatchTokens.__call__
    monkeypatch.setattr(
        PatchTokens, "__call__", lambda self, images: seen.append(len(images)) or original(self, images)
    )
    options = ["eval.pictures=0", "data.holdout=0", "probe.k=[3]", "probe.metrics=[l2]"]
    layers = ["--layers", "1,4,6"]
    assert main([*command(root, tmp_path / "runs", "knn", *options), *layers]) == 0
    assert main([*command(root, tmp_path / "runs", "in_context", *options[:1]), *layers]) == 0
    assert sum(seen) == 12 + 5
    for protocol, own in (("knn", options), ("in_context", options[:1])):
        for layer in (1, 4, 6):
            of_pass = read_record(tmp_path / f"runs/{protocol}-layer{layer}/record.json")
            alone = tmp_path / f"alone{layer}/{protocol}"
            record = run_cli(command(root, alone, protocol, *own, f"probe.layers=[{layer}]"))
            assert (record["metrics"], record["settings_id"]) == (of_pass["metrics"], of_pass["settings_id"])
    for split in ("train", "val"):
        files = {path.name: path for path in tmp_path.glob(f"runs/knn-layer1/features/{split}-*.npy")}
        assert len(files) == 4, "three layers and the labels"
        alone = {path.name: path for path in tmp_path.glob(f"alone*/*/features/{split}-*.npy")}
        assert files.keys() == alone.keys()
        for name, path in files.items():
            assert path.read_bytes() == alone[name].read_bytes()
        features = {np.load(path).tobytes() for name, path in files.items() if "labels" not in name}
        assert len(features) == 3
    assert (tmp_path / "runs/layers_curve.png").is_file()


@pytest.mark.process
@pytest.mark.parametrize("protocol", ["knn", "logreg"])
def test_two_ranks_give_what_one_gives(root, tmp_path, protocol):
    done = transfer(command(root, tmp_path / "two", protocol, "eval.pictures=0"), ranks=2)
    assert done.returncode == 0, done.stderr
    one = run_cli(command(root, tmp_path / "one/run", protocol, "eval.pictures=0"))
    two = json.loads((tmp_path / "two/record.json").read_text())
    assert one["metrics"] == two["metrics"]
    assert one["data"]["selected_head"] == two["data"]["selected_head"]


def run_cli(arguments):
    assert main(arguments) == 0
    return read_record(Path(arguments[arguments.index("--output") + 1]) / "record.json")


def test_votes_of_ignored_pixels():
    pixels = torch.tensor([[[0, IGNORE, 2], [1, IGNORE, 2], [1, IGNORE, IGNORE]]], dtype=torch.int16)
    assert votes(pixels, 3).tolist() == [[1, 1, 2]]


@pytest.mark.parametrize(
    ("protocol", "options", "expected"),
    [
        ("knn", ["probe.layers=[8]"], r"probe.layers=\[8\]: give ascending block numbers from 0 to 7"),
        ("knn", ["probe.k=[1,1000]"], r"probe.k=\[1, 1000\]: .* to fit have 54 patches; set a smaller k"),
        ("knn", ["data.holdout=0.01"], "data.holdout=0.01 of 12 training images sets aside 0; use more images"),
        ("logreg", ["data.holdout=0.99"], "data.holdout=0.99 of 12 training images sets aside 12; use more images"),
        ("knn", ["data.image_size=40"], "data.image_size=40 is no multiple of the patch 16 .*; use 32 or 48"),
        ("knn", ["data.holdout=0"], "several probe.k or probe.metrics need images to choose by"),
        ("knn", ["probe.c_count=3"], "probe.c_count: protocol=knn never reads it .logreg does"),
        ("knn", ["optim.lr=0.1"], "optim.lr: protocol=knn never reads it"),
        ("in_context", ["probe.memory_size=5"], "probe.memory_size=5 is below the number of training images, 12, and"),
        ("in_context", ["probe.neighbours=80"], r"probe.neighbours=80: the memory holds 72 patches"),
        (
            "in_context",
            ["probe.memory_size=13", "probe.neighbours=13"],
            "probe.neighbours=13: the memory holds 12 patches",
        ),
        ("knn", ["--layers", "2,8"], "--layers 8: random_vit_nano has the blocks 0 to 7"),
        ("knn", ["--layers", "x"], "--layers x: random_vit_nano has the blocks 0 to 7"),
        ("knn", ["--layers", "all", "probe.layers=[2]"], "--layers and probe.layers: give one of them"),
        ("linear", ["--layers", "all"], "--layers goes with --protocol knn or logreg or in_context of --task ade20k"),
        ("in_context", ["data.holdout=0.5"], "data.holdout: protocol=in_context never reads it .knn and logreg do"),
    ],
)
def test_bad_options_are_one_line(root, tmp_path, capsys, protocol, options, expected):
    assert main(command(root, tmp_path / "run", protocol, *options)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(expected, errors[0]), errors[0]
    assert not (tmp_path / "run").exists()


def test_labelled_patches_are_counted_in_the_run(root, tmp_path, capsys):
    assert main(command(root, tmp_path / "run", "knn", "probe.k=[54]", "probe.metrics=[l2]")) == 2
    assert re.search(r"probe.k=\[54\]: there are \d+ labelled patches; set a smaller k", capsys.readouterr().err)


def test_a_disk_that_is_too_small_is_said_before(root, tmp_path, capsys, monkeypatch):
    from mae_transfer.tasks import chunk_store

    monkeypatch.setattr(chunk_store, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert main(command(root, tmp_path / "run", "knn")) == 2
    assert re.search("features of train take .* GiB and .* GiB are free; make room", capsys.readouterr().err)
    assert not list((tmp_path / "run/features").iterdir())


def test_a_pair_that_cannot_be_decoded_is_left_out(root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    path = copy / "annotations/training/04.png"
    path.write_bytes(path.read_bytes()[:60])
    record = run_cli(command(copy, tmp_path / "run", "knn", "data.on_bad_image=skip"))
    assert record["data"]["skipped_files"] == ["04.png"]
    assert record["metrics"]["mIoU"] > 20


def test_height_and_width_with_positions_of_another_rule(root, tmp_path):
    """DINOv2's rule of resampling is a setting of the run; the size is a list here."""
    arguments = command(root, tmp_path / "run", "in_context", "data.image_size=[28,42]", "eval.pictures=0")
    arguments[arguments.index("random_vit_nano")] = "timm:vit_small_patch14_dinov2"
    record = run_cli(arguments)
    assert record["settings"]["data.image_size"] == [28, 42]
    assert "pos_resampling" in record["settings"]
