"""Features kept in the run folder: what is stored, what a resume computes, what bad images leave, and that training on
them is training on the frozen encoder."""

import json
import shutil

import numpy as np
import pytest
import torch
from support.command_line import transfer

from mae_transfer.cli.transfer import main
from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.engine.distributed import make_fabric
from mae_transfer.run_folder.folder import RunFolder
from mae_transfer.runs.api import run_transfer
from mae_transfer.runs.resolve import load_config
from mae_transfer.runs.tasks import make_task
from mae_transfer.tasks.classification.features import store as features
from mae_transfer.tasks.classification.features.frozen import FrozenFeatures
from mae_transfer.tasks.classification.features.store import FeatureSet

PLAIN = ("data.crop=center", "data.flip=0", "data.image_size=32", "data.workers=0", "eval.batch_size=4")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_classification(tmp_path_factory.mktemp("set") / "set", "folder", classes=3, train_images=8)


@pytest.fixture
def folder(images, tmp_path):
    return shutil.copytree(images, tmp_path / "set")


def set_up(data, *overrides):
    torch.manual_seed(0)
    config = load_config(
        "folder", "random_vit_nano", protocol="linear", options={"data.root": str(data)},
        overrides=["train.precision=fp32", *PLAIN, *overrides],
    )  # fmt: skip
    task = make_task(config)
    return task, task.build_model(task.build_encoder())


def store(task, model, path):
    """The features of all splits of the task, which trains and evaluates on them from now on."""
    fabric = make_fabric("cpu", task.config.train.precision)
    path.mkdir(exist_ok=True)
    with RunFolder(path, task.config, resume=(path / "config.yaml").exists()) as opened:
        task.prepare(model, fabric, opened, False)
    return task.splits


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stored_features_are_the_encoders(folder, tmp_path, precision):
    task, model = set_up(folder, "probe.blocks=[1,2]", "probe.pooling=[cls,avg]", "data.holdout=0.25",
                         f"train.precision={precision}")  # fmt: skip
    images, stored = task.image_splits, store(task, model, tmp_path / "run")
    assert task.train_dataset is stored.train
    for split in ("train", "holdout", "val"):
        dataset, ours = getattr(images, split), getattr(stored, split)
        assert len(ours) == len(dataset)
        assert np.array_equal(ours.labels, dataset.labels)
        keys = [(3, i) if split == "train" else i for i in (5, 0, 2)]
        direct = dataset.collate([dataset[key] for key in keys])
        kept = ours.collate([ours[key] for key in keys])
        assert kept["names"] == direct["names"]
        assert torch.equal(kept["labels"], direct["labels"])
        assert kept["features"].dtype == (torch.float32 if precision == "fp32" else torch.float16)
        assert kept["features"].shape == (3, 2, 2, 64)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            expected = model.eval().frozen(direct)
        near = {"rtol": 1e-5, "atol": 1e-5} if precision == "fp32" else {"rtol": 2e-2, "atol": 5e-2}
        torch.testing.assert_close(model.frozen(kept), expected, **near)


def test_a_resume_computes_only_what_is_missing_and_other_weights_anything(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 8)
    task, model = set_up(folder)
    first = store(task, model, tmp_path / "run").train
    files = sorted((tmp_path / "run/features").glob("train-*.npy"))
    assert [len(np.load(file)) for file in files] == [8, 8, 8]
    files[1].unlink()
    seen = []
    monkeypatch.setattr(FrozenFeatures, "tokens", counted(FrozenFeatures.tokens, seen))
    task, model = set_up(folder)
    again = store(task, model, tmp_path / "run").train
    assert sum(seen) == 8
    assert torch.equal(again.whole()[0], first.whole()[0])

    task, model = set_up(folder)
    with torch.no_grad():
        model.encoder.vit.blocks[0].mlp.fc1.weight[0, 0] += 1
    other = store(task, model, tmp_path / "run").train
    assert sum(seen) == 8 + 24 + len(task.image_splits.val)
    assert not torch.equal(other.whole()[0], first.whole()[0])


def counted(function, seen):
    def tokens(self, batch):
        seen.append(len(batch["images"]))
        return function(self, batch)

    return tokens


def test_chunks_of_any_number_of_ranks_fit_together(folder, tmp_path, monkeypatch):
    """Rows by index over several chunks, in any order."""
    monkeypatch.setattr(features, "CHUNK", 8)
    task, model = set_up(folder)
    whole = store(task, model, tmp_path / "run").train.stored
    assert len(whole.chunks) == 3
    everything = np.concatenate(whole.chunks)
    order = np.random.default_rng(0).permutation(len(everything))
    assert np.array_equal(whole.rows(order), everything[order])


