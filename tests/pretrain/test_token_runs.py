"""Whole runs with tokens and shards: the tokenizer that a run keeps, resumes, ranks; shards instead of folders."""

import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from support import command_line
from support.pretraining import resolve_pretrain

from mae_transfer.data.synthetic.classification import make_classification
from mae_transfer.errors import UserError
from mae_transfer.pretrain.tokenizers.load import FILE, load_tokenizer
from mae_transfer.run_folder.checkpoints import list_checkpoints, load_checkpoint
from mae_transfer.run_folder.metrics import read_metrics
from mae_transfer.runs.api import run_pretrain

SMALL = ["backbone.drop_path=0", "data.image_size=32", "mask.min_patches=2", "tokenizer.vocab_size=6"]
CHECKED = ("loss", "grad_norm", "eval")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_classification(tmp_path_factory.mktemp("data") / "set", "folder", train_images=4, val_images=1)


def pretrain(output, method="beit", *overrides, tokenizer="kmeans", **options):
    overrides = [*SMALL, *overrides] if method == "beit" else ["data.image_size=32", *overrides]
    options = {"preset": "smoke", "tokenizer": tokenizer, "output": output, "overrides": overrides, **options}
    return run_pretrain(method, "vit_nano_p8", **options)


def losses(folder):
    return [{key: line[key] for key in CHECKED if key in line} for line in read_metrics(Path(folder))]


def weights(folder):
    return load_checkpoint(list_checkpoints(Path(folder) / "checkpoints")[-1])["model"]


def test_a_run_keeps_its_tokenizer_and_resumes_with_it(images, tmp_path) -> None:
    steps = ["train.checkpoint_every=1", "train.keep_checkpoints=9"]
    whole = pretrain(tmp_path / "whole", "beit", *steps, data=images)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for path in list_checkpoints(tmp_path / "cut" / "checkpoints")[1:]:
        path.unlink()
    # If the tokens were made anew, or by other images, the losses would differ: a resume must take those of the folder.
    trained = weights(tmp_path / "whole")
    assert not any("tokenizer" in name for name in trained)
    before = (tmp_path / "cut" / FILE).stat().st_mtime_ns
    again = pretrain(tmp_path / "cut", "beit", *steps, data=images, resume=True)
    assert (tmp_path / "cut" / FILE).stat().st_mtime_ns == before
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert again["metrics"] == whole["metrics"]
    resumed = weights(tmp_path / "cut")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in trained.items())


def test_the_tokenizer_of_another_run_gives_the_same_run(images, tmp_path) -> None:
    first = pretrain(tmp_path / "first", data=images)
    second = pretrain(tmp_path / "second", data=images, tokenizer=tmp_path / "first")
    assert losses(tmp_path / "second") == losses(tmp_path / "first")
    assert first["metrics"] == second["metrics"]
    assert torch.equal(load_tokenizer(tmp_path / "second").centres, load_tokenizer(tmp_path / "first").centres)


def test_a_trained_dvae_is_a_tokenizer_for_beit_and_for_mae(images, tmp_path) -> None:
    record = pretrain(tmp_path / "dvae", "dvae", "train.checkpoint_every=1", tokenizer=None, data=images)
    assert set(record["metrics"]) == {"val_pixels", "val_kl"}
    tokenizer = load_tokenizer(tmp_path / "dvae")
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.patch_size) == ("dvae", 32, 8)
    trained = weights(tmp_path / "dvae")
    assert all(torch.equal(trained[f"tokenizer.{name}"], tensor) for name, tensor in tokenizer.state_dict().items())
    beit = pretrain(tmp_path / "beit", data=images, tokenizer=tmp_path / "dvae")
    assert beit["settings"]["tokenizer.kind"] == f"run {record['settings_id']}", "not where the tokenizer lies"
    pretrain(tmp_path / "mae", "mae", "model.target=token", data=images, tokenizer=tmp_path / "dvae")
    heads = {"beit": "lm_head.weight", "mae": "decoder_pred.weight"}
    for name, head in heads.items():
        assert len(weights(tmp_path / name)[head]) == 32
        kept = load_tokenizer(tmp_path / name)
        assert all(torch.equal(kept.state_dict()[key], t) for key, t in tokenizer.state_dict().items())
    with pytest.raises(UserError, match=r"a checkpoint of a run that trained none"):
        load_tokenizer(list_checkpoints(tmp_path / "mae" / "checkpoints")[-1])