def test_bad_images_are_stood_in_for_and_left_out(folder, tmp_path):
    files = sorted((folder / "train").rglob("*.JPEG"))
    for file in (files[0], files[-1]):
        file.write_bytes(file.read_bytes()[:40])
    bad = sorted((folder / "val").rglob("*.JPEG"))[1]
    bad.write_bytes(b"no image")
    task, model = set_up(folder, "data.on_bad_image=skip")
    direct = task.train_dataset
    stored = store(task, model, tmp_path / "run")
    for index in (0, 1, len(files) - 1):
        assert stored.train.collate([index])["names"] == [direct[(0, index)]["name"]]
        assert stored.train.collate([index])["labels"].item() == direct[(0, index)]["label"]
    assert len(stored.train) == len(files)
    assert len(stored.train.whole()[0]) == len(files) - 2
    assert len(stored.val) == len(list((folder / "val").rglob("*.JPEG"))) - 1
    names = [name.rsplit("/", 1)[-1] for name in task.data_summary["skipped_files"]]
    assert sorted(names) == sorted([files[0].name, files[-1].name, bad.name])


def test_training_on_stored_features_is_training_on_the_frozen_encoder(images, tmp_path):
    """The whole run both ways: 5 epochs of the paper's probe without augmentation."""
    options = [*PLAIN, "train.precision=fp32", "train.global_batch=8", "train.micro_batch=8", "schedule.epochs=5",
               "schedule.warmup_epochs=1"]  # fmt: skip
    runs = {}
    for cache in ("true", "false"):
        runs[cache] = run_transfer(
            "folder", "random_vit_nano", protocol="linear", data=images, output=tmp_path / cache,
            overrides=[*options, f"probe.cache={cache}"],
        )  # fmt: skip
    assert (tmp_path / "true/features").is_dir()
    assert not (tmp_path / "false/features").exists()
    for name in ("top1", "top5", "mean_per_class"):
        assert runs["true"]["metrics"][name] == runs["false"]["metrics"][name]
    losses = [[line["loss"] for line in record["history"]] for record in runs.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    files = [tmp_path / cache / "checkpoints/step_00000015.pt" for cache in ("true", "false")]
    weights = [torch.load(file, weights_only=True)["model"]["heads.0.linear.weight"] for file in files]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)
    again = run_transfer(
        "folder", "random_vit_nano", protocol="linear", data=images, output=tmp_path / "true", eval_only=True,
        overrides=[*options, "probe.cache=true"],
    )  # fmt: skip
    assert again["metrics"] == runs["true"]["metrics"]


def test_an_encoder_without_class_token_gives_the_average(folder):
    torch.manual_seed(0)
    config = load_config("folder", "random_vit_nano", protocol="linear", overrides=list(PLAIN))
    from mae_transfer.backbones.load import load_backbone

    encoder = load_backbone("random_vit_nano", window_size=2, img_size=32, final_norm=True)
    frozen = FrozenFeatures(encoder, 1, ("cls",))
    assert frozen.parts == ("avg",)
    assert any("no class token" in line for line in encoder.load_report.lines())
    data = {"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}
    assert torch.equal(frozen.select(frozen(data), 1, "cls"), frozen.tokens(data)[0].mean(1))
    assert config.probe.pooling == ("cls",)


def test_feature_sets_keep_the_contract_of_keys(folder, tmp_path):
    task, model = set_up(folder)
    train = store(task, model, tmp_path / "run").train
    assert isinstance(train, FeatureSet)
    assert train[(7, 3)] == train[3] == 3


def test_two_processes_record_what_one_records(images, tmp_path):
    """A sweep, nearest neighbours and logistic regression, through the command line."""
    overrides = [*PLAIN, "train.precision=fp32", "data.holdout=0.25", "probe.lrs=[0.01,0.4]", "probe.k=[1,5]"]
    overrides += ["probe.c_count=3", "schedule.steps=6", "schedule.warmup_steps=0", "train.global_batch=12"]
    records = []
    for ranks in (1, 2):
        arguments = ["--task", "folder", "--protocol", "linear,knn,logreg", "--backbone", "random_vit_nano"]
        arguments += ["--data", str(images), "--output", str(tmp_path / str(ranks)), *overrides]
        if ranks == 1:
            assert main(arguments) == 0
        else:
            done = transfer(arguments, ranks)
            assert done.returncode == 0, done.stderr[-2000:]
        records.append([json.loads(file.read_text()) for file in sorted((tmp_path / str(ranks)).rglob("record.json"))])
    assert [record["settings"]["protocol"] for record in records[0]] == ["knn", "linear", "logreg"]
    for one, two in zip(*records, strict=True):
        assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-9)
        assert any(name.startswith("holdout_top1/") for name in one["metrics"])