def test_mae_with_tokens_has_the_cross_entropy_of_masked_patches(images, tmp_path) -> None:
    """The row "dVAE token" of MAE Table 1d: the same encoder and decoder, another target."""
    from mae_transfer.pretrain.methods import mae
    from mae_transfer.pretrain.tokenizers.kmeans import KMeansTokenizer

    overrides = ["data.image_size=32", "model.target=token", "model.decoder_depth=1", "model.decoder_width=32"]
    overrides += ["model.decoder_heads=4", "tokenizer.vocab_size=6"]
    config = resolve_pretrain("mae", "vit_nano_p8", data="synthetic", tokenizer="kmeans", overrides=overrides)
    torch.manual_seed(0)
    method = mae.MaeMethod(config)
    model = method.build_model(method.build_encoder(), None)
    model.tokens.tokenizer = KMeansTokenizer(torch.rand(6, 3 * 64), patch_size=8)
    batch = {"images": torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), "noise": torch.rand(3, 16)}
    logits, ids = model.predictions(batch), model.tokens(batch)
    expected = []
    for i in range(3):
        masked = batch["noise"][i].argsort()[model.len_keep :]
        expected.append(-logits[i].log_softmax(1)[masked, ids[i, masked]].mean())
    torch.testing.assert_close(model.train()(batch)["loss_mae"], torch.stack(expected).mean())
    torch.testing.assert_close(model.eval()(batch)["loss"], torch.stack(expected))


def shards_of(images: Path, folder: Path, split: str, count: int, corrupt: bool = False) -> None:
    """The images of a split in their order, over `count` shards, with labels."""
    files = sorted((images / split).rglob("*.JPEG"), key=lambda file: str(file.relative_to(images / split)))
    classes = sorted({file.parent.name for file in files})
    size = -(-len(files) // count)
    for shard in range(count):
        with tarfile.open(folder / f"{split}-{shard:04d}.tar", "w") as tar:
            for file in files[shard * size : (shard + 1) * size]:
                key = f"{file.parent.name}/{file.stem}"
                tar.add(file, f"{key}.jpeg")
                (folder / "label").write_text(str(classes.index(file.parent.name)))
                tar.add(folder / "label", f"{key}.cls")
    (folder / "label").unlink()


def test_shards_give_the_run_of_the_folder(images, tmp_path, monkeypatch) -> None:
    """The same images in the same order: the same steps to the last bit, with loader processes too, and labels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "shards").mkdir()
    shards_of(images, tmp_path / "shards", "train", 3)
    shards_of(images, tmp_path / "shards", "val", 1)
    overrides = ["subset=null", "eval.knn=3"]
    folder = pretrain(tmp_path / "a", "supervised", *overrides, data=images, tokenizer=None)
    shards = pretrain(
        tmp_path / "b", "supervised", *overrides, "data.workers=2", data=tmp_path / "shards", tokenizer=None
    )
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert folder["metrics"] == shards["metrics"]
    assert shards["data"]["train_images"] == 20
    pattern = f"{tmp_path}/shards/train-{{0000..0002}}.tar"
    val = f"data.val_root={tmp_path}/shards/val-0000.tar"
    third = pretrain(tmp_path / "c", "supervised", *overrides, val, data=pattern, tokenizer=None)
    assert third["metrics"] == folder["metrics"]


def test_a_corrupt_shard_ends_the_run_before_it_begins(images, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "shards").mkdir()
    shards_of(images, tmp_path / "shards", "train", 2)
    path = tmp_path / "shards" / "train-0001.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"shard .*train-0001\.tar: truncated or corrupt"):
        pretrain(tmp_path / "run", "mae", data=tmp_path / "shards", tokenizer=None)
    assert not (tmp_path / "run").exists()


def test_labels_have_to_be_in_both_splits(images, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "shards").mkdir()
    shards_of(images, tmp_path / "shards", "train", 1)
    plain = f"data.val_root={images / 'val' / 'birch'}"  # a folder of images without classes
    with pytest.raises(UserError, match="--method supervised needs labels"):
        pretrain(tmp_path / "run", "supervised", plain, data=tmp_path / "shards" / "train-0000.tar", tokenizer=None)
    with tarfile.open(tmp_path / "shards" / "val-0000.tar", "w") as tar:
        tar.add(next((images / "val").rglob("*.JPEG")), "x.jpeg")
        (tmp_path / "label").write_text("9")
        tar.add(tmp_path / "label", "x.cls")
    with pytest.raises(UserError, match=r"shards: a val image has the label 9, which no training image has"):
        pretrain(tmp_path / "run", "supervised", data=tmp_path / "shards", tokenizer=None)


def test_two_processes_do_what_one_does(images, tmp_path, monkeypatch) -> None:
    """Rank 0 fits the tokenizer, the other gets it; masks of different sizes and accumulation change nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pretrain(tmp_path / "one", "beit", "train.micro_batch=4", data=images)
    command = ["--method", "beit", "--backbone", "vit_nano_p8", "--preset", "smoke", "--tokenizer", "kmeans"]
    command += ["--data", str(images), "--output", str(tmp_path / "two"), *SMALL, "train.micro_batch=1"]
    done = command_line.pretrain(command, ranks=2)
    assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    assert torch.equal(load_tokenizer(tmp_path / "one").centres, load_tokenizer(tmp_path / "two").centres)
